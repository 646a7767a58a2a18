// Which units have fired: of each no more is read than up to its first positive value.
namespace {
namespace CPU {

// Reads bits alone. Of values without their sign, the largest says whether there was a NaN or an
// infinity; of signed integers, whether there was a positive value.
template <class Word, class Signed, Word infinity> struct Watcher {
    typedef typename Wide<Word, WIDTH>::Type Vector;
    typedef typename Wide<Signed, WIDTH>::Type SignedVector;
    static constexpr int count = Wide<Word, WIDTH>::count;
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
APART void watch_rows(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
    typedef Watcher<Word, Signed, infinity> W;
    W tiles[CHUNK / W::count];
    typename W::SignedVector known[CHUNK / W::count];
    for (int64_t begin = first; begin < last; begin += CHUNK) {
        const int64_t width = last - begin < CHUNK ? last - begin : CHUNK;
        const int64_t count = (width + W::count - 1) / W::count;
        int64_t open = 0; // tiles in which a unit is not known to have fired
        bool closed[CHUNK / W::count];
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
APART void watch_planes(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
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

APART void watch(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last) {
    switch (x.kind) {
    case FLOAT32: return watch_as<uint32_t, int32_t, 0x7f800000u>(x, is_signed, states, first, last);
    case FLOAT64: return watch_as<uint64_t, int64_t, 0x7ff0000000000000u>(x, is_signed, states, first, last);
    case BFLOAT16: return watch_as<uint16_t, int16_t, 0x7f80u>(x, is_signed, states, first, last);
    case FLOAT16: return watch_as<uint16_t, int16_t, 0x7c00u>(x, is_signed, states, first, last);
    }
}

} // namespace CPU
} // namespace
