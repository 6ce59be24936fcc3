// elementwise.cu: activations and residual connections. Blocks along x share a row, those along y the rows.
//   activate  out = f(x) * up, or f(x)
//   add       out = out + x
// A thread takes an element, or in *_packs a pack.
#include "packs.cuh"

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

// Calls f with what is at a thread's columns of each row, N at a time.
template <u32 N, class F>
__device__ __forceinline__ void each_element(const ElementwiseParams& p, F f) {
    u32 j = (blockIdx.x * BLOCK + threadIdx.x) * N;
    for (u64 row = blockIdx.y; j < p.cols && row < p.rows; row += gridDim.y) {
        f(p.out + row * p.out_stride + j, p.x + row * p.x_stride + j, p.up + row * p.up_stride + j);
    }
}

extern "C" __global__ void activate(ElementwiseParams p) {
    wait_for_launch_before();
    each_element<1>(p, [&](Act* out, const Act* x, const Act* up) {
        store(out, activation(p.activation, to_f32(*x)) * (p.up ? to_f32(*up) : 1.0f));
    });
}

extern "C" __global__ void activate_packs(ElementwiseParams p) {
    wait_for_launch_before();
    each_element<PACK>(p, [&](Act* out, const Act* x, const Act* up) {
        Pack<Act> xs = read(x), ups = p.up ? read(up) : Pack<Act>();
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            xs.set(i, activation(p.activation, xs[i]) * (p.up ? ups[i] : 1.0f));
        }
        write(out, xs);
    });
}

extern "C" __global__ void add(ElementwiseParams p) {
    wait_for_launch_before();
    each_element<1>(p, [&](Act* out, const Act* x, const Act*) { store(out, to_f32(*out) + to_f32(*x)); });
}

extern "C" __global__ void add_packs(ElementwiseParams p) {
    wait_for_launch_before();
    each_element<PACK>(p, [&](Act* out, const Act* x, const Act*) {
        Pack<Act> sums = read(out), xs = read(x);
#pragma unroll
        for (u32 i = 0; i < PACK; ++i) {
            sums.set(i, sums[i] + xs[i]);
        }
        write(out, sums);
    });
}
