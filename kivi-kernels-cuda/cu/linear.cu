// linear.cu: embedding rows and products with weights, for weights in f32, f16 and bf16.
//   embed   out[i] = table[tokens[i]]                          one block a row
//   linear  out[i, j] = sum_c x[i, c] weight[j, c] + bias[j]   one block a tile of TILE x TILE outputs; for what gemv.cu and
//           cuBLASLt do not take
#include "kivi.cuh"

struct EmbedParams {
    Act* out;           // [rows, cols]
    const void* table;  // [vocab_size, cols]
    const u32* tokens;  // [rows]
    u64 out_stride;
    u64 cols;
};
KIVI_CHECK_SIZE(EmbedParams);

struct LinearParams {
    Act* out;            // [rows, out_features]
    const Act* x;        // [rows, in_features]
    const void* weight;  // [out_features, in_features]
    const float* bias;   // [out_features], or null
    u64 out_stride;
    u64 x_stride;
    u64 rows;
    u64 in_features;
    u64 out_features;
};
KIVI_CHECK_SIZE(LinearParams);

// 16 x 16 threads, one output each: BLOCK threads.
constexpr u32 TILE = 16;
static_assert(TILE * TILE == BLOCK, "one thread an output");

template <class W>
__device__ void embed(const EmbedParams& p) {
    const W* row = (const W*)p.table + p.tokens[blockIdx.x] * p.cols;
    Act* out = p.out + blockIdx.x * p.out_stride;
    for (u64 j = threadIdx.x; j < p.cols; j += BLOCK) {
        store(&out[j], to_f32(row[j]));
    }
}

// The products of TILE rows of x from row on and TILE rows of the weight from out_row on, one a thread.
template <class W>
__device__ float tile(const LinearParams& p, u64 row, u64 out_row) {
    __shared__ float xs[TILE][TILE + 1];  // + 1: the columns of a tile lie in different banks
    __shared__ float ws[TILE][TILE + 1];
    u32 across = threadIdx.x % TILE, down = threadIdx.x / TILE;
    const Act* x = p.x + (row + down) * p.x_stride;
    const W* weight = (const W*)p.weight + (out_row + down) * p.in_features;
    float sum = 0.0f;
    for (u64 start = 0; start < p.in_features; start += TILE) {
        u64 c = start + across;
        bool inside = c < p.in_features;
        xs[down][across] = inside && row + down < p.rows ? to_f32(x[c]) : 0.0f;
        ws[down][across] = inside && out_row + down < p.out_features ? to_f32(weight[c]) : 0.0f;
        __syncthreads();
        for (u32 i = 0; i < TILE; ++i) {
            sum += xs[down][i] * ws[across][i];
        }
        __syncthreads();
    }
    return sum;
}

template <class W>
__device__ void linear(const LinearParams& p) {
    u64 j = blockIdx.x * (u64)TILE + threadIdx.x % TILE;
    for (u64 row = blockIdx.y * (u64)TILE; row < p.rows; row += gridDim.y * (u64)TILE) {
        float sum = tile<W>(p, row, blockIdx.x * (u64)TILE);
        u64 i = row + threadIdx.x / TILE;
        if (i < p.rows && j < p.out_features) {
            store(&p.out[i * p.out_stride + j], sum + (p.bias ? p.bias[j] : 0.0f));
        }
    }
}

extern "C" __global__ void embed_f32(EmbedParams p) {
    wait_for_launch_before();
    embed<float>(p);
}
extern "C" __global__ void embed_f16(EmbedParams p) {
    wait_for_launch_before();
    embed<__half>(p);
}
extern "C" __global__ void embed_bf16(EmbedParams p) {
    wait_for_launch_before();
    embed<__nv_bfloat16>(p);
}

// The bias of products that were made without it.
extern "C" __global__ void add_bias(LinearParams p) {
    wait_for_launch_before();
    Act* out = p.out + blockIdx.x * p.out_stride;
    for (u64 j = threadIdx.x; j < p.out_features; j += BLOCK) {
        store(&out[j], to_f32(out[j]) + p.bias[j]);
    }
}

extern "C" __global__ void linear_f32(LinearParams p) {
    wait_for_launch_before();
    linear<float>(p);
}
extern "C" __global__ void linear_f16(LinearParams p) {
    wait_for_launch_before();
    linear<__half>(p);
}
extern "C" __global__ void linear_bf16(LinearParams p) {
    wait_for_launch_before();
    linear<__nv_bfloat16>(p);
}
