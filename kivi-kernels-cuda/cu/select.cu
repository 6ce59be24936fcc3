// select.cu: choosing rows and tokens, one block a row.
//   gather  out[i] = x[rows[i]]
//   argmax  the place of the largest element, the first of equals; u32 max unless all are finite
//   top_k   the k largest, descending, the first of equals first, NaN last
#include "kivi.cuh"

struct GatherParams {
    Act* out;         // [m, cols]
    const Act* x;     // [n, cols]
    const u32* rows;  // [m]
    u64 out_stride;
    u64 x_stride;
    u64 cols;
};
KIVI_CHECK_SIZE(GatherParams);

struct SelectParams {
    Act* values;        // [rows, k]; unused by argmax
    u32* indices;       // [rows, k]; argmax: [rows]
    const Act* logits;  // [rows, cols]
    u64 values_stride;
    u64 logits_stride;
    u32 cols;
    u32 k;
};
KIVI_CHECK_SIZE(SelectParams);

extern "C" __global__ void gather(GatherParams p) {
    wait_for_launch_before();
    const Act* x = p.x + p.rows[blockIdx.x] * p.x_stride;
    Act* out = p.out + blockIdx.x * p.out_stride;
    for (u64 j = threadIdx.x; j < p.cols; j += BLOCK) {
        out[j] = x[j];
    }
}

// A number that grows with x, then with a lower place; a NaN is below every number.
__device__ u64 order(float x, u32 place) {
    u32 bits = x == 0.0f ? 0 : __float_as_uint(x);  // -0 and 0 are equal
    u32 rank = bits >> 31 ? ~bits : bits | 1u << 31;
    return (u64)(isnan(x) ? 0 : rank) << 32 | (u32)~place;
}

__device__ u32 place_of(u64 order) { return ~(u32)order; }

// The largest order in the row that is below limit.
__device__ u64 largest_below(const Act* x, u32 cols, u64 limit) {
    u64 best = 0;
    for (u32 j = threadIdx.x; j < cols; j += BLOCK) {
        u64 here = order(to_f32(x[j]), j);
        best = here < limit && here > best ? here : best;
    }
    return block_max(best);
}

extern "C" __global__ void argmax(SelectParams p) {
    wait_for_launch_before();
    const Act* x = p.logits + blockIdx.x * p.logits_stride;
    bool damaged = false;
    u64 best = 0;
#pragma unroll 8
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        float here = to_f32(x[j]);
        damaged |= !isfinite(here);
        best = max(best, order(here, j));
    }
    best = block_max(best);
    if (__syncthreads_or(damaged)) {
        best = 0;
    }
    if (threadIdx.x == 0) {
        p.indices[blockIdx.x] = place_of(best);
    }
}

extern "C" __global__ void top_k(SelectParams p) {
    wait_for_launch_before();
    const Act* x = p.logits + blockIdx.x * p.logits_stride;
    u64 best = ~0ull;
    for (u32 j = 0; j < p.k; ++j) {
        best = largest_below(x, p.cols, best);
        if (threadIdx.x == 0) {
            p.values[blockIdx.x * p.values_stride + j] = x[place_of(best)];
            p.indices[blockIdx.x * (u64)p.k + j] = place_of(best);
        }
    }
}
