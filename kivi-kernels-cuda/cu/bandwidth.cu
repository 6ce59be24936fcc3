// bandwidth.cu: reading memory and nothing else: how fast that is, is what kernels that read a cache are measured by.
//   sum_words   the sum of all words, modulo 2^32, in one part a block     grid (blocks)
#include "kivi.cuh"

struct SumParams {
    const u32* words;  // [count], 16-byte aligned
    u32* sums;         // [blocks]
    u64 count;
};
KIVI_CHECK_SIZE(SumParams);

// Loads of 16 bytes that a thread has in flight: 128 KiB of an SM with 2,048 threads. 4.5 TB/s times a latency of some
// 700 ns is 24 KiB an SM.
constexpr u32 LOADS = 4;

__device__ u32 sum_of(uint4 x) { return x.x + x.y + x.z + x.w; }

extern "C" __global__ void sum_words(SumParams p) {
    wait_for_launch_before();
    __shared__ u32 of_block;
    if (threadIdx.x == 0) {
        of_block = 0;
    }
    __syncthreads();
    const uint4* quads = (const uint4*)p.words;
    u64 n = p.count / 4, i = grid_thread(), step = grid_threads();
    u32 sum = 0;
    for (; i + (LOADS - 1) * step < n; i += LOADS * step) {
        uint4 x[LOADS];
#pragma unroll
        for (u32 j = 0; j < LOADS; ++j) {
            x[j] = quads[i + j * step];
        }
#pragma unroll
        for (u32 j = 0; j < LOADS; ++j) {
            sum += sum_of(x[j]);
        }
    }
    for (; i < n; i += step) {
        sum += sum_of(quads[i]);
    }
    if (grid_thread() < p.count % 4) {
        sum += p.words[p.count - 1 - grid_thread()];
    }
    atomicAdd(&of_block, sum);
    __syncthreads();
    if (threadIdx.x == 0) {
        p.sums[blockIdx.x] = of_block;
    }
}
