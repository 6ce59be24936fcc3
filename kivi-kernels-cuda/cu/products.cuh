// products.cuh: the products of decode.cu with a packed tile in shared memory.
#pragma once
#include "softmax.cuh"

// Whether a scale among these words, those of a lane, is 512 or more: its exponent's two upper bits are set. Zeros may
// say so too.
__device__ __forceinline__ bool any_wide(const char* params, u32 bytes) {
    u32 both = 0;
    for (u32 i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16) {
        uint4 w = *(const uint4*)(params + i);
        both |= (w.x & w.x << 1) | (w.y & w.y << 1) | (w.z & w.z << 1) | (w.w & w.w << 1);
    }
    return __any_sync(ALL_LANES, (both & 0x40004000) != 0);
}

// Logits of a tile over codes, relative to the reference, as those below.
__device__ __forceinline__ void code_logits(const char* stage, const Queries& q, const State& s,
                                            float (&y)[M_TILES][4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const uint4* params = (const uint4*)(stage + K_PARAMS_AT);
    float zero[4] = {}, norm[2] = {q.norm[0] * (SUBNORMAL / K_FOLD), q.norm[1] * (SUBNORMAL / K_FOLD)};
    u32 folded[STEPS][2];
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        uint4 w = params[KeyWords::pair_of(i, t) / 2];  // scales, zeros, scales, zeros
        folded[i][0] = multiply_f16(q.codes[i][0], w.x);
        folded[i][1] = multiply_f16(q.codes[i][1], w.z);
        // Rows g: scales, of no use; rows g + 8: zeros.
        mma(zero, {w.x, w.y, w.z, w.w}, q.zeros[i][0], q.zeros[i][1], __half());
    }
    if (any_wide(stage + K_PARAMS_AT, K_PARAM_BYTES)) {
        for (u32 i = 0; i < STEPS; ++i) {
            uint4 w = params[KeyWords::pair_of(i, t) / 2];
            u32 fold = pack(WIDE_FOLD, WIDE_FOLD, __half());
            folded[i][0] = multiply_f16(q.codes[i][0], multiply_f16(w.x, fold));
            folded[i][1] = multiply_f16(q.codes[i][1], multiply_f16(w.z, fold));
        }
        norm[0] *= 1 / WIDE_FOLD;
        norm[1] *= 1 / WIDE_FOLD;
    }
    float base[2] = {zero[2] * q.norm[0] - s.reference[0], zero[3] * q.norm[1] - s.reference[1]};
    const u32* codes = (const u32*)stage;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        KeyWords low, high;
        low.load(codes + (16 * m + g) * K_WORDS, t);
        high.load(codes + (16 * m + g + 8) * K_WORDS, t);
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            mma(c, {low.pair(i, 0), high.pair(i, 0), low.pair(i, 1), high.pair(i, 1)}, folded[i][0], folded[i][1],
                __half());
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = c[e] * norm[e % 2] + base[e % 2];
        }
    }
}

// Logits of a tile over rows in shared memory.
__device__ __forceinline__ void row_logits(const char* stage, const Queries& q, const State& s,
                                           float (&y)[M_TILES][4]) {
    u32 lane = threadIdx.x % WARP;
    const Act* row = (const Act*)stage + (lane % 16) * ROW_STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 k[4];
            load_matrices(k, row + 16 * m * ROW_STRIDE + 16 * i);
            mma(c, k, q.rows[i][0], q.rows[i][1], Act());
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = c[e] * q.scale[e % 2] - s.reference[e % 2];
        }
    }
}

// Adds the values of a tile of codes, weighted.
__device__ __forceinline__ void mix_codes(const char* stage, State& s, const u32 (&p)[M_TILES][2]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const u32* codes = (const u32*)(stage + V_AT);
    const u32* params = (const u32*)(stage + V_PARAMS_AT);
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        u32 low = 8 * m + t, high = low + 4;  // pairs of tokens
        const u32 *low_params = params + low * 2 * VALUE_GROUPS, *high_params = params + high * 2 * VALUE_GROUPS;
        ValueWords low_words, high_words;
        low_words.load(codes + low * 2 * V_WORDS, g);
        high_words.load(codes + high * 2 * V_WORDS, g);
        u32 low_zero = g < VALUE_GROUPS ? low_params[VALUE_GROUPS + g] : 0;
        u32 high_zero = g < VALUE_GROUPS ? high_params[VALUE_GROUPS + g] : 0;
        mma(s.zero, {low_zero, 0, high_zero, 0}, p[m][0], p[m][1], __half());
        u32 low_p = 0, high_p = 0;
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            if (16 * i % GROUP_SIZE == 0) {
                low_p = multiply_f16(p[m][0], low_params[16 * i / GROUP_SIZE]);
                high_p = multiply_f16(p[m][1], high_params[16 * i / GROUP_SIZE]);
            }
            mma(s.sum[i], {low_words.pair(i, 0), low_words.pair(i, 1), high_words.pair(i, 0), high_words.pair(i, 1)},
                low_p, high_p, __half());
        }
    }
}

// Adds the values of a tile of rows in shared memory, weighted.
__device__ __forceinline__ void mix_rows(const char* stage, State& s, const u32 (&p)[M_TILES][2]) {
    u32 lane = threadIdx.x % WARP;
    const Act* row = (const Act*)(stage + V_AT) + (lane % 8 + lane / 16 * 8) * ROW_STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 v[4];
            load_transposed(v, row + 16 * m * ROW_STRIDE + 16 * i);
            mma(s.sum[i], v, p[m][0], p[m][1], Act());
        }
    }
}

// The channel of row h of tile i.
__device__ __forceinline__ u32 channel_of(u32 i, u32 h, u32 g) {
    return V_CODES ? 16 * i + 2 * g + h : 16 * i + 8 * h + g;
}

// Makes sums of codes in their places sums of values.
__device__ __forceinline__ void settle(State& s) {
    if (s.settled) {
        return;
    }
    s.settled = true;
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        float zero[2];
        for (u32 h = 0; h < 2; ++h) {
            zero[h] = __shfl_sync(ALL_LANES, s.zero[h], 16 * i / GROUP_SIZE * 4 + threadIdx.x % 4);
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] = s.sum[i][e] * (SUBNORMAL / ValueWords::factor(i, e / 2)) + zero[e % 2];
        }
    }
}
