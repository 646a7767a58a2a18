// Sums, counts and extremes of each unit, in one read.
namespace {
namespace CPU {

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

template <int last> INLINE void add_row(double *at, const Doubles &first, const Doubles &second) {
    store(at, unaligned<Doubles>(at) + first);
    if (last) store(at + DOUBLES, unaligned<Doubles>(at + DOUBLES) + second);
}

// The same of the units of a whole vector.
template <class Vector>
INLINE void write(const Sums &out, int64_t units, int64_t unit, bool is_signed, const Accumulator<Vector> &a,
                  typename Lanes<Vector>::Bits fired) {
    constexpr int last = Lanes<Vector>::halves - 1;
    typedef typename Lanes<Vector>::Scalar Scalar;
    double *row = out.rows + unit;
    add_row<last>(row, as_doubles<0>(a.active), as_doubles<last>(a.active));
    add_row<last>(row + units, as_doubles<0>(fired), as_doubles<last>(fired));
    add_row<last>(row + 2 * units, a.total[0], a.total[last]);
    add_row<last>(row + 3 * units, a.square[0], a.square[last]);
    if (is_signed) add_row<last>(row + 4 * units, a.absolute[0], a.absolute[last]);
    Scalar *tops = (Scalar *)out.highest + unit, *bottoms = (Scalar *)out.lowest + unit;
    const Vector top = unaligned<Vector>(tops), bottom = unaligned<Vector>(bottoms);
    store(tops, a.highest > top ? a.highest : top); // false where either is NaN, which stays
    store(bottoms, a.lowest < bottom ? a.lowest : bottom);
    if (any_one((a.total[0] != a.total[0]) | (a.total[last] != a.total[last])))
        for (int lane = 0; lane < Lanes<Vector>::count; lane++)
            if (std::isnan(a.total[lane / DOUBLES][lane % DOUBLES])) tops[lane] = bottoms[lane] = std::numeric_limits<Scalar>::quiet_NaN();
}

template <class Type, bool is_signed>
APART void count_rows(const Tensor3 &given, const Sums &out, int64_t first, int64_t last) {
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
        for (int64_t t = 0; t < whole; t++)
            write(out, x.units, begin + t * Of::count, is_signed, tiles[t], is_flat ? tiles[t].active : tiles[t].fired);
        for (int64_t i = whole * Of::count; i < width; i++) {
            const Accumulator<Vector> &a = tiles[i / Of::count];
            const int lane = i % Of::count, half = lane / DOUBLES, at = lane % DOUBLES;
            const double active = (double)a.active[lane];
            write(out, x.units, begin + i, is_signed, active, is_flat ? active : (double)a.fired[lane],
                  a.total[half][at], a.square[half][at], a.absolute[half][at], a.highest[lane], a.lowest[lane]);
        }
    }
}

template <class Type, bool is_signed>
APART void count_planes(const Tensor3 &x, const Sums &out, int64_t first, int64_t last) {
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
    constexpr size_t lanes = sizeof(Vector) / sizeof(v[0]);
    typedef std::make_index_sequence<lanes> All;
    v = with_lane<Operation, 1>(v, All());
    if constexpr (lanes > 2)
        if (group > 2) v = with_lane<Operation, 2>(v, All());
    if constexpr (lanes > 4)
        if (group > 4) v = with_lane<Operation, 4>(v, All());
    return v;
}

// Planes of 2, 4 or 8 positions, next to each other: several units in a vector.
template <class Type> INLINE bool in_groups(const Tensor3 &x) {
    constexpr int64_t lanes = Lanes<typename Widened<Type>::Vector>::count;
    return x.by_position == 1 && x.by_unit == x.positions && x.positions < lanes && lanes % x.positions == 0;
}

template <class Type, bool is_signed>
APART void count_groups(const Tensor3 &x, const Sums &out, int64_t first, int64_t last) {
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
            std::memcpy(total + DOUBLES * half, &sums[0], sizeof(Doubles));
            std::memcpy(square + DOUBLES * half, &sums[1], sizeof(Doubles));
            std::memcpy(absolute + DOUBLES * half, &sums[2], sizeof(Doubles));
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

APART void count(const Tensor3 &x, bool is_signed, const Sums &out, int64_t first, int64_t last) {
    switch (x.kind) {
    case FLOAT32: return count_as<Float32>(x, is_signed, out, first, last);
    case FLOAT64: return count_as<Float64>(x, is_signed, out, first, last);
    case BFLOAT16: return count_as<BFloat16>(x, is_signed, out, first, last);
    case FLOAT16: return count_as<Float16>(x, is_signed, out, first, last);
    }
}

} // namespace CPU
} // namespace
