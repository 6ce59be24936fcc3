// elementwise.cu: activations and residual connections, one thread an element.
//   activate  out = f(x) * up, or f(x)
//   add       out = out + x
#include "kivi.cuh"

struct ElementwiseParams {
    Act* out;       // [rows, cols]
    const Act* x;   // [rows, cols]
    const Act* up;  // [rows, cols], or null
    u64 out_stride;
    u64 x_stride;
    u64 up_stride;
    u64 rows;
    u32 cols;
    u32 activation;
};
KIVI_CHECK_SIZE(ElementwiseParams);

// As in ops/elementwise.rs.
enum Activation : u32 { SILU, GELU, GELU_TANH, RELU };

__device__ float activation(u32 kind, float x) {
    const float SQRT_HALF = 0.70710678118654752f, SQRT_2_OVER_PI = 0.79788456080286536f;
    switch (kind) {
        case SILU:
            return x / (1.0f + expf(-x));
        case GELU:
            return 0.5f * x * (1.0f + erff(x * SQRT_HALF));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(SQRT_2_OVER_PI * (x + 0.044715f * x * x * x)));
        default:
            return x > 0.0f ? x : 0.0f;
    }
}

extern "C" __global__ void activate(ElementwiseParams p) {
    wait_for_launch_before();
    for (u64 i = grid_thread(); i < p.rows * p.cols; i += grid_threads()) {
        u64 row = i / p.cols, j = i % p.cols;
        float y = activation(p.activation, to_f32(p.x[row * p.x_stride + j]));
        float up = p.up ? to_f32(p.up[row * p.up_stride + j]) : 1.0f;
        store(&p.out[row * p.out_stride + j], y * up);
    }
}

extern "C" __global__ void add(ElementwiseParams p) {
    wait_for_launch_before();
    for (u64 i = grid_thread(); i < p.rows * p.cols; i += grid_threads()) {
        u64 row = i / p.cols, j = i % p.cols;
        Act* out = &p.out[row * p.out_stride + j];
        store(out, to_f32(*out) + to_f32(p.x[row * p.x_stride + j]));
    }
}
