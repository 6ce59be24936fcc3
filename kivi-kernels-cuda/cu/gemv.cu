// gemv.cu: products of few rows with weights, as fast as the weights are read.
//   gemv  out[i, j] = sum_c x[i, c] weight[j, c] + bias[j]
// A warp has one output feature, or two where each of x is worth reading once for both; `split` warps share one and add up
// in a fixed order. Weights and x are read 16 bytes at a time: in_features and strides are multiples of 8 elements.
// A warp asks for its first weights before it waits for the launch before, which hides the way to memory behind that one's
// end: weights that no launch writes are there at any time.
#include "packs.cuh"

struct GemvParams {
    Act* out;            // [rows, out_features]
    const Act* x;        // [rows, in_features]
    const void* weight;  // [out_features, in_features]
    const float* bias;   // [out_features], or null
    u64 out_stride;
    u64 x_stride;
    u32 rows;
    u32 in_features;
    u32 out_features;
    u32 split;    // a divisor of WARPS
    u32 settled;  // whether no launch writes the weights
    u32 unused;
};
KIVI_CHECK_SIZE(GemvParams);

constexpr u32 LOADS = 6;  // of 16 bytes of weights, that a lane has on their way

// The sums of one lane.
template <u32 ROWS, u32 FEATURES>
struct Sums {
    float of[FEATURES][ROWS] = {};

    template <class W>
    __device__ __forceinline__ void add(const Pack<W> (&w)[FEATURES], const Act* x, const GemvParams& p) {
#pragma unroll
        for (u32 row = 0; row < ROWS; ++row) {
            Pack<Act> xs = read(x + (row < p.rows ? row : 0) * p.x_stride);
#pragma unroll
            for (u32 i = 0; i < PACK; ++i) {
                float one = xs[i];
#pragma unroll
                for (u32 f = 0; f < FEATURES; ++f) {
                    of[f][row] += one * w[f][i];
                }
            }
        }
    }
};

// What a warp reads of the weights: every step-th pack of its features; a warp without an output reads nothing.
template <class W, u32 FEATURES>
struct Part {
    static constexpr u32 DEPTH = LOADS * sizeof(uint4) / sizeof(Pack<W>) / FEATURES;
    const W* of_feature[FEATURES];
    u32 c, step, end;                // where the lane is, how far on it goes, where features end
    Pack<W> asked[DEPTH][FEATURES];  // from c on

    __device__ __forceinline__ Part(const GemvParams& p, u32 first, u32 part) {
#pragma unroll
        for (u32 f = 0; f < FEATURES; ++f) {
            u32 j = first + f < p.out_features ? first + f : p.out_features - 1;
            of_feature[f] = (const W*)p.weight + (u64)j * p.in_features;
        }
        step = p.split * WARP * PACK;
        c = (part * WARP + threadIdx.x % WARP) * PACK;
        end = first < p.out_features ? p.in_features : 0;
    }

    // Whether there are as many packs as are asked for at a time.
    __device__ __forceinline__ bool deep() const { return c + (DEPTH - 1) * step < end; }

    __device__ __forceinline__ void ask() {
#pragma unroll
        for (u32 d = 0; d < DEPTH; ++d) {
#pragma unroll
            for (u32 f = 0; f < FEATURES; ++f) {
                asked[d][f] = stream(of_feature[f] + c + d * step);
            }
        }
    }

    // Adds up what was asked for; if there is MORE, as many packs again are asked for, each as soon as there is room.
    template <bool MORE, u32 ROWS>
    __device__ __forceinline__ void add_asked(Sums<ROWS, FEATURES>& sums, const GemvParams& p) {
#pragma unroll
        for (u32 d = 0; d < DEPTH; ++d) {
            Pack<W> w[FEATURES];
#pragma unroll
            for (u32 f = 0; f < FEATURES; ++f) {
                w[f] = asked[d][f];
                if (MORE) {
                    asked[d][f] = stream(of_feature[f] + c + (DEPTH + d) * step);
                }
            }
            sums.add(w, p.x + c + d * step, p);
        }
        c += DEPTH * step;
    }

    // Adds up all packs; the first have been asked for.
    template <u32 ROWS>
    __device__ __forceinline__ void add_to(Sums<ROWS, FEATURES>& sums, const GemvParams& p) {
        if (deep()) {
            while (c + (2 * DEPTH - 1) * step < end) {
                add_asked<true>(sums, p);
            }
            add_asked<false>(sums, p);
        }
        add_rest(sums, p);
    }

    // Adds up the last packs, fewer than are asked for at a time.
    template <u32 ROWS>
    __device__ __forceinline__ void add_rest(Sums<ROWS, FEATURES>& sums, const GemvParams& p) {
#pragma unroll
        for (u32 d = 0; d + 1 < DEPTH; ++d) {
#pragma unroll
            for (u32 f = 0; f < FEATURES; ++f) {
                if (c + d * step < end) {
                    asked[d][f] = stream(of_feature[f] + c + d * step);
                }
            }
        }
#pragma unroll
        for (u32 d = 0; d + 1 < DEPTH; ++d) {
            if (c + d * step < end) {
                sums.add(asked[d], p.x + c + d * step, p);
            }
        }
    }
};

template <class W, u32 ROWS>
__device__ void gemv(const GemvParams& p) {
    constexpr u32 FEATURES = ROWS < 4 ? 1 : 2;
    __shared__ float of_warp[WARPS][FEATURES][ROWS];
    u32 warp = threadIdx.x / WARP;
    u32 first = (blockIdx.x * (WARPS / p.split) + warp / p.split) * FEATURES;
    Part<W, FEATURES> part(p, first, warp % p.split);
    if (p.settled && part.deep()) {
        part.ask();
    }
    wait_for_launch_before();
    if (!p.settled && part.deep()) {
        part.ask();
    }
    Sums<ROWS, FEATURES> sums;
    part.add_to(sums, p);
    for (u32 f = 0; f < FEATURES; ++f) {
        for (u32 row = 0; row < ROWS; ++row) {
            float sum = warp_sum(sums.of[f][row]);
            if (threadIdx.x % WARP == 0) {
                of_warp[warp][f][row] = sum;
            }
        }
    }
    __syncthreads();
    u32 row = threadIdx.x % ROWS, f = threadIdx.x / ROWS % FEATURES, group = threadIdx.x / (ROWS * FEATURES);
    u32 j = (blockIdx.x * (WARPS / p.split) + group) * FEATURES + f;
    if (group < WARPS / p.split && row < p.rows && j < p.out_features) {
        float sum = p.bias ? p.bias[j] : 0.0f;
        for (u32 part = 0; part < p.split; ++part) {
            sum += of_warp[group * p.split + part][f][row];
        }
        store(&p.out[row * p.out_stride + j], sum);
    }
}

extern "C" __global__ void gemv_f32_1(GemvParams p) { gemv<float, 1>(p); }
extern "C" __global__ void gemv_f32_2(GemvParams p) { gemv<float, 2>(p); }
extern "C" __global__ void gemv_f32_4(GemvParams p) { gemv<float, 4>(p); }
extern "C" __global__ void gemv_f32_8(GemvParams p) { gemv<float, 8>(p); }

extern "C" __global__ void gemv_f16_1(GemvParams p) { gemv<__half, 1>(p); }
extern "C" __global__ void gemv_f16_2(GemvParams p) { gemv<__half, 2>(p); }
extern "C" __global__ void gemv_f16_4(GemvParams p) { gemv<__half, 4>(p); }
extern "C" __global__ void gemv_f16_8(GemvParams p) { gemv<__half, 8>(p); }

extern "C" __global__ void gemv_bf16_1(GemvParams p) { gemv<__nv_bfloat16, 1>(p); }
extern "C" __global__ void gemv_bf16_2(GemvParams p) { gemv<__nv_bfloat16, 2>(p); }
extern "C" __global__ void gemv_bf16_4(GemvParams p) { gemv<__nv_bfloat16, 4>(p); }
extern "C" __global__ void gemv_bf16_8(GemvParams p) { gemv<__nv_bfloat16, 8>(p); }
