// kivi.cuh: what all kernels share: types, conversions, reductions.
//
// Every kernel takes one struct of pointers and scalars by value. Rust has the same struct and passes its size as
// SIZEOF_<name>, so that a difference does not compile. Activations are KIVI_ACT (f16 or bf16); sums are f32. Compiled
// without fast-math: division, square root, exp and friends are the accurate ones; only what says fast is not.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if KIVI_ACT_BF16
typedef __nv_bfloat16 Act;
#else
typedef __half Act;
#endif

#define KIVI_CHECK_SIZE(type) static_assert(sizeof(type) == SIZEOF_##type, "differs from the struct in Rust")

#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __int_as_float(0x7f800000)
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 BLOCK = KIVI_BLOCK;  // threads of a block of every kernel
constexpr u32 WARPS = BLOCK / WARP;

// Lets the launch behind this one start, then waits until the one before is done and what it wrote can be read. Every thread of
// every kernel begins with it: before it writes, reads what a launch writes that may still run (settled.rs), and may return.
//
// Launches overlap (programmatic dependent launch, see launch.rs): a grid starts when each block of the one before has come
// to here, so that it is loaded and under way when its turn comes, be the one before it still waiting. That is safe because each
// block waits: a grid is done only after the one before it, hence after all before, and who has waited for one has waited for
// all. A block that returned without waiting would break that. Blocks that wait keep no room from those that they wait for: these
// have all started before.
// It is nothing where launches do not overlap: below sm_90, and behind whatever is no kernel.
__device__ __forceinline__ void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(__half x) { return __half2float(x); }
__device__ inline float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }

// x rounded to the type of *out, to nearest, ties to even.
__device__ inline void store(float* out, float x) { *out = x; }
__device__ inline void store(__half* out, float x) { *out = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16* out, float x) { *out = __float2bfloat16_rn(x); }

// The sum over the lanes of a warp, in every lane.
__device__ inline float warp_sum(float x) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, step);
    }
    return x;
}

__device__ inline float warp_max(float x) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

__device__ inline float warp_min(float x) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        x = fminf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

__device__ inline u64 warp_max(u64 x) {
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// The sum over the threads of a block, in every thread.
__device__ inline float block_sum(float x) {
    __shared__ float of_warp[WARPS];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) {
        of_warp[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    x = 0.0f;
    for (u32 warp = 0; warp < WARPS; ++warp) {
        x += of_warp[warp];
    }
    __syncthreads();  // the next call may write of_warp
    return x;
}

// The largest x of the threads of a block, in every thread.
__device__ inline u64 block_max(u64 x) {
    __shared__ u64 of_warp[WARPS];
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) {
        of_warp[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    x = of_warp[0];
    for (u32 warp = 1; warp < WARPS; ++warp) {
        x = of_warp[warp] > x ? of_warp[warp] : x;
    }
    __syncthreads();
    return x;
}

// The first element of a thread in a loop over all elements of a grid, and the step to its next.
__device__ inline u64 grid_thread() { return (u64)blockIdx.x * BLOCK + threadIdx.x; }
__device__ inline u64 grid_threads() { return (u64)gridDim.x * BLOCK; }
