// CUDA C++ for a compiler for the CPU: as much of it as the kernels use. Stands in for cuda_fp16.h and cuda_bf16.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Dim {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

// The driver (driver.cpp).
extern "C" {
extern Dim threadIdx, blockIdx, gridDim;
extern char* emulator_shared;
void emulator_block_barrier();
void emulator_team_barrier(int threads);
void emulator_warp(void (*work)(void**), void* given);
int emulator_lane();
void emulator_pause();
void emulator_fail(const char* what);
void emulator_at_block_start(void (*f)());
}

inline void __syncthreads() { emulator_block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { emulator_warp(nullptr, nullptr); }
inline void __threadfence() {}
inline int __syncthreads_or(int x) {
    static int any;
    emulator_block_barrier();
    any = 0;
    emulator_block_barrier();
    any |= x;
    emulator_block_barrier();
    int result = any;
    emulator_block_barrier();
    return result;
}

// What a lane gives to an operation of its warp, and gets.
struct EmulatorLane {
    uint64_t given, got;
    int source;
};

template <class T>
T emulator_shuffle(T x, int source) {
    EmulatorLane lane = {0, 0, source % 32};
    memcpy(&lane.given, &x, sizeof x);
    auto work = [](void** lanes) {
        for (int i = 0; i < 32; ++i) {
            EmulatorLane* to = (EmulatorLane*)lanes[i];
            to->got = ((EmulatorLane*)lanes[to->source])->given;
        }
    };
    emulator_warp(work, &lane);
    memcpy(&x, &lane.got, sizeof x);
    return x;
}

template <class T>
T __shfl_sync(unsigned, T x, unsigned lane) {
    return emulator_shuffle(x, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, unsigned mask) {
    return emulator_shuffle(x, emulator_lane() ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T x, unsigned step) {
    int lane = emulator_lane() - (int)step;
    return emulator_shuffle(x, lane < 0 ? emulator_lane() : lane);
}
template <class T>
T __shfl_down_sync(unsigned, T x, unsigned step) {
    int lane = emulator_lane() + (int)step;
    return emulator_shuffle(x, lane > 31 ? emulator_lane() : lane);
}

inline unsigned __ballot_sync(unsigned, int x) {
    EmulatorLane lane = {(uint64_t)(x != 0), 0, 0};
    auto work = [](void** lanes) {
        uint64_t bits = 0;
        for (int i = 0; i < 32; ++i) {
            bits |= ((EmulatorLane*)lanes[i])->given << i;
        }
        for (int i = 0; i < 32; ++i) {
            ((EmulatorLane*)lanes[i])->got = bits;
        }
    };
    emulator_warp(work, &lane);
    return (unsigned)lane.got;
}
inline int __any_sync(unsigned lanes, int x) { return __ballot_sync(lanes, x) != 0; }

template <class T>
T atomicAdd(T* at, T x) {
    T before = *at;
    *at += x;
    return before;
}

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half2 {
    __half x, y;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

template <class To, class From>
To emulator_cast(From x) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline unsigned __float_as_uint(float x) { return emulator_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator_cast<float>(x); }
inline float __int_as_float(int x) { return emulator_cast<float>(x); }
inline __half __ushort_as_half(uint16_t x) { return {x}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
inline __half __float2half_rn(float x) { return {(uint16_t)_cvtss_sh(x, 0)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned bits = __float_as_uint(x);
    return {(uint16_t)(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// As inaccurate as it may be: 2 ulp.
inline float __fdividef(float a, float b) {
    float quotient = a / b;
    unsigned bits = __float_as_uint(quotient);
    return bits && quotient < 1e30f ? __uint_as_float(bits + bits % 5 - 2) : quotient;
}

// The smaller or the larger of two: a number if one is, and -0 below 0.
inline float emulator_lesser(float a, float b) {
    return a == 0.0f && b == 0.0f ? (std::signbit(a) ? a : b) : fminf(a, b);
}
inline float emulator_greater(float a, float b) { return -emulator_lesser(-a, -b); }
inline __half emulator_half(float x) { return x == x ? __float2half_rn(x) : __half{0x7fff}; }
inline __half2 __hmin2(__half2 a, __half2 b) {
    return {emulator_half(emulator_lesser(__half2float(a.x), __half2float(b.x))),
            emulator_half(emulator_lesser(__half2float(a.y), __half2float(b.y)))};
}
inline __half2 __hmax2(__half2 a, __half2 b) {
    return {emulator_half(emulator_greater(__half2float(a.x), __half2float(b.x))),
            emulator_half(emulator_greater(__half2float(a.y), __half2float(b.y)))};
}
inline __nv_bfloat162 __hmin2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__float2bfloat16_rn(emulator_lesser(__bfloat162float(a.x), __bfloat162float(b.x))),
            __float2bfloat16_rn(emulator_lesser(__bfloat162float(a.y), __bfloat162float(b.y)))};
}
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__float2bfloat16_rn(emulator_greater(__bfloat162float(a.x), __bfloat162float(b.x))),
            __float2bfloat16_rn(emulator_greater(__bfloat162float(a.y), __bfloat162float(b.y)))};
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) << shift % 32 >> 32);
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (unsigned __int128)a * b >> 64; }

template <class T>
T __ldcg(const T* at) {
    return *at;
}
template <class T>
T __ldcs(const T* at) {
    return *at;
}
template <class T>
void __stcg(T* at, T x) {
    *at = x;
}
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
using std::isfinite;
using std::isnan;
