// norm.cu: normalisation of rows.
//   rms_norm    out = x / sqrt(mean(x^2) + eps) * weight, for each of the groups of a row; one block a group
//   add_rms_norm  hidden = hidden + x, out = rms_norm(hidden); one block a row
//   layer_norm  out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; one block a row
#include "kivi.cuh"

struct NormParams {
    Act* out;             // [rows, groups * cols]
    const Act* x;         // [rows, groups * cols]
    const float* weight;  // [cols]
    const float* bias;    // [cols], or null
    u64 out_stride;
    u64 x_stride;
    u32 cols;    // of a group
    u32 groups;  // of a row
    float eps;
    u32 unused;
};
KIVI_CHECK_SIZE(NormParams);

struct AddNormParams {
    Act* out;             // [rows, cols]
    Act* hidden;          // [rows, cols]
    const Act* x;         // [rows, cols]
    const float* weight;  // [cols]
    u64 out_stride;
    u64 hidden_stride;
    u64 x_stride;
    u32 cols;
    float eps;
};
KIVI_CHECK_SIZE(AddNormParams);

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
extern "C" __global__ void add_rms_norm(AddNormParams p) {
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
