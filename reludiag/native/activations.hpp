// Activations in memory, and what is written of them: the same for every CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#define INLINE static inline __attribute__((always_inline))

namespace {

enum Kind { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

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

// Rows of sums as in reductions.py: active, fired, total, square, absolute.
struct Sums {
    double *rows;
    void *highest, *lowest; // double for float64, else float
};

// What was counted of some samples, put into what was counted of others.
template <class Scalar> INLINE void merge(const Sums &out, const Sums &part, int64_t units, bool is_signed) {
    for (int64_t i = 0; i < (4 + is_signed) * units; i++) out.rows[i] += part.rows[i];
    Scalar *tops = (Scalar *)out.highest, *bottoms = (Scalar *)out.lowest;
    const Scalar *highest = (const Scalar *)part.highest, *lowest = (const Scalar *)part.lowest;
    for (int64_t unit = 0; unit < units; unit++) { // false where the first is NaN, which stays
        tops[unit] = highest[unit] <= tops[unit] || tops[unit] != tops[unit] ? tops[unit] : highest[unit];
        bottoms[unit] = lowest[unit] >= bottoms[unit] || bottoms[unit] != bottoms[unit] ? bottoms[unit] : lowest[unit];
    }
}

template <class Scalar> INLINE void clear(const Sums &sums, int64_t units, bool is_signed) {
    std::memset(sums.rows, 0, sizeof(double) * (4 + is_signed) * units);
    for (int64_t unit = 0; unit < units; unit++) {
        ((Scalar *)sums.highest)[unit] = -std::numeric_limits<Scalar>::infinity();
        ((Scalar *)sums.lowest)[unit] = std::numeric_limits<Scalar>::infinity();
    }
}

enum State : uint8_t { UNSEEN = 0, FIRED = 1, NONFINITE = 2 };

// The reductions for one kind of CPU, each over a range of units.
struct Reductions {
    int width; // bytes of a vector
    void (*count)(const Tensor3 &x, bool is_signed, const Sums &out, int64_t first, int64_t last);
    void (*raise)(const Tensor3 &x, const double *fired, float *running, int64_t first, int64_t last);
    bool (*finite)(const void *data, Kind kind, int64_t first, int64_t last);
    void (*watch)(const Tensor3 &x, bool is_signed, uint8_t *states, int64_t first, int64_t last);
};

} // namespace
