// The reductions for one kind of CPU, in namespace CPU with vectors of WIDTH bytes. kernels.cpp
// includes this once for each kind: of vectors wider than the CPU has them, GCC compares and selects
// lane by lane, at many times the cost in time, in code, and in compiling it.

#include "vectors.hpp"

#include "count.hpp"
#include "extremes.hpp"
#include "watch.hpp"

namespace {
namespace CPU {

constexpr Reductions reductions{WIDTH, count, raise, finite, watch};

} // namespace CPU
} // namespace

#undef CPU
#undef WIDTH
