// norm.cu: normalisation of rows.
//   rms_norm      out = x / sqrt(mean(x^2) + eps) * weight, for each of the groups of a row; one block a group
//   add_rms_norm  hidden = hidden + x, out = rms_norm(hidden); one block a row
//   layer_norm    out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; one block a row
// *_packs are the same for rows that a block takes at once, 16 bytes a time: a step of one sequence waits for each of them.
#include "packs.cuh"

struct NormParams {
    Act* out;             // [rows, groups * cols]
    Act* hidden;          // [rows, cols]: add_rms_norm only
    const Act* x;         // [rows, groups * cols]
    const float* weight;  // [cols]
    const float* bias;    // [cols], or null
    u64 out_stride;
    u64 hidden_stride;
    u64 x_stride;
    u32 cols;    // of a group
    u32 groups;  // of a row
    float eps;
    u32 settled;  // whether no launch writes weight and bias
};
KIVI_CHECK_SIZE(NormParams);

constexpr u32 PACKS = 4;  // that a thread takes of a row, as in ops/norm.rs

// Calls f with the number and the first column of each pack of the thread.
template <class F>
__device__ __forceinline__ void each_pack(u32 cols, F f) {
#pragma unroll
    for (u32 k = 0; k < PACKS; ++k) {
        u32 j = (threadIdx.x + k * BLOCK) * PACK;
        if (j < cols) {
            f(k, j);
        }
    }
}

// All is asked for before anything is waited for, weights ahead of the launch before.
template <bool ADD>
__device__ __forceinline__ void norm_packs(const NormParams& p) {
    Pack<float> weight[PACKS];
    Pack<Act> x[PACKS], hidden[PACKS];
    auto ask = [&](u32 k, u32 j) { weight[k] = read(p.weight + j); };
    if (p.settled) {
        each_pack(p.cols, ask);
    }
    wait_for_launch_before();
    u32 row = blockIdx.x / p.groups, start = blockIdx.x % p.groups * p.cols;
    const Act* of_x = p.x + row * p.x_stride + start;
    Act* of_hidden = p.hidden + row * p.hidden_stride;
    Act* out = p.out + row * p.out_stride + start;
    each_pack(p.cols, [&](u32 k, u32 j) {
        x[k] = read(of_x + j);
        if (ADD) {
            hidden[k] = read(of_hidden + j);
        }
    });
    if (!p.settled) {
        each_pack(p.cols, ask);
    }
    float squares = 0.0f;
    each_pack(p.cols, [&](u32 k, u32 j) {
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            if (ADD) {
                x[k].set(i, hidden[k][i] + x[k][i]);
            }
            squares += x[k][i] * x[k][i];
        }
        if (ADD) {
            write(of_hidden + j, x[k]);
        }
    });
    float root = sqrtf(block_sum(squares) / p.cols + p.eps);
    each_pack(p.cols, [&](u32 k, u32 j) {
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            x[k].set(i, x[k][i] / root * weight[k][i]);
        }
        write(out + j, x[k]);
    });
}

extern "C" __global__ void rms_norm_packs(NormParams p) { norm_packs<false>(p); }
extern "C" __global__ void add_rms_norm_packs(NormParams p) { norm_packs<true>(p); }

extern "C" __global__ void layer_norm_packs(NormParams p) {
    Pack<float> weight[PACKS], bias[PACKS] = {};
    Pack<Act> x[PACKS];
    auto ask = [&](u32 k, u32 j) {
        weight[k] = read(p.weight + j);
        if (p.bias) {
            bias[k] = read(p.bias + j);
        }
    };
    if (p.settled) {
        each_pack(p.cols, ask);
    }
    wait_for_launch_before();
    const Act* of_x = p.x + blockIdx.x * p.x_stride;
    Act* out = p.out + blockIdx.x * p.out_stride;
    each_pack(p.cols, [&](u32 k, u32 j) { x[k] = read(of_x + j); });
    if (!p.settled) {
        each_pack(p.cols, ask);
    }
    float sum = 0.0f, squares = 0.0f;
    each_pack(p.cols, [&](u32 k, u32) {
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            sum += x[k][i];
        }
    });
    float mean = block_sum(sum) / p.cols;
    each_pack(p.cols, [&](u32 k, u32) {
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            squares += (x[k][i] - mean) * (x[k][i] - mean);
        }
    });
    float root = sqrtf(block_sum(squares) / p.cols + p.eps);
    each_pack(p.cols, [&](u32 k, u32 j) {
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            x[k].set(i, (x[k][i] - mean) / root * weight[k][i] + bias[k][i]);
        }
        write(out + j, x[k]);
    });
}

extern "C" __global__ void rms_norm(NormParams p) {
    wait_for_launch_before();
    u32 row = blockIdx.x / p.groups;
    u32 start = blockIdx.x % p.groups * p.cols;
    const Act* x = p.x + row * p.x_stride + start;
    Act* out = p.out + row * p.out_stride + start;
    float squares = 0.0f;
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        squares += to_f32(x[j]) * to_f32(x[j]);
    }
    float root = sqrtf(block_sum(squares) / p.cols + p.eps);
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        store(&out[j], to_f32(x[j]) / root * p.weight[j]);
    }
}

// As add and rms_norm one after the other, to the bit: threads read back what they rounded.
extern "C" __global__ void add_rms_norm(NormParams p) {
    wait_for_launch_before();
    Act* hidden = p.hidden + blockIdx.x * p.hidden_stride;
    const Act* x = p.x + blockIdx.x * p.x_stride;
    Act* out = p.out + blockIdx.x * p.out_stride;
    float squares = 0.0f;
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        store(&hidden[j], to_f32(hidden[j]) + to_f32(x[j]));
        squares += to_f32(hidden[j]) * to_f32(hidden[j]);
    }
    float root = sqrtf(block_sum(squares) / p.cols + p.eps);
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        store(&out[j], to_f32(hidden[j]) / root * p.weight[j]);
    }
}

extern "C" __global__ void layer_norm(NormParams p) {
    wait_for_launch_before();
    const Act* x = p.x + blockIdx.x * p.x_stride;
    Act* out = p.out + blockIdx.x * p.out_stride;
    float sum = 0.0f;
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        sum += to_f32(x[j]);
    }
    float mean = block_sum(sum) / p.cols;
    float squares = 0.0f;
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        float d = to_f32(x[j]) - mean;
        squares += d * d;
    }
    float root = sqrtf(block_sum(squares) / p.cols + p.eps);
    for (u32 j = threadIdx.x; j < p.cols; j += BLOCK) {
        float bias = p.bias ? p.bias[j] : 0.0f;
        store(&out[j], (to_f32(x[j]) - mean) / root * p.weight[j] + bias);
    }
}
