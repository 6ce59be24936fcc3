// rope.cu: rotary position embedding in place. Blocks along x share a row, those along y the rows.
//   a = position * inv_freq[j]    x'[j] = x[j] c - x[j + d] s    x'[j + d] = x[j + d] c + x[j] s    j < d
// A thread takes N neighbouring j of HEADS heads, so that each sine serves them all.
#include "kivi.cuh"

struct RopeParams {
    Act* x;                   // [rows, heads * head_dim]
    const u32* positions;     // [rows]
    const float* inv_freq;    // [tables, d]
    const u32* table_of_row;  // [rows], or null: table 0
    u64 stride;
    u64 rows;
    u32 heads;
    u32 head_dim;
    u32 d;  // half of the channels that turn
    float scaling;
};
KIVI_CHECK_SIZE(RopeParams);

constexpr u32 HEADS = 4;  // as in ops/rope.rs

template <u32 N>
struct alignas(N * sizeof(Act)) Some {
    Act of[N];
};

template <u32 N>
__device__ __forceinline__ void rope_rows(const RopeParams& p) {
    u32 each = p.d / N, item = blockIdx.x * BLOCK + threadIdx.x, head = item / each * HEADS, j = item % each * N;
    for (u64 row = blockIdx.y; head < p.heads && row < p.rows; row += gridDim.y) {
        u64 table = p.table_of_row ? p.table_of_row[row] : 0;
        float position = (float)p.positions[row], sine[N], cosine[N];
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            sincosf(position * p.inv_freq[table * p.d + j + i], &sine[i], &cosine[i]);
            sine[i] *= p.scaling;
            cosine[i] *= p.scaling;
        }
        Act* x = p.x + row * p.stride + (u64)head * p.head_dim + j;
        Some<N> low[HEADS], high[HEADS];  // all asked for before one is used
#pragma unroll
        for (u32 h = 0; h < HEADS; ++h) {
            const Act* from = x + (head + h < p.heads ? h : 0) * p.head_dim;
            low[h] = *(const Some<N>*)from;
            high[h] = *(const Some<N>*)(from + p.d);
        }
#pragma unroll
        for (u32 h = 0; h < HEADS; ++h) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                float a = to_f32(low[h].of[i]), b = to_f32(high[h].of[i]);
                store(&low[h].of[i], a * cosine[i] - b * sine[i]);
                store(&high[h].of[i], b * cosine[i] + a * sine[i]);
            }
            if (head + h < p.heads) {
                *(Some<N>*)(x + h * p.head_dim) = low[h];
                *(Some<N>*)(x + h * p.head_dim + p.d) = high[h];
            }
        }
    }
}

extern "C" __global__ void rope(RopeParams p) {
    wait_for_launch_before();
    rope_rows<1>(p);
}

extern "C" __global__ void rope_pairs(RopeParams p) {
    wait_for_launch_before();
    rope_rows<2>(p);
}
