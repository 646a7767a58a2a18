// The vectors that activations are read into: as wide as this CPU has them, WIDTH bytes.

namespace {
namespace CPU {

// Memory is read in its order, a few units at a time, so that their accumulators stay in the first
// cache and what is ahead is fetched: a unit at a time, each plane is another page, at four times
// the cost.
constexpr int64_t CHUNK = 512; // units in rows
constexpr int64_t PLANES = 32; // units in planes
constexpr int64_t ROWS = 8;    // rows that are read before accumulators are written back
constexpr int64_t VECTORS = 16; // of small planes, the like: so many are read of one unit in a row

template <class Element, int bytes> struct Wide {
    typedef Element Type __attribute__((vector_size(bytes)));
    static constexpr int count = bytes / sizeof(Element);
};
typedef Wide<double, WIDTH>::Type Doubles;
typedef Wide<float, WIDTH>::Type Floats;
typedef Wide<int32_t, WIDTH>::Type Ints;
typedef Wide<uint32_t, WIDTH>::Type Words;
typedef Wide<int64_t, WIDTH>::Type Longs;
typedef Wide<uint16_t, WIDTH / 2>::Type HalfWords;
constexpr int DOUBLES = WIDTH / sizeof(double);

struct Float32 { typedef float Memory; };
struct Float64 { typedef double Memory; };
struct BFloat16 { typedef uint16_t Memory; };
struct Float16 { typedef uint16_t Memory; };

// What is read is widened to one of two vectors, of floats or of doubles.
template <class Vector> struct Lanes;
template <> struct Lanes<Floats> {
    typedef float Scalar;
    typedef Ints Bits;
    typedef Words Unsigned;
    static constexpr int count = 2 * DOUBLES, halves = 2;
    static constexpr uint32_t infinity = 0x7f800000u;
};
template <> struct Lanes<Doubles> {
    typedef double Scalar;
    typedef Longs Bits;
    typedef Wide<uint64_t, WIDTH>::Type Unsigned;
    static constexpr int count = DOUBLES, halves = 1;
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

// The lower or the upper half of a vector's lanes, as doubles.
template <int half, class Vector, size_t... at>
INLINE Doubles half_of(const Vector &v, std::index_sequence<at...>) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, (at + half * DOUBLES)...), Doubles);
}
typedef std::make_index_sequence<DOUBLES> Half;
template <int half> INLINE Doubles widen(Floats v) { return half_of<half>(v, Half()); }
template <int half> INLINE Doubles widen(Doubles v) { return v; }
template <int half> INLINE Doubles as_doubles(Ints v) { return half_of<half>(v, Half()); }
template <int half> INLINE Doubles as_doubles(Longs v) { return __builtin_convertvector(v, Doubles); }

// The same of values in memory. Of floats GCC makes one instruction of it, when it is spelled so.
template <int half, class Type> INLINE Doubles load_wide(Type, const typename Type::Memory *from) {
    return widen<half>(load(Type(), from));
}
template <size_t... at> INLINE Doubles each_widened(const float *from, std::index_sequence<at...>) {
    return Doubles{from[at]...};
}
template <int half> INLINE Doubles load_wide(Float32, const float *from) {
    return each_widened(from + half * DOUBLES, Half());
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

struct Sum { template <class T> INLINE T of(T a, T b) { return a + b; } };
struct Either { template <class T> INLINE T of(T a, T b) { return a | b; } };
struct Larger { template <class T> INLINE T of(T a, T b) { return b > a ? b : a; } };
struct Smaller { template <class T> INLINE T of(T a, T b) { return b < a ? b : a; } };

// The lanes of a vector put together, by halves.
template <class Operation, class Vector, size_t... at>
INLINE auto by_halves(const Vector &v, std::index_sequence<at...>) {
    constexpr size_t half = sizeof...(at);
    if constexpr (half == 1) return Operation::of(v[0], v[1]);
    else
        return by_halves<Operation>(Operation::of(__builtin_shufflevector(v, v, at...),
                                                  __builtin_shufflevector(v, v, (at + half)...)),
                                    std::make_index_sequence<half / 2>());
}
template <class Operation, class Vector> INLINE auto folded(const Vector &v) {
    return by_halves<Operation>(v, std::make_index_sequence<sizeof(Vector) / sizeof(v[0]) / 2>());
}
template <class Operation, int halves> INLINE double folded(const Doubles (&v)[halves]) {
    if constexpr (halves == 2) return folded<Operation>(v[0] + v[1]);
    else return folded<Operation>(v[0]);
}

// In halves: lane by lane it is most of the time that a small plane takes.
INLINE bool any_one(const Longs &v) { return folded<Either>(v) != 0; }
INLINE bool all_ones(const Longs &v) { return !any_one(~v); }

} // namespace CPU
} // namespace
