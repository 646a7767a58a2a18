// Activations in memory, and the vectors that they are read into: 16 floats or 8 doubles.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

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

template <class Vector, class Memory> INLINE void store(Memory *to, Vector vector) {
    std::memcpy(to, &vector, sizeof vector);
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

typedef int32_t HalfInts __attribute__((vector_size(32)));
template <int half> INLINE Doubles as_doubles(Ints v) {
    HalfInts part = half ? __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
                         : __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_convertvector(part, Doubles);
}
template <int half> INLINE Doubles as_doubles(Longs v) { return __builtin_convertvector(v, Doubles); }

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

} // namespace
