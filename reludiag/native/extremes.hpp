// The running maximum of each unit, and whether all values are finite.
namespace {
namespace CPU {

template <class Scalar> INLINE void lift(float &running, Scalar highest, bool odd) {
    if (odd) running = std::numeric_limits<float>::quiet_NaN();
    else if ((float)highest > running) running = (float)highest; // false where it is NaN
}

// Only of units whose `fired` is 0, or of all where there is none.
template <class Type>
APART void raise_rows(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
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
APART void raise_planes(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
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

APART void raise(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last) {
    switch (x.kind) {
    case FLOAT32: return raise_as<Float32>(x, fired, running, first, last);
    case FLOAT64: return raise_as<Float64>(x, fired, running, first, last);
    case BFLOAT16: return raise_as<BFloat16>(x, fired, running, first, last);
    case FLOAT16: return raise_as<Float16>(x, fired, running, first, last);
    }
}

constexpr int64_t BLOCK = 1 << 12; // values that are read before it is asked whether to go on

// The exponent of what is not finite is all ones: of values without their sign, the largest tells.
template <class Word, Word infinity> INLINE bool finite_as(const Word *from, int64_t count) {
    typedef typename Wide<Word, WIDTH>::Type Vector;
    constexpr int64_t lanes = Wide<Word, WIDTH>::count;
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

APART bool finite(const void *data, Kind kind, int64_t first, int64_t last) {
    switch (kind) {
    case FLOAT32: return finite_as<uint32_t, 0x7f800000u>((const uint32_t *)data + first, last - first);
    case FLOAT64: return finite_as<uint64_t, 0x7ff0000000000000u>((const uint64_t *)data + first, last - first);
    case BFLOAT16: return finite_as<uint16_t, 0x7f80u>((const uint16_t *)data + first, last - first);
    case FLOAT16: return finite_as<uint16_t, 0x7c00u>((const uint16_t *)data + first, last - first);
    }
    return true;
}

} // namespace CPU
} // namespace
