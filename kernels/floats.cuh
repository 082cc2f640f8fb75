// Activations of the three floating formats, and how their values are asked and ordered.
#pragma once

#ifndef FORMAT
#define FORMAT 0  // of x: 0 float32, 1 float16, 2 bfloat16
#endif

namespace {

#if FORMAT == 0
typedef float X_T;
#else
typedef unsigned short X_T;
inline __device__ float widen(unsigned short x) {
#if FORMAT == 2
    return __uint_as_float(static_cast<unsigned>(x) << 16);
#elif defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
    return value;
#else
    const unsigned size = (x & 0x7fffu) << 13;
    const float value = (x & 0x7c00u) == 0x7c00u ? __uint_as_float(size | 0x7f800000u)
                                                 : __uint_as_float(size) * 5.192296858534828e33f;
    return (x & 0x8000u) ? -value : value;  // the factor is 2^112: subnormal halves come out right
#endif
}
#endif
inline __device__ float widen(float x) { return x; }

inline __device__ float infinity() { return __uint_as_float(0x7f800000u); }

inline __device__ bool finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

}  // namespace
