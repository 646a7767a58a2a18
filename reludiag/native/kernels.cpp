// The reductions of reductions.py on the CPU, each a single read of the activations.
//
// PyTorch's operators need one read for each statistic, and none of them can stop at the first
// positive value. Tensors are taken as they are: where they lie in memory is asked of PyTorch through
// the C interface of DLPack, which needs none of PyTorch's headers, and costs less than one attribute
// asked in Python. What cannot be read so is refused, and reductions.py takes PyTorch's operators.
//
//   count(x, plan, ...)            sums, counts and extremes of each unit
//   watch(x, plan, ...)            which units have fired; a unit is not read on once it has
//   raise_maximum(x, plan, ...)    the running maximum of each unit, or of those that never fired
//   all_finite(x)                  whether no value is NaN or infinite
//
// SOURCES, which setup.py defines, is the checksum of the files in this folder.
//
// x is float32, float64, bfloat16 or float16: [sample, unit, position] or [sample, unit] if `plan` is
// None, else as the plan says it is to be seen (see `Reading`); with either the units or the
// positions next to each other in memory.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "activations.hpp"

#include <cmath>
#include <cstdlib>
#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif
#include <limits>
#include <type_traits>
#include <utility>

// Not inlined: GCC takes more than twice the time to compile all of them as one function.
#define APART static __attribute__((noinline))

#define CPU baseline
#define WIDTH 16
#include "one_cpu.hpp"

// On Windows, GCC does not align the stack as wider vectors need it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
#define HAS_AVX
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,f16c,fma,lzcnt,movbe")
#define CPU avx2
#define WIDTH 32
#include "one_cpu.hpp"
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
#define CPU avx512
#define WIDTH 64
#include "one_cpu.hpp"
#pragma GCC pop_options
#endif

namespace {

// What this CPU runs, the fastest first.
const Reductions *const *usable() {
    static const Reductions *all[4];
    int count = 0;
#ifdef HAS_AVX
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        all[count++] = &avx512::reductions;
    if (avx2) all[count++] = &avx2::reductions;
#endif
    all[count] = &baseline::reductions;
    return all;
}
const Reductions *use; // the fastest, or what a test or a benchmark has chosen

// Threads

// PyTorch's own thread pool: a second one would fight it for the cores. Without it there is one
// thread. All four are the stable interface of GNU's and of LLVM's OpenMP runtime; PyTorch has loaded
// it by the time of `attach`.
struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_num)(), (*num_threads)(), (*max_threads)();
} openmp;

template <class Function> bool find(const char *name, Function *function) {
#if __has_include(<dlfcn.h>)
    *function = (Function)dlsym(RTLD_DEFAULT, name);
#endif
    return *function != nullptr;
}

void find_threads() {
    if (!find("GOMP_parallel", &openmp.parallel) || !find("omp_get_thread_num", &openmp.thread_num) ||
        !find("omp_get_num_threads", &openmp.num_threads) || !find("omp_get_max_threads", &openmp.max_threads))
        openmp = {};
}

// torch.get_num_threads()
int64_t max_threads() { return openmp.max_threads ? openmp.max_threads() : 1; }

constexpr int64_t PARALLEL = 1 << 15; // elements from which a second thread pays
constexpr int64_t MUCH = 1 << 17;     // elements from which it pays to share samples, and not units

// `task(number, all)` in as many threads as PyTorch would use.
template <class Task> void in_threads(const Tensor3 &x, const Task &task) {
    const bool large = x.samples * x.units * x.positions >= PARALLEL;
    const int64_t threads = large ? max_threads() : 1;
    if (threads == 1) return task(0, 1);
    PyThreadState *state = PyEval_SaveThread();
    openmp.parallel([](void *shared) { (*(const Task *)shared)(openmp.thread_num(), openmp.num_threads()); },
                    (void *)&task, (unsigned)threads, 0);
    PyEval_RestoreThread(state);
}

// `task(first, last)` over ranges of units. A range begins where a cache line does, so that no two
// threads write to the same one.
template <class Task> void in_parallel(const Tensor3 &x, const Task &task) {
    in_threads(x, [&](int64_t mine, int64_t all) {
        const int64_t equal = (x.units + all - 1) / all, rounded = (equal + 63) / 64 * 64;
        const int64_t step = rounded * all - x.units >= rounded ? equal : rounded;
        const int64_t first = mine * step, last = first + step;
        if (first < x.units) task(first, last < x.units ? last : x.units);
    });
}

// All statistics. Of much, threads share the samples: each then reads what it has written itself, in
// the order in which PyTorch shares a rectifier's work, and leaves it in its own cache.
template <class Scalar> void count_in_parallel(const Tensor3 &x, bool is_signed, const Sums &out) {
    const int64_t rows = 4 + is_signed, size = x.units * (rows * sizeof(double) + 2 * sizeof(Scalar));
    const int64_t threads = max_threads();
    char *memory = nullptr;
    if (threads > 1 && x.samples * x.units * x.positions >= MUCH && x.samples >= 2 * threads)
        memory = (char *)std::malloc((size_t)(size * (threads - 1)));
    if (memory == nullptr)
        return in_parallel(x, [&](int64_t first, int64_t last) { use->count(x, is_signed, out, first, last); });
    const auto part = [&](int64_t thread) {
        if (thread == 0) return out;
        char *mine = memory + (thread - 1) * size, *extremes = mine + x.units * rows * sizeof(double);
        return Sums{(double *)mine, extremes, extremes + x.units * sizeof(Scalar)};
    };
    int64_t parts = 0;
    in_threads(x, [&](int64_t mine, int64_t all) {
        const int64_t first = x.samples * mine / all, last = x.samples * (mine + 1) / all;
        const int64_t width = x.kind == FLOAT64 ? 8 : x.kind == FLOAT32 ? 4 : 2;
        Tensor3 some = x;
        some.data = (const char *)x.data + first * x.by_sample * width;
        some.samples = last - first;
        if (mine == 0) parts = all;
        else clear<Scalar>(part(mine), x.units, is_signed);
        use->count(some, is_signed, part(mine), 0, x.units);
    });
    for (int64_t thread = 1; thread < parts; thread++) merge<Scalar>(out, part(thread), x.units, is_signed);
    std::free(memory);
}

// Tensors

// The C interface of DLPack 1.3 that torch.Tensor offers (dlpack.h, DLPackExchangeAPI), as far as it
// is used.
struct DLTensor {
    void *data;
    int32_t device, device_index;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct ExchangeAPI {
    uint32_t major, minor;
    const ExchangeAPI *previous;
    void *allocate, *take, *give;
    int (*look)(void *tensor, DLTensor *out); // borrows: nothing is copied, counted or waited for
};
enum { CPU = 1, PINNED = 3, UNSIGNED = 1, FLOAT = 2, BFLOAT = 4 };

PyTypeObject *tensor_type;
const ExchangeAPI *exchange;

// Subclasses are refused: what they hold need not be what they stand for.
bool look(PyObject *tensor, DLTensor *out) {
    if (Py_TYPE(tensor) != tensor_type) return false;
    if (exchange->look(tensor, out) != 0) {
        PyErr_Clear();
        return false;
    }
    out->data = (char *)out->data + out->byte_offset;
    return (out->device == CPU || out->device == PINNED) && out->lanes == 1 && (out->strides || !out->ndim);
}

bool kind_of(const DLTensor &x, Kind *kind) {
    if (x.code == BFLOAT && x.bits == 16) *kind = BFLOAT16;
    else if (x.code == FLOAT && x.bits == 32) *kind = FLOAT32;
    else if (x.code == FLOAT && x.bits == 64) *kind = FLOAT64;
    else if (x.code == FLOAT && x.bits == 16) *kind = FLOAT16;
    else return false;
    return true;
}

// A plan is how a tensor of one shape and strides is seen: number of axes, shape, strides; samples,
// units, positions, and the strides of these. All of it is int64.
bool follow(PyObject *plan, const DLTensor &tensor, Tensor3 *x) {
    char *bytes;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(plan, &bytes, &length) != 0) {
        PyErr_Clear();
        return false;
    }
    const int64_t *of = (const int64_t *)bytes, axes = tensor.ndim;
    if (length != (Py_ssize_t)sizeof(int64_t) * (1 + 2 * axes + 6) || of[0] != axes) return false;
    const int64_t *shape = of + 1, *strides = shape + axes, *seen = strides + axes;
    for (int64_t i = 0; i < axes; i++)
        if (tensor.shape[i] != shape[i] || (shape[i] != 1 && tensor.strides[i] != strides[i])) return false;
    x->samples = seen[0], x->units = seen[1], x->positions = seen[2];
    x->by_sample = seen[3], x->by_unit = seen[4], x->by_position = seen[5];
    return true;
}

bool activation(PyObject *tensor, PyObject *plan, Tensor3 *x) {
    DLTensor found;
    if (!look(tensor, &found) || !kind_of(found, &x->kind)) return false;
    x->data = found.data;
    if (plan != Py_None) {
        if (!follow(plan, found, x)) return false;
    } else {
        if (found.ndim != 2 && found.ndim != 3) return false;
        x->samples = found.shape[0], x->units = found.shape[1];
        x->by_sample = found.strides[0], x->by_unit = found.strides[1];
        x->positions = found.ndim == 3 ? found.shape[2] : 1;
        x->by_position = found.ndim == 3 ? found.strides[2] : 1;
    }
    return x->samples > 0 && x->positions > 0 && (x->by_unit == 1 || x->by_position == 1);
}

// An accumulator [..., unit], ours and so contiguous; null if it is not of these units or this type.
void *accumulator(PyObject *tensor, int64_t units, int code, int bits) {
    DLTensor found;
    if (!look(tensor, &found) || found.ndim < 1 || found.shape[found.ndim - 1] != units) return nullptr;
    return found.code == code && found.bits == bits ? found.data : nullptr;
}

// Python

bool expect(Py_ssize_t given, Py_ssize_t expected) {
    if (given != expected) PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, given);
    return given == expected;
}

PyObject *py_count(PyObject *, PyObject *const *given, Py_ssize_t number) {
    if (!expect(number, 6)) return nullptr;
    Tensor3 x;
    if (!activation(given[0], given[1], &x)) Py_RETURN_FALSE;
    const bool is_signed = given[2] == Py_True;
    // What is read from doubles is written to doubles; a model may change its type on the way.
    const int bits = x.kind == FLOAT64 ? 64 : 32;
    const Sums out{(double *)accumulator(given[3], x.units, FLOAT, 64), accumulator(given[4], x.units, FLOAT, bits),
                   accumulator(given[5], x.units, FLOAT, bits)};
    if (!out.rows || !out.highest || !out.lowest) Py_RETURN_FALSE;
    if (x.kind == FLOAT64) count_in_parallel<double>(x, is_signed, out);
    else count_in_parallel<float>(x, is_signed, out);
    Py_RETURN_TRUE;
}

PyObject *py_watch(PyObject *, PyObject *const *given, Py_ssize_t number) {
    if (!expect(number, 4)) return nullptr;
    Tensor3 x;
    if (!activation(given[0], given[1], &x)) Py_RETURN_NONE;
    const bool is_signed = given[2] == Py_True;
    uint8_t *states = (uint8_t *)accumulator(given[3], x.units, UNSIGNED, 8);
    if (!states) Py_RETURN_NONE;
    in_parallel(x, [&](int64_t first, int64_t last) { use->watch(x, is_signed, states, first, last); });
    int64_t unseen = 0;
    for (int64_t unit = 0; unit < x.units; unit++) unseen += states[unit] == UNSEEN;
    return PyLong_FromLongLong(unseen);
}

PyObject *py_raise(PyObject *, PyObject *const *given, Py_ssize_t number) {
    if (!expect(number, 4)) return nullptr;
    Tensor3 x;
    if (!activation(given[0], given[1], &x)) Py_RETURN_FALSE;
    const double *fired = nullptr;
    if (given[2] != Py_None && !(fired = (const double *)accumulator(given[2], x.units, FLOAT, 64))) Py_RETURN_FALSE;
    float *running = (float *)accumulator(given[3], x.units, FLOAT, 32);
    if (!running) Py_RETURN_FALSE;
    in_parallel(x, [&](int64_t first, int64_t last) { use->raise(x, fired, running, first, last); });
    Py_RETURN_TRUE;
}

PyObject *py_all_finite(PyObject *, PyObject *tensor) {
    DLTensor x;
    Kind kind;
    if (!look(tensor, &x) || !kind_of(x, &kind)) Py_RETURN_NONE;
    int64_t count = 1;
    for (int32_t i = x.ndim - 1; i >= 0; i--) {
        if (x.shape[i] != 1 && x.strides[i] != count) Py_RETURN_NONE; // not one piece of memory
        count *= x.shape[i];
    }
    bool found = true;
    const Tensor3 line{x.data, kind, 1, count, 1, 0, 1, 1};
    in_parallel(line, [&](int64_t first, int64_t last) {
        if (!use->finite(x.data, kind, first, last)) __atomic_store_n(&found, false, __ATOMIC_RELAXED);
    });
    return PyBool_FromLong(found);
}

// attach(torch.Tensor): from here on, tensors are read. Apart from loading the module, which needs no
// torch then. Raises ImportError where this PyTorch does not offer the interface.
PyObject *py_attach(PyObject *, PyObject *type) {
    PyObject *capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
    const void *newest = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    PyErr_Clear();
    Py_XDECREF(capsule); // it points to what lasts as long as the process
    const ExchangeAPI *offer = (const ExchangeAPI *)newest;
    while (offer && offer->major != 1) offer = offer->previous;
    if (offer == nullptr || offer->look == nullptr) {
        PyErr_SetString(PyExc_ImportError, "this torch does not have the C interface of DLPack 1.3");
        return nullptr;
    }
    exchange = offer;
    tensor_type = (PyTypeObject *)Py_NewRef(type); // for good
    find_threads();
    Py_RETURN_NONE;
}

// The widths of vectors that this CPU has, in bytes, the widest first.
PyObject *py_widths(PyObject *, PyObject *) {
    PyObject *widths = PyList_New(0);
    for (const Reductions *const *each = usable(); widths && *each; each++) {
        PyObject *width = PyLong_FromLong((*each)->width);
        if (!width || PyList_Append(widths, width) != 0) Py_CLEAR(widths);
        Py_XDECREF(width);
    }
    return widths;
}

PyObject *py_use_width(PyObject *, PyObject *given) {
    const long width = PyLong_AsLong(given);
    if (PyErr_Occurred()) return nullptr;
    for (const Reductions *const *each = usable(); *each; each++)
        if ((*each)->width == width) {
            use = *each;
            Py_RETURN_NONE;
        }
    PyErr_Format(PyExc_ValueError, "this CPU has no vectors of %ld bytes", width);
    return nullptr;
}

PyMethodDef methods[] = {
    {"attach", py_attach, METH_O, nullptr},
    {"count", (PyCFunction)(void (*)(void))py_count, METH_FASTCALL, nullptr},
    {"watch", (PyCFunction)(void (*)(void))py_watch, METH_FASTCALL, nullptr},
    {"raise_maximum", (PyCFunction)(void (*)(void))py_raise, METH_FASTCALL, nullptr},
    {"all_finite", py_all_finite, METH_O, nullptr},
    {"widths", py_widths, METH_NOARGS, nullptr},
    {"use_width", py_use_width, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "reludiag._kernels", nullptr, 0, methods,
                      nullptr, nullptr, nullptr, nullptr};

} // namespace

PyMODINIT_FUNC PyInit__kernels(void) {
    use = *usable();
    PyObject *made = PyModule_Create(&module);
    PyObject *sources = PyLong_FromUnsignedLong(SOURCES);
    if (!made || !sources || PyModule_AddObjectRef(made, "SOURCES", sources) != 0) Py_CLEAR(made);
    Py_XDECREF(sources);
    return made;
}
