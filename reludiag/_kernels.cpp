// The reductions of stats.py on the CPU, each a single read of the activations.
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
// x is float32, float64, bfloat16 or float16: [sample, unit, position] or [sample, unit] if `plan` is
// None, else as the plan says it is to be seen (see `Reading`); with either the units or the
// positions next to each other in memory.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

// PyTorch's own thread pool: a second one would fight it for the cores. Without it there is one
// thread. Both symbols are the stable interface of GNU's and of LLVM's OpenMP runtime.
extern "C" {
void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
int omp_get_thread_num(void) __attribute__((weak));
int omp_get_num_threads(void) __attribute__((weak));
int omp_get_max_threads(void) __attribute__((weak));
}

namespace {

constexpr int64_t PARALLEL = 1 << 15; // elements from which a second thread pays
// Memory is read in its order, a few units at a time, so that their accumulators stay in the first
// cache and what is ahead is fetched: a unit at a time, each plane is another page, at four times
// the cost.
constexpr int64_t CHUNK = 512; // units in rows
constexpr int64_t PLANES = 32; // units in planes
constexpr int64_t ROWS = 8;    // rows that are read before accumulators are written back
constexpr int64_t VECTORS = 16; // of small planes, the like: so many are read of one unit in a row

typedef double Doubles __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
typedef float HalfFloats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t HalfWords __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(64)));

enum Kind { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

struct Float32 { typedef float Memory; };
struct Float64 { typedef double Memory; };
struct BFloat16 { typedef uint16_t Memory; };
struct Float16 { typedef uint16_t Memory; };

// What is read is widened to one of two vectors: 16 floats or 8 doubles.
template <class Vector> struct Lanes;
template <> struct Lanes<Floats> {
    typedef float Scalar;
    typedef Ints Bits;
    typedef Words Unsigned;
    static constexpr int count = 16, halves = 2;
    static constexpr uint32_t infinity = 0x7f800000u;
};
template <> struct Lanes<Doubles> {
    typedef double Scalar;
    typedef Longs Bits;
    typedef uint64_t Unsigned __attribute__((vector_size(64)));
    static constexpr int count = 8, halves = 1;
    static constexpr uint64_t infinity = 0x7ff0000000000000u;
};
template <class Type> struct Widened { typedef Floats Vector; };
template <> struct Widened<Float64> { typedef Doubles Vector; };

template <class Vector, class Memory> INLINE Vector unaligned(const Memory *from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

INLINE Floats load(Float32, const float *from) { return unaligned<Floats>(from); }
INLINE Doubles load(Float64, const double *from) { return unaligned<Doubles>(from); }
INLINE Floats load(BFloat16, const uint16_t *from) {
    return (Floats)(__builtin_convertvector(unaligned<HalfWords>(from), Words) << 16);
}
INLINE Floats load(Float16, const uint16_t *from) {
    Words half = __builtin_convertvector(unaligned<HalfWords>(from), Words);
    Words magnitude = half & 0x7fffu;
    Words normal = (magnitude << 13) + ((127u - 15u) << 23);
    Words special = (magnitude << 13) | 0x7f800000u;
    // 2**-24 times an integer, with no denormal in between, which a CPU may take for zero.
    Words small = (Words)((Floats)(magnitude | (126u << 23)) - 0.5f);
    Words widened = magnitude >= 0x7c00u ? special : magnitude >= 0x0400u ? normal : small;
    return (Floats)(widened | (half & 0x8000u) << 16);
}

// A few values, fewer than a vector has; the rest of it repeats the first.
template <class Type, class Vector = typename Widened<Type>::Vector>
INLINE Vector load_some(const typename Type::Memory *from, int64_t some) {
    typename Type::Memory padded[Lanes<Vector>::count];
    for (int64_t i = 0; i < Lanes<Vector>::count; i++) padded[i] = from[i < some ? i : 0];
    return load(Type(), padded);
}

// -1 in the first lanes of an integer vector.
template <class Bits> INLINE Bits first_lanes(int64_t some) {
    Bits valid{};
    for (int64_t i = 0; i < (int64_t)(sizeof(Bits) / sizeof(valid[0])); i++) valid[i] = i < some ? -1 : 0;
    return valid;
}

// The same, where `valid` are the lanes of these few. A whole vector is read where the tensor goes on
// that far: small planes have nothing but such rests.
template <class Type, class Bits, class Vector = typename Widened<Type>::Vector>
INLINE Vector load_rest(const typename Type::Memory *from, int64_t some, Bits valid,
                        const typename Type::Memory *end) {
    if (from + Lanes<Vector>::count > end) return load_some<Type>(from, some);
    const Vector v = load(Type(), from);
    return valid ? v : Vector{} + v[0];
}

template <int half> INLINE Doubles widen(Floats v) {
    HalfFloats part = half ? __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
                           : __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_convertvector(part, Doubles);
}
template <int half> INLINE Doubles widen(Doubles v) { return v; }

// The same of values in memory. Of floats GCC makes one instruction of it, when it is spelled so.
template <int half, class Type> INLINE Doubles load_wide(Type, const typename Type::Memory *from) {
    return widen<half>(load(Type(), from));
}
template <int half> INLINE Doubles load_wide(Float32, const float *from) {
    const float *f = from + 8 * half;
    return Doubles{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]};
}

// Where it fires: it is > 0, or for a signed rectifier not 0; never where it is NaN. In integers,
// so that a denormal is what it is whatever the CPU is set to.
template <bool is_signed, class Vector> INLINE typename Lanes<Vector>::Bits firing(Vector v) {
    typedef typename Lanes<Vector>::Unsigned Unsigned;
    typedef typename Lanes<Vector>::Bits Bits;
    Unsigned bits = (Unsigned)v;
    if (is_signed) return (Bits)((bits << 1) - 1 < Unsigned{} + (Lanes<Vector>::infinity << 1));
    return (Bits)(bits - 1 < Unsigned{} + Lanes<Vector>::infinity);
}

// In halves: lane by lane it is most of the time that a small plane takes.
typedef int64_t FourLongs __attribute__((vector_size(32)));
typedef int64_t TwoLongs __attribute__((vector_size(16)));
INLINE bool any_one(Longs v) {
    FourLongs four = __builtin_shufflevector(v, v, 0, 1, 2, 3) | __builtin_shufflevector(v, v, 4, 5, 6, 7);
    TwoLongs two = __builtin_shufflevector(four, four, 0, 1) | __builtin_shufflevector(four, four, 2, 3);
    return (two[0] | two[1]) != 0;
}
INLINE bool all_ones(Longs v) { return !any_one(~v); }

struct Sum { template <class T> INLINE T of(T a, T b) { return a + b; } };
struct Either { template <class T> INLINE T of(T a, T b) { return a | b; } };
struct Larger { template <class T> INLINE T of(T a, T b) { return b > a ? b : a; } };
struct Smaller { template <class T> INLINE T of(T a, T b) { return b < a ? b : a; } };

// The lanes of a vector put together, by halves.
template <class Operation, class Vector, size_t... at>
INLINE auto by_halves(const Vector &v, std::index_sequence<at...>) {
    constexpr size_t half = sizeof...(at);
    auto kept = Operation::of(__builtin_shufflevector(v, v, at...), __builtin_shufflevector(v, v, (at + half)...));
    if constexpr (half == 2) return Operation::of(kept[0], kept[1]);
    else return by_halves<Operation>(kept, std::make_index_sequence<half / 2>());
}
template <class Operation, class Vector> INLINE auto folded(const Vector &v) {
    return by_halves<Operation>(v, std::make_index_sequence<sizeof(Vector) / sizeof(v[0]) / 2>());
}
template <class Operation, int halves> INLINE double folded(const Doubles (&v)[halves]) {
    if constexpr (halves == 2) return folded<Operation>(v[0] + v[1]);
    else return folded<Operation>(v[0]);
}

struct Tensor3 {
    const void *data;
    Kind kind;
    int64_t samples, units, positions;
    int64_t by_sample, by_unit, by_position; // strides, in elements

    // Elements from the first to behind the last.
    int64_t extent() const {
        return (samples - 1) * by_sample + (units - 1) * by_unit + (positions - 1) * by_position + 1;
    }
};

// Where units lie together, they are the last axis of rows.
INLINE bool in_rows(const Tensor3 &x) { return x.by_unit == 1 && (x.by_position != 1 || x.positions == 1); }

// Samples of one position, read like positions of one sample.
INLINE Tensor3 flat(Tensor3 x) {
    if (x.positions == 1) {
        x.positions = x.samples;
        x.by_position = x.by_sample;
        x.samples = 1;
    }
    return x;
}

// ---------------------------------------------------------------------------------------- count

template <class Vector> struct Accumulator {
    static constexpr int halves = Lanes<Vector>::halves;
    typedef typename Lanes<Vector>::Bits Bits;
    Doubles total[halves], square[halves], absolute[halves];
    Vector highest, lowest;
    Bits active, fired, now;

    INLINE void clear(Accumulator &a) {
        a = Accumulator{};
        a.highest += -std::numeric_limits<typename Lanes<Vector>::Scalar>::infinity();
        a.lowest += std::numeric_limits<typename Lanes<Vector>::Scalar>::infinity();
    }
};

template <bool is_signed, int half, class Vector> INLINE void add_sums(Accumulator<Vector> &a, Doubles v) {
    a.total[half] += v;
    a.square[half] += v * v;
    if (is_signed) a.absolute[half] += v < 0.0 ? -v : v;
}

template <bool is_signed, class Vector>
INLINE void add_extremes(Accumulator<Vector> &a, Vector v, typename Lanes<Vector>::Bits valid) {
    auto on = firing<is_signed>(v) & valid;
    a.active -= on;
    a.now |= on;
    a.highest = v > a.highest ? v : a.highest;
    a.lowest = v < a.lowest ? v : a.lowest;
}

template <bool is_signed, class Type, class Vector>
INLINE void add(Type, Accumulator<Vector> &a, const typename Type::Memory *from) {
    constexpr int last = Lanes<Vector>::halves - 1;
    add_extremes<is_signed>(a, load(Type(), from), ~typename Lanes<Vector>::Bits{});
    add_sums<is_signed, 0>(a, load_wide<0>(Type(), from));
    if (last) add_sums<is_signed, last>(a, load_wide<1>(Type(), from));
}

template <bool is_signed, class Type, class Vector>
INLINE void add_some(Type, Accumulator<Vector> &a, Vector v, typename Lanes<Vector>::Bits valid) {
    constexpr int last = Lanes<Vector>::halves - 1;
    const Vector kept = (Vector)((typename Lanes<Vector>::Bits)v & valid);
    add_extremes<is_signed>(a, v, valid);
    add_sums<is_signed, 0>(a, widen<0>(kept));
    if (last) add_sums<is_signed, last>(a, widen<1>(kept));
}

template <class Vector> INLINE void close_sample(Accumulator<Vector> &a) {
    a.fired -= a.now;
    a.now = a.now ^ a.now;
}

// Rows of sums as in stats.py: active, fired, total, square, absolute.
struct Sums {
    double *rows;
    void *highest, *lowest; // double for float64, else float
};

template <class Scalar>
INLINE void write(const Sums &out, int64_t units, int64_t unit, bool is_signed, double active, double fired,
                  double total, double square, double absolute, Scalar highest, Scalar lowest) {
    double *row = out.rows + unit;
    row[0] += active;
    row[units] += fired;
    row[2 * units] += total;
    row[3 * units] += square;
    if (is_signed) row[4 * units] += absolute;
    Scalar &top = ((Scalar *)out.highest)[unit], &bottom = ((Scalar *)out.lowest)[unit];
    if (std::isnan(total)) top = bottom = std::numeric_limits<Scalar>::quiet_NaN();
    if (highest > top) top = highest; // false where either is NaN, which stays
    if (lowest < bottom) bottom = lowest;
}

template <class Type, bool is_signed>
INLINE void count_rows(const Tensor3 &given, const Sums &out, int64_t first, int64_t last) {
    typedef typename Widened<Type>::Vector Vector;
    typedef Lanes<Vector> Of;
    constexpr typename Of::Bits all = ~typename Of::Bits{};
    const bool is_flat = given.positions == 1; // a position that is active is a sample that fired
    const Tensor3 x = flat(given);
    Accumulator<Vector> tiles[CHUNK / Of::count];
    for (int64_t begin = first; begin < last; begin += CHUNK) {
        const int64_t width = last - begin < CHUNK ? last - begin : CHUNK;
        const int64_t whole = width / Of::count, rest = width % Of::count;
        for (int64_t t = 0; t < whole + (rest > 0); t++) tiles[t].clear(tiles[t]);
        for (int64_t n = 0; n < x.samples; n++) {
            const auto *sample = (const typename Type::Memory *)x.data + n * x.by_sample + begin;
            for (int64_t p = 0; p < x.positions; p += ROWS) {
                const auto *row = sample + p * x.by_position;
                const int64_t rows = x.positions - p < ROWS ? x.positions - p : ROWS;
                for (int64_t t = 0; t < whole; t++) {
                    const auto *at = row + t * Of::count;
                    Accumulator<Vector> a = tiles[t];
                    if (rows == ROWS) // unrolled
                        for (int64_t r = 0; r < ROWS; r++) add<is_signed>(Type(), a, at + r * x.by_position);
                    else
                        for (int64_t r = 0; r < rows; r++) add<is_signed>(Type(), a, at + r * x.by_position);
                    tiles[t] = a;
                }
                for (int64_t r = 0; r < rows && rest; r++)
                    add_some<is_signed>(Type(), tiles[whole],
                                        load_some<Type>(row + r * x.by_position + whole * Of::count, rest), all);
            }
            if (!is_flat)
                for (int64_t t = 0; t < whole + (rest > 0); t++) close_sample(tiles[t]);
        }
        for (int64_t i = 0; i < width; i++) {
            const Accumulator<Vector> &a = tiles[i / Of::count];
            const int lane = i % Of::count, half = lane / 8, at = lane % 8;
            const double active = (double)a.active[lane];
            write(out, x.units, begin + i, is_signed, active, is_flat ? active : (double)a.fired[lane],
                  a.total[half][at], a.square[half][at], a.absolute[half][at], a.highest[lane], a.lowest[lane]);
        }
    }
}

template <class Type, bool is_signed>
INLINE void count_planes(const Tensor3 &x, const Sums &out, int64_t first, int64_t last) {
    typedef typename Widened<Type>::Vector Vector;
    typedef Lanes<Vector> Of;
    typedef typename Of::Bits Bits;
    const int64_t whole = x.positions - x.positions % Of::count, rest = x.positions % Of::count;
    const int64_t vectors = whole / Of::count + (rest > 0), together = (VECTORS + vectors - 1) / vectors;
    const Bits valid = first_lanes<Bits>(rest);
    const auto *end = (const typename Type::Memory *)x.data + x.extent();
    Accumulator<Vector> units[PLANES];
    int64_t fired[PLANES];
    for (int64_t begin = first; begin < last; begin += PLANES) {
        const int64_t width = last - begin < PLANES ? last - begin : PLANES;
        for (int64_t i = 0; i < width; i++) {
            units[i].clear(units[i]);
            fired[i] = 0;
        }
        for (int64_t n = 0; n < x.samples; n += together) {
            const int64_t samples = x.samples - n < together ? x.samples - n : together;
            const auto *plane = (const typename Type::Memory *)x.data + n * x.by_sample + begin * x.by_unit;
            for (int64_t i = 0; i < width; i++, plane += x.by_unit) {
                Accumulator<Vector> a = units[i];
                const auto *from = plane;
                for (int64_t m = 0; m < samples; m++, from += x.by_sample) {
                    a.now = Bits{};
                    for (int64_t p = 0; p < whole; p += Of::count) add<is_signed>(Type(), a, from + p);
                    if (rest) add_some<is_signed>(Type(), a, load_rest<Type>(from + whole, rest, valid, end), valid);
                    fired[i] += any_one((Longs)a.now);
                }
                units[i] = a;
            }
        }
        for (int64_t i = 0; i < width; i++) {
            const Accumulator<Vector> &a = units[i];
            write(out, x.units, begin + i, is_signed, (double)folded<Sum>(a.active), (double)fired[i],
                  folded<Sum>(a.total), folded<Sum>(a.square), is_signed ? folded<Sum>(a.absolute) : 0.0,
                  folded<Larger>(a.highest), folded<Smaller>(a.lowest));
        }
    }
}

// Each lane put together with its neighbours, in groups of 2, 4 or 8.
template <class Operation, size_t step, class Vector, size_t... at>
INLINE Vector with_lane(Vector v, std::index_sequence<at...>) {
    return Operation::of(v, __builtin_shufflevector(v, v, (at ^ step)...));
}
template <class Operation, class Vector> INLINE Vector grouped(Vector v, int64_t group) {
    typedef std::make_index_sequence<sizeof(Vector) / sizeof(v[0])> All;
    v = with_lane<Operation, 1>(v, All());
    if (group > 2) v = with_lane<Operation, 2>(v, All());
    if (group > 4) v = with_lane<Operation, 4>(v, All());
    return v;
}

// Planes of 2, 4 or 8 positions, next to each other: several units in a vector.
template <class Type> INLINE bool in_groups(const Tensor3 &x) {
    constexpr int64_t lanes = Lanes<typename Widened<Type>::Vector>::count;
    return x.by_position == 1 && x.by_unit == x.positions && x.positions < lanes && lanes % x.positions == 0;
}

template <class Type, bool is_signed>
INLINE void count_groups(const Tensor3 &x, const Sums &out, int64_t first, int64_t last) {
    typedef typename Widened<Type>::Vector Vector;
    typedef Lanes<Vector> Of;
    typedef typename Of::Bits Bits;
    const int64_t group = x.positions, units = Of::count / group;
    const auto *end = (const typename Type::Memory *)x.data + x.extent();
    for (int64_t begin = first; begin < last; begin += units) {
        const int64_t width = last - begin < units ? last - begin : units;
        const Bits valid = first_lanes<Bits>(width * group);
        Accumulator<Vector> a;
        a.clear(a);
        const auto *from = (const typename Type::Memory *)x.data + begin * group;
        for (int64_t n = 0; n < x.samples; n++, from += x.by_sample) {
            a.now = Bits{};
            if (width == units) add<is_signed>(Type(), a, from);
            else add_some<is_signed>(Type(), a, load_rest<Type>(from, width * group, valid, end), valid);
            a.fired -= grouped<Either>(a.now, group);
        }
        // To memory: of a vector, a lane whose number is not known while compiling is slow to get at.
        double total[Of::count], square[Of::count], absolute[Of::count];
        for (int half = 0; half < Of::halves; half++) {
            const Doubles sums[] = {grouped<Sum>(a.total[half], group), grouped<Sum>(a.square[half], group),
                                    is_signed ? grouped<Sum>(a.absolute[half], group) : Doubles{}};
            std::memcpy(total + 8 * half, &sums[0], sizeof(Doubles));
            std::memcpy(square + 8 * half, &sums[1], sizeof(Doubles));
            std::memcpy(absolute + 8 * half, &sums[2], sizeof(Doubles));
        }
        typename Of::Scalar highest[Of::count], lowest[Of::count];
        const Vector extremes[] = {grouped<Larger>(a.highest, group), grouped<Smaller>(a.lowest, group)};
        std::memcpy(highest, &extremes[0], sizeof(Vector));
        std::memcpy(lowest, &extremes[1], sizeof(Vector));
        std::decay_t<decltype(a.active[0])> active[Of::count], fired[Of::count];
        const Bits counts[] = {grouped<Sum>(a.active, group), a.fired};
        std::memcpy(active, &counts[0], sizeof(Bits));
        std::memcpy(fired, &counts[1], sizeof(Bits));
        for (int64_t i = 0, lane = 0; i < width; i++, lane += group)
            write(out, x.units, begin + i, is_signed, (double)active[lane], (double)fired[lane], total[lane],
                  square[lane], absolute[lane], highest[lane], lowest[lane]);
    }
}

template <class Type>
INLINE void count_as(const Tensor3 &x, bool is_signed, const Sums &out, int64_t first, int64_t last) {
    if (in_rows(x)) {
        if (is_signed) count_rows<Type, true>(x, out, first, last);
        else count_rows<Type, false>(x, out, first, last);
    } else if (in_groups<Type>(x)) {
        if (is_signed) count_groups<Type, true>(x, out, first, last);
        else count_groups<Type, false>(x, out, first, last);
    } else {
        if (is_signed) count_planes<Type, true>(x, out, first, last);
        else count_planes<Type, false>(x, out, first, last);
    }
}

FOR_EACH_CPU void count(const Tensor3 &x, bool is_signed, const Sums &out, int64_t first, int64_t last) {
    switch (x.kind) {
    case FLOAT32: return count_as<Float32>(x, is_signed, out, first, last);
    case FLOAT64: return count_as<Float64>(x, is_signed, out, first, last);
    case BFLOAT16: return count_as<BFloat16>(x, is_signed, out, first, last);
    case FLOAT16: return count_as<Float16>(x, is_signed, out, first, last);
    }
}

// ---------------------------------------------------------------------------------------- watch

enum State : uint8_t { UNSEEN = 0, FIRED = 1, NONFINITE = 2 };

// Reads bits alone. Of values without their sign, the largest says whether there was a NaN or an
// infinity; of signed integers, whether there was a positive value.
template <class Word, class Signed, Word infinity> struct Watcher {
    typedef Word Vector __attribute__((vector_size(64)));
    typedef Signed SignedVector __attribute__((vector_size(64)));
    static constexpr int count = 64 / sizeof(Word);
    static constexpr Word limit = (Word)(infinity << 1);

    Vector magnitude{};
    SignedVector highest{};

    INLINE Vector load(const Word *from) { return unaligned<Vector>(from); }
    INLINE Vector load_some(const Word *from, int64_t some) {
        Vector bits{};
        for (int64_t i = 0; i < some; i++) bits[i] = from[i];
        return bits;
    }
    INLINE Vector load_rest(const Word *from, int64_t some, Vector valid, const Word *end) {
        return from + count > end ? load_some(from, some) : load(from) & valid;
    }
    INLINE void add(Watcher &w, Vector bits) {
        Vector without = bits << 1;
        w.magnitude = without > w.magnitude ? without : w.magnitude;
        w.highest = (SignedVector)bits > w.highest ? (SignedVector)bits : w.highest;
    }
    INLINE uint8_t state(Word magnitude, Signed highest, bool is_signed) {
        if (magnitude > limit) return NONFINITE;
        const bool fired = is_signed ? magnitude != 0 : highest > 0;
        return (fired ? FIRED : UNSEEN) | (magnitude == limit ? NONFINITE : UNSEEN);
    }
    // -1 in each lane of which all is known that there is to know.
    INLINE SignedVector settled(const Watcher &w, bool is_signed) {
        SignedVector odd = (SignedVector)(w.magnitude > limit);
        return odd | (is_signed ? (SignedVector)(w.magnitude != 0) : (SignedVector)(w.highest > 0));
    }
};

template <class Word, class Signed, Word infinity>
INLINE void watch_rows(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
    typedef Watcher<Word, Signed, infinity> W;
    W tiles[CHUNK / 8];
    typename W::SignedVector known[CHUNK / 8];
    for (int64_t begin = first; begin < last; begin += CHUNK) {
        const int64_t width = last - begin < CHUNK ? last - begin : CHUNK;
        const int64_t count = (width + W::count - 1) / W::count;
        int64_t open = 0; // tiles in which a unit is not known to have fired
        bool closed[CHUNK / 8];
        for (int64_t t = 0; t < count; t++) {
            tiles[t] = W{};
            for (int64_t i = 0; i < W::count; i++) {
                const int64_t unit = t * W::count + i;
                known[t][i] = unit >= width || states[begin + unit] ? -1 : 0;
            }
            closed[t] = all_ones((Longs)known[t]);
            open += !closed[t];
        }
        for (int64_t n = 0; n < x.samples && open; n++) {
            const Word *sample = (const Word *)x.data + n * x.by_sample + begin;
            for (int64_t p = 0; p < x.positions && open; p += ROWS) {
                const int64_t rows = x.positions - p < ROWS ? x.positions - p : ROWS;
                for (int64_t t = 0; t < count; t++) {
                    if (closed[t]) continue;
                    const Word *at = sample + p * x.by_position + t * W::count;
                    const int64_t some = width - t * W::count;
                    W w = tiles[t];
                    for (int64_t r = 0; r < rows; r++, at += x.by_position) {
                        W::add(w, some < W::count ? W::load_some(at, some) : W::load(at));
                    }
                    tiles[t] = w;
                    closed[t] = all_ones((Longs)(known[t] | W::settled(w, is_signed)));
                    open -= closed[t];
                }
            }
        }
        for (int64_t i = 0; i < width; i++) {
            const W &w = tiles[i / W::count];
            states[begin + i] |= W::state(w.magnitude[i % W::count], w.highest[i % W::count], is_signed);
        }
    }
}

template <class Word, class Signed, Word infinity>
INLINE void watch_planes(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
    typedef Watcher<Word, Signed, infinity> W;
    W units[PLANES];
    const int64_t rest = x.positions % W::count, whole = x.positions - rest;
    const auto valid = (typename W::Vector)first_lanes<typename W::SignedVector>(rest);
    const Word *end = (const Word *)x.data + x.extent();
    for (int64_t begin = first; begin < last; begin += PLANES) {
        const int64_t width = last - begin < PLANES ? last - begin : PLANES;
        bool closed[PLANES];
        int64_t open = 0;
        for (int64_t i = 0; i < width; i++) {
            units[i] = W{};
            closed[i] = states[begin + i] != UNSEEN;
            open += !closed[i];
        }
        for (int64_t n = 0; n < x.samples && open; n++) {
            for (int64_t i = 0; i < width; i++) {
                if (closed[i]) continue;
                const Word *plane = (const Word *)x.data + n * x.by_sample + (begin + i) * x.by_unit;
                W w = units[i];
                for (int64_t p = 0; p < whole; p += W::count) W::add(w, W::load(plane + p));
                if (rest) W::add(w, W::load_rest(plane + whole, rest, valid, end));
                units[i] = w;
                closed[i] = any_one((Longs)W::settled(w, is_signed));
                open -= closed[i];
            }
        }
        for (int64_t i = 0; i < width; i++) {
            states[begin + i] |=
                W::state(folded<Larger>(units[i].magnitude), folded<Larger>(units[i].highest), is_signed);
        }
    }
}

template <class Word, class Signed, Word infinity>
INLINE void watch_as(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
    if (in_rows(x)) watch_rows<Word, Signed, infinity>(flat(x), is_signed, states, first, last);
    else watch_planes<Word, Signed, infinity>(x, is_signed, states, first, last);
}

FOR_EACH_CPU void watch(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
    switch (x.kind) {
    case FLOAT32: return watch_as<uint32_t, int32_t, 0x7f800000u>(x, is_signed, states, first, last);
    case FLOAT64: return watch_as<uint64_t, int64_t, 0x7ff0000000000000u>(x, is_signed, states, first, last);
    case BFLOAT16: return watch_as<uint16_t, int16_t, 0x7f80u>(x, is_signed, states, first, last);
    case FLOAT16: return watch_as<uint16_t, int16_t, 0x7c00u>(x, is_signed, states, first, last);
    }
}

// ---------------------------------------------------------------------------------------- raise

template <class Scalar> INLINE void lift(float &running, Scalar highest, bool odd) {
    if (odd) running = std::numeric_limits<float>::quiet_NaN();
    else if ((float)highest > running) running = (float)highest; // false where it is NaN
}

// Only of units whose `fired` is 0, or of all where there is none.
template <class Type>
INLINE void raise_rows(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
    typedef typename Widened<Type>::Vector Vector;
    typedef Lanes<Vector> Of;
    Vector highest[CHUNK / Of::count];
    typename Of::Bits odd[CHUNK / Of::count];
    bool wanted[CHUNK / Of::count];
    for (int64_t begin = first; begin < last; begin += CHUNK) {
        const int64_t width = last - begin < CHUNK ? last - begin : CHUNK;
        const int64_t count = (width + Of::count - 1) / Of::count;
        for (int64_t t = 0; t < count; t++) {
            highest[t] = Vector{} - std::numeric_limits<typename Of::Scalar>::infinity();
            odd[t] = typename Of::Bits{};
            wanted[t] = fired == nullptr;
            for (int64_t i = t * Of::count; i < (t + 1) * Of::count && i < width && !wanted[t]; i++)
                wanted[t] = fired[begin + i] == 0;
        }
        for (int64_t n = 0; n < x.samples; n++) {
            const auto *row = (const typename Type::Memory *)x.data + n * x.by_sample + begin;
            for (int64_t p = 0; p < x.positions; p++, row += x.by_position) {
                for (int64_t t = 0; t < count; t++) {
                    if (!wanted[t]) continue;
                    const auto *at = row + t * Of::count;
                    const int64_t some = width - t * Of::count;
                    const Vector v = some >= Of::count ? load(Type(), at) : load_some<Type>(at, some);
                    highest[t] = v > highest[t] ? v : highest[t];
                    odd[t] |= (typename Of::Bits)(v != v);
                }
            }
        }
        for (int64_t i = 0; i < width; i++)
            if (fired == nullptr || fired[begin + i] == 0)
                lift(running[begin + i], highest[i / Of::count][i % Of::count],
                     odd[i / Of::count][i % Of::count] != 0);
    }
}

template <class Type>
INLINE void raise_planes(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
    typedef typename Widened<Type>::Vector Vector;
    typedef Lanes<Vector> Of;
    const auto valid = first_lanes<typename Of::Bits>(x.positions % Of::count);
    const auto *end = (const typename Type::Memory *)x.data + x.extent();
    for (int64_t unit = first; unit < last; unit++) {
        if (fired != nullptr && fired[unit] != 0) continue;
        const auto *plane = (const typename Type::Memory *)x.data + unit * x.by_unit;
        Vector highest = Vector{} - std::numeric_limits<typename Of::Scalar>::infinity();
        typename Of::Bits odd{};
        for (int64_t n = 0; n < x.samples; n++, plane += x.by_sample) {
            for (int64_t p = 0; p < x.positions; p += Of::count) {
                const int64_t some = x.positions - p;
                const Vector v =
                    some >= Of::count ? load(Type(), plane + p) : load_rest<Type>(plane + p, some, valid, end);
                highest = v > highest ? v : highest;
                odd |= (typename Of::Bits)(v != v);
            }
        }
        for (int lane = 0; lane < Of::count; lane++) lift(running[unit], highest[lane], odd[lane] != 0);
    }
}

template <class Type>
INLINE void raise_as(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
    if (in_rows(x)) raise_rows<Type>(x, fired, running, first, last);
    else raise_planes<Type>(x, fired, running, first, last);
}

FOR_EACH_CPU void raise(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
    switch (x.kind) {
    case FLOAT32: return raise_as<Float32>(x, fired, running, first, last);
    case FLOAT64: return raise_as<Float64>(x, fired, running, first, last);
    case BFLOAT16: return raise_as<BFloat16>(x, fired, running, first, last);
    case FLOAT16: return raise_as<Float16>(x, fired, running, first, last);
    }
}

// --------------------------------------------------------------------------------------- threads

// `task(first, last)` over ranges of units, in as many threads as PyTorch uses. A range begins where
// a cache line does, so that no two threads write to the same one.
template <class Task> void in_parallel(const Tensor3 &x, const Task &task) {
    const bool large = x.samples * x.units * x.positions >= PARALLEL && x.units > 1;
    const bool there_are = GOMP_parallel && omp_get_thread_num && omp_get_num_threads && omp_get_max_threads;
    const int threads = large && there_are ? omp_get_max_threads() : 1; // torch.get_num_threads()
    if (threads == 1) return task(0, x.units);
    const auto share = [&](int64_t mine, int64_t all) {
        const int64_t equal = (x.units + all - 1) / all, rounded = (equal + 63) / 64 * 64;
        const int64_t step = rounded * all - x.units >= rounded ? equal : rounded;
        const int64_t first = mine * step, last = first + step;
        if (first < x.units) task(first, last < x.units ? last : x.units);
    };
    typedef decltype(share) Share;
    PyThreadState *state = PyEval_SaveThread();
    GOMP_parallel([](void *given) { (*(const Share *)given)(omp_get_thread_num(), omp_get_num_threads()); },
                  (void *)&share, (unsigned)threads, 0);
    PyEval_RestoreThread(state);
}

// --------------------------------------------------------------------------------------- finite

constexpr int64_t BLOCK = 1 << 12; // values that are read before it is asked whether to go on

// The exponent of what is not finite is all ones: of values without their sign, the largest tells.
template <class Word, Word infinity> INLINE bool finite_as(const Word *from, int64_t count) {
    typedef Word Vector __attribute__((vector_size(64)));
    constexpr int64_t lanes = 64 / sizeof(Word);
    int64_t at = 0;
    while (at + lanes <= count) {
        const int64_t end = count - at < BLOCK ? count : at + BLOCK;
        Vector largest{};
        for (; at + lanes <= end; at += lanes) {
            Vector without = unaligned<Vector>(from + at) << 1;
            largest = without > largest ? without : largest;
        }
        for (int lane = 0; lane < lanes; lane++)
            if (largest[lane] >= (Word)(infinity << 1)) return false;
    }
    for (; at < count; at++)
        if ((Word)(from[at] << 1) >= (Word)(infinity << 1)) return false;
    return true;
}

FOR_EACH_CPU bool finite(const void *data, Kind kind, int64_t first, int64_t last) {
    switch (kind) {
    case FLOAT32: return finite_as<uint32_t, 0x7f800000u>((const uint32_t *)data + first, last - first);
    case FLOAT64: return finite_as<uint64_t, 0x7ff0000000000000u>((const uint64_t *)data + first, last - first);
    case BFLOAT16: return finite_as<uint16_t, 0x7f80u>((const uint16_t *)data + first, last - first);
    case FLOAT16: return finite_as<uint16_t, 0x7c00u>((const uint16_t *)data + first, last - first);
    }
    return true;
}

// -------------------------------------------------------------------------------------- tensors

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

// ---------------------------------------------------------------------------------------- Python

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
    in_parallel(x, [&](int64_t first, int64_t last) { count(x, is_signed, out, first, last); });
    Py_RETURN_TRUE;
}

PyObject *py_watch(PyObject *, PyObject *const *given, Py_ssize_t number) {
    if (!expect(number, 4)) return nullptr;
    Tensor3 x;
    if (!activation(given[0], given[1], &x)) Py_RETURN_NONE;
    const bool is_signed = given[2] == Py_True;
    uint8_t *states = (uint8_t *)accumulator(given[3], x.units, UNSIGNED, 8);
    if (!states) Py_RETURN_NONE;
    in_parallel(x, [&](int64_t first, int64_t last) { watch(x, is_signed, states, first, last); });
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
    in_parallel(x, [&](int64_t first, int64_t last) { raise(x, fired, running, first, last); });
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
        if (!finite(x.data, kind, first, last)) __atomic_store_n(&found, false, __ATOMIC_RELAXED);
    });
    return PyBool_FromLong(found);
}

PyMethodDef methods[] = {
    {"count", (PyCFunction)(void (*)(void))py_count, METH_FASTCALL, nullptr},
    {"watch", (PyCFunction)(void (*)(void))py_watch, METH_FASTCALL, nullptr},
    {"raise_maximum", (PyCFunction)(void (*)(void))py_raise, METH_FASTCALL, nullptr},
    {"all_finite", py_all_finite, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "reludiag._kernels", nullptr, 0, methods,
                      nullptr, nullptr, nullptr, nullptr};

} // namespace

// Raises ImportError where this PyTorch does not offer the interface: reductions.py does without.
PyMODINIT_FUNC PyInit__kernels(void) {
    PyObject *torch = PyImport_ImportModule("torch");
    PyObject *type = torch ? PyObject_GetAttrString(torch, "Tensor") : nullptr;
    PyObject *capsule = type ? PyObject_GetAttrString(type, "__dlpack_c_exchange_api__") : nullptr;
    void *found = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    exchange = (const ExchangeAPI *)found;
    while (exchange && exchange->major != 1) exchange = exchange->previous;
    tensor_type = (PyTypeObject *)type; // for good: one reference is kept
    Py_XDECREF(capsule);
    Py_XDECREF(torch);
    if (exchange == nullptr || exchange->look == nullptr) {
        PyErr_SetString(PyExc_ImportError, "this torch does not have the C interface of DLPack 1.3");
        return nullptr;
    }
    return PyModule_Create(&module);
}
