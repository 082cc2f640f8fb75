// Keyed draws, as psi_engine/ops/random.py makes them: a state is 0, then extended key by key.
// The mixer is that of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#pragma once

namespace {

__device__ unsigned long long extend(unsigned long long state, unsigned long long key) {
    unsigned long long x = (state ^ key) + 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// Of [0, 1).
__device__ double unit(unsigned long long state) {
    return static_cast<double>(state >> 11) * 1.1102230246251565e-16;  // 2^-53
}

}  // namespace
