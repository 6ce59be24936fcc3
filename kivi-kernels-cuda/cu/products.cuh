// products.cuh: the products of decode.cu with a packed tile in shared memory.
#pragma once
#include "softmax.cuh"

// The largest numbers among scales and zeros of a lane's part of the words at an address; at least 0.
template <u32 BYTES, u32 PAD>
__device__ __forceinline__ u32 largest_params(u32 at, u32 lane) {
    u32 largest = 0;
#pragma unroll
    for (u32 i = 0; i < BYTES; i += WARP * 16) {
        if (BYTES % (WARP * 16) == 0 || i + lane * 16 < BYTES) {
            u32 w[4];
            read_shared(w, at + padded<PAD>(i) + padded<PAD>(lane * 16));
            largest = max_f16(largest, max_f16(max_f16(w[0], w[1]), max_f16(w[2], w[3])));
        }
    }
    return largest;
}

__device__ __forceinline__ bool from_512(u32 pair) { return ((pair + 0x20002000) & 0x80008000) != 0; }

// Multiplies the key scales of a tile of M times 16 tokens by WIDE_FOLD.
template <u32 M>
__device__ void fold_scales(u32 stage, u32 lane) {
    for (u32 i = lane * 16; i < KEY_GROUPS<16 * M> * HEAD_DIM * 4; i += WARP * 16) {
        u32 w[4], at = stage + K_PARAMS_AT + padded<K_PARAMS_PAD>(i), fold = pack(WIDE_FOLD, WIDE_FOLD, __half());
        read_shared(w, at);
        w[0] = multiply_f16(w[0], fold);
        w[2] = multiply_f16(w[2], fold);
        write_shared(at, w);
    }
    __syncwarp();
}

// The largest scales and zeros of a lane's part of it.
template <u32 M>
struct Largest {
    u32 k, v;

    __device__ __forceinline__ Largest(u32 stage, u32 lane)
        : k(K_CODES ? largest_params<KEY_GROUPS<16 * M> * HEAD_DIM * 4, K_PARAMS_PAD>(stage + K_PARAMS_AT, lane) : 0),
          v(V_CODES ? largest_params<16 * M * VALUE_GROUPS * 4, 0>(stage + V_PARAMS_AT, lane) : 0) {}

    // Whether a lane has some of 512 or more.
    __device__ __forceinline__ bool wide() const { return __any_sync(ALL_LANES, from_512(max_f16(k, v))); }
};

// What logits of a tile with wide scales are to be multiplied by: not 1 if they are of keys, and are then folded. s learns
// it if they are of values.
template <u32 M>
__device__ float narrow(u32 stage, u32 lane, const Largest<M>& largest, State& s) {
    if (__any_sync(ALL_LANES, from_512(largest.v))) {
        s.widen();
    }
    if (!__any_sync(ALL_LANES, from_512(largest.k))) {
        return 1.0f;
    }
    fold_scales<M>(stage, lane);
    return 1 / WIDE_FOLD;
}

// Logits of a tile over codes, relative to the reference, as those below. Products over codes are multiplied by `by`.
template <u32 M>
__device__ __forceinline__ void code_logits(u32 stage, float by, const Queries& q, const State& s, Words& words,
                                            float (&y)[M][4]) {
    constexpr u32 GROUPS = KEY_GROUPS<16 * M>, OF_GROUP = M / GROUPS;
    u32 g = q.lane / 4, t = q.lane % 4, codes = stage + g * (K_WORDS * 4);
    KeyWords low[M], high[M];
    float zero[GROUPS][4] = {}, c[M][4] = {};
    u32 zeros[4], queries[4];
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        if (i % 2 == 0) {
            read_shared(zeros, q.at + i / 2 * PAIR_BYTES);
            read_shared(queries, q.at + i / 2 * PAIR_BYTES + CODES_AT);
        }
#pragma unroll
        for (u32 group = 0; group < GROUPS; ++group) {
            u32(&w)[4] = words.x[(i * GROUPS + group) % 2];  // scales, zeros, scales, zeros; for columns that are queries
            u32 params = stage + K_PARAMS_AT + padded<K_PARAMS_PAD>(group * HEAD_DIM * 4);
            read_shared(w, params + KeyWords::params_at(i, t, padded<K_PARAMS_PAD>), q.needed);
            // Rows g: scales, of no use; row 8: zeros; those behind it the same or anything.
            mma(zero[group], w, zeros[i % 2 * 2], zeros[i % 2 * 2 + 1], __half());
            u32 folded[2] = {multiply_f16(w[0], queries[i % 2 * 2]), multiply_f16(w[2], queries[i % 2 * 2 + 1])};
#pragma unroll
            for (u32 m = group * OF_GROUP; m < (group + 1) * OF_GROUP; ++m) {
                low[m].load(i, codes + 16 * m * (K_WORDS * 4), t);
                high[m].load(i, codes + (16 * m + 8) * (K_WORDS * 4), t);
                mma(c[m], {low[m].pair(i, 0), high[m].pair(i, 0), low[m].pair(i, 1), high[m].pair(i, 1)}, folded[0],
                    folded[1], __half());
            }
        }
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        float norm = q.norm[e] * by;
#pragma unroll
        for (u32 m = 0; m < M; ++m) {
            float of_zeros = __shfl_sync(ALL_LANES, zero[m / OF_GROUP][2 + e], t);
            float base = of_zeros * (K_FOLD / SUBNORMAL) * q.norm[e] - s.reference[e];
            y[m][e] = c[m][e] * norm + base;
            y[m][2 + e] = c[m][2 + e] * norm + base;
        }
    }
}

// Logits of a tile over rows in shared memory.
template <u32 M>
__device__ __forceinline__ void row_logits(u32 stage, const Queries& q, const State& s, float (&y)[M][4]) {
    u32 row = stage + (q.lane % 16) * (ROW_STRIDE * 2) + q.lane / 16 * 16;
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 k[4];
            load_matrices(k, row + 16 * m * (ROW_STRIDE * 2) + 32 * i);
            mma(c, k, q.rows[i][0], q.rows[i][1], Act());
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = c[e] * q.scale - s.reference[e % 2];
        }
    }
}

// The byte of the codes of a tile's values that is so far behind those of pair `pair` of tokens and of the lane's own
// pair t among 4. Where 4 pairs are whole lines of 128 bytes, it is a constant and what is the lane's.
__device__ __forceinline__ u32 value_at(u32 stage, u32 pair, u32 t, u32 byte) {
    constexpr u32 PAIR = 2 * V_WORDS * 4;
    constexpr bool LINES = 4 * PAIR % 128 == 0 && (ValueWords::OWN & (ValueWords::OWN - 1)) == 0;
    u32 lane = t * PAIR + byte;
    return stage + V_AT + (LINES ? padded<V_PAD>(pair * PAIR) + padded<V_PAD>(lane) : padded<V_PAD>(pair * PAIR + lane));
}

// The scales of up to 4 groups of a pair of tokens, for columns that are queries.
template <u32 N>
__device__ __forceinline__ void load_scales(u32 (&x)[4], u32 at, bool needed) {
    if (VALUE_GROUPS % 4 == 0) {
        return read_shared(x, at, needed);
    }
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
        u32 word[1];
        read_shared(word, at + i * 4);
        x[i] = word[0];
    }
}

// Adds the values of a tile of codes, weighted.
template <u32 M>
__device__ __forceinline__ void mix_codes(u32 stage, const Queries& q, State& s, Words& words, const u32 (&p)[M][2]) {
    constexpr u32 PAIR = 2 * VALUE_GROUPS * 4;  // bytes of the scales and zeros of a pair of tokens
    u32 g = q.lane / 4, t = q.lane % 4, params = stage + V_PARAMS_AT + t * PAIR;
    constexpr u32 ONES = 0x3c003c00;
    // Rows beyond the groups, up to row 8, are of no use.
    u32 zeros = params + VALUE_GROUPS * 4 + min(g, VALUE_GROUPS - 1) * 4;
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
        ValueWords low, high;
        low.load(g, [&](u32 byte) { return value_at(stage, 8 * m, t, byte); });
        high.load(g, [&](u32 byte) { return value_at(stage, 8 * m + 4, t, byte); });
        u32 low_zero[1], high_zero[1];
        read_shared(low_zero, zeros + 8 * m * PAIR);
        read_shared(high_zero, zeros + (8 * m + 4) * PAIR);
        mma(s.zero, {low_zero[0], ONES, high_zero[0], ONES}, p[m][0], p[m][1], __half());
        u32 low_p = 0, high_p = 0;
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 group = 16 * i / GROUP_SIZE;
            if (16 * i % (4 * GROUP_SIZE) == 0) {
                constexpr u32 N = VALUE_GROUPS < 4 ? VALUE_GROUPS : 4;
                load_scales<N>(words.x[0], params + 8 * m * PAIR + group * 4, q.needed);
                load_scales<N>(words.x[1], params + (8 * m + 4) * PAIR + group * 4, q.needed);
            }
            if (16 * i % GROUP_SIZE == 0) {
                low_p = multiply_f16(p[m][0], words.x[0][group % 4]);
                high_p = multiply_f16(p[m][1], words.x[1][group % 4]);
            }
            mma(s.sum[i], {low.pair(i, 0), low.pair(i, 1), high.pair(i, 0), high.pair(i, 1)}, low_p, high_p, __half());
        }
    }
}

// Adds the values of a tile of rows in shared memory, weighted.
template <u32 M>
__device__ __forceinline__ void mix_rows(u32 stage, u32 lane, State& s, const u32 (&p)[M][2]) {
    u32 row = stage + V_AT + (lane % 8 + lane / 16 * 8) * (ROW_STRIDE * 2) + lane / 8 % 2 * 16;
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 v[4];
            load_transposed(v, row + 16 * m * (ROW_STRIDE * 2) + 32 * i);
            mma(s.sum[i], v, p[m][0], p[m][1], Act());
        }
    }
}

// The channel of row h of tile i.
__device__ __forceinline__ u32 channel_of(u32 i, u32 h, u32 g) {
    return V_CODES ? 16 * i + 2 * g + h : 16 * i + 8 * h + g;
}

// Makes sums of values sums of codes in their places, to which more are added.
__device__ __forceinline__ void unsettle(State& s) {
    if (!V_CODES) {
        return;
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] *= ValueWords::factor(i, e / 2) / SUBNORMAL;
        }
    }
}

// Adds sums of values, rows of tile i, to those of codes in their places.
__device__ __forceinline__ void add_values(State& s, u32 i, const float (&values)[4]) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
        s.sum[i][e] += values[e] * (ValueWords::factor(i, e / 2) / SUBNORMAL);
    }
}

// Makes sums of codes in their places sums of values.
__device__ __forceinline__ void settle(State& s) {
    if (!V_CODES) {
        return;
    }
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
    for (u32 h = 0; h < 2; ++h) {
        s.total[h] += threadIdx.x % WARP < 4 ? s.zero[2 + h] : 0.0f;  // which all lanes have
    }
}
