// products.cuh: the products of decode.cu with a packed tile in shared memory.
#pragma once
#include "softmax.cuh"

// Which scales of a tile some of are 512 or more.
struct Wide {
    bool k, v;
};

// The largest numbers among scales and, of values, zeros, of a lane's part of these words; at least 0.
template <u32 PAD, u32 SCALES>
__device__ __forceinline__ u32 largest_params(const char* params, u32 bytes) {
    u32 largest = 0;
    for (u32 i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16) {
        uint4 w = *(const uint4*)(params + padded<PAD>(i));
        largest = max_f16(largest, max_f16(w.x, w.z));
        if (SCALES == 4) {
            largest = max_f16(largest, max_f16(w.y, w.w));
        }
    }
    return largest;
}

__device__ __forceinline__ bool from_512(u32 pair) { return ((pair + 0x20002000) & 0x80008000) != 0; }

__device__ __forceinline__ Wide find_wide(const char* stage) {
    u32 k = K_CODES ? largest_params<K_PARAMS_PAD, 2>(stage + K_PARAMS_AT, HEAD_DIM * 4) : 0;
    u32 v = V_CODES ? largest_params<0, 4>(stage + V_PARAMS_AT, V_PARAM_BYTES) : 0;
    Wide wide = {false, false};
    if (__any_sync(ALL_LANES, from_512(max_f16(k, v)))) {
        wide.k = __any_sync(ALL_LANES, from_512(k));
        wide.v = __any_sync(ALL_LANES, from_512(v));
    }
    return wide;
}

// Logits of a tile over codes, relative to the reference, as those below. WIDE: with scales of 512 and more.
template <bool WIDE>
__device__ __forceinline__ void code_logits(const char* stage, const Queries& q, const State& s,
                                            float (&y)[M_TILES][4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const u32* codes = (const u32*)stage;
    KeyWords low[M_TILES], high[M_TILES];
    float zero[4] = {}, c[M_TILES][4] = {};
    uint4 zeros;
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        // Scales, zeros, scales, zeros.
        uint4 w = *(const uint4*)(stage + K_PARAMS_AT + padded<K_PARAMS_PAD>(KeyWords::pair_of(i, t) * 8));
        if (i % 2 == 0) {
            zeros = q.zeros[i / 2 * WARP];
        }
        // Rows g: scales, of no use; rows g + 8: zeros.
        mma(zero, {w.x, w.y, w.z, w.w}, i % 2 ? zeros.z : zeros.x, i % 2 ? zeros.w : zeros.y, __half());
        if (WIDE) {
            u32 fold = pack(WIDE_FOLD, WIDE_FOLD, __half());
            w.x = multiply_f16(w.x, fold);
            w.z = multiply_f16(w.z, fold);
        }
        u32 folded[2] = {multiply_f16(q.codes[i][0], w.x), multiply_f16(q.codes[i][1], w.z)};
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            low[m].load(i, codes + (16 * m + g) * K_WORDS, t);
            high[m].load(i, codes + (16 * m + g + 8) * K_WORDS, t);
            mma(c[m], {low[m].pair(i, 0), high[m].pair(i, 0), low[m].pair(i, 1), high[m].pair(i, 1)}, folded[0],
                folded[1], __half());
        }
    }
    float fold = SUBNORMAL / K_FOLD / (WIDE ? WIDE_FOLD : 1.0f);
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        float base = zero[2 + e] * q.norm[e] - s.reference[e], norm = q.norm[e] * fold;
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            y[m][e] = c[m][e] * norm + base;
            y[m][2 + e] = c[m][2 + e] * norm + base;
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
    const u32* params = (const u32*)(stage + V_PARAMS_AT);
    auto word_at = [&](u32 word) { return (const u32*)(stage + V_AT + padded<V_PAD>(word * 4)); };
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        u32 low = 8 * m + t, high = low + 4;  // pairs of tokens
        const u32 *low_params = params + low * 2 * VALUE_GROUPS, *high_params = params + high * 2 * VALUE_GROUPS;
        ValueWords low_words, high_words;
        low_words.load(low * 2 * V_WORDS, g, word_at);
        high_words.load(high * 2 * V_WORDS, g, word_at);
        u32 low_zero = g < VALUE_GROUPS ? low_params[VALUE_GROUPS + g] : 0;
        u32 high_zero = g < VALUE_GROUPS ? high_params[VALUE_GROUPS + g] : 0;
        mma(s.zero, {low_zero, 0, high_zero, 0}, p[m][0], p[m][1], __half());
        u32 low_scale[VALUE_GROUPS], high_scale[VALUE_GROUPS];
        KeyWords::load_all(low_scale, low_params);
        KeyWords::load_all(high_scale, high_params);
        u32 low_p = 0, high_p = 0;
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            if (16 * i % GROUP_SIZE == 0) {
                low_p = multiply_f16(p[m][0], low_scale[16 * i / GROUP_SIZE]);
                high_p = multiply_f16(p[m][1], high_scale[16 * i / GROUP_SIZE]);
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

// Makes sums of values sums of codes in their places, to which more are added; zeros stay as they are.
__device__ __forceinline__ void unsettle(State& s) {
    if (!V_CODES || !s.settled) {
        return;
    }
    s.settled = false;
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] *= ValueWords::factor(i, e / 2) / SUBNORMAL;
        }
    }
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
    s.zero[0] = s.zero[1] = 0.0f;
}
