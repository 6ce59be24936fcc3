// softmax.cuh: decode.cu's queries, and the softmax that a warp keeps.
#pragma once
#include "span.cuh"

// The queries of a span as operand B, column g of lane 4 g + t.
struct Queries {
    u32 codes[STEPS][2];  // normalized, for fields of codes in their places; K_CODES only
    u32 zeros;            // where they lie, normalized, of two steps each; all warps have the same
    u32 lane;
    bool needed;          // the lane's column is a query
    u32 rows[STEPS][2];   // as they are, in the order of channels; for keys in shared memory
    float scale;          // of the logits of rows, in powers of 2
    float norm[2];        // of logits over codes in their places, for the lane's queries 2 t and 2 t + 1
    float slope[2];

    __device__ void load(const AttendParams& p, Shared& s, u32 head, u32 n);
};

// Pair i of query row g, as f16 or as it is.
__device__ __forceinline__ float2 query_pair(const Shared& s, u32 g, u32 i) {
    return make_float2(to_f32(s.q[g][2 * i]), to_f32(s.q[g][2 * i + 1]));
}

// Called by all warps; waits for them.
__device__ void Queries::load(const AttendParams& p, Shared& s, u32 head, u32 n) {
    lane = lane_id();
    u32 g = lane / 4, t = lane % 4;
    float largest = 0.0f;
    for (u32 i = t; i < HEAD_DIM / 2; i += 4) {
        float2 x = query_pair(s, g, i);
        largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
    }
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    // The power of two in largest; queries of zeros, infinities and subnormal numbers stay as they are.
    u32 exponent = __float_as_uint(largest) >> 23;
    float power = exponent - 1 < 253 ? __uint_as_float(exponent << 23) : 1.0f;
    float inverse = exponent - 1 < 253 ? __uint_as_float((254 - exponent) << 23) : 1.0f;
    zeros = shared_address(s.zeros + lane);
    needed = g < n;
    if (K_CODES) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 pairs[2];
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                float2 x = query_pair(s, g, KeyWords::pair_of(i, t) + h);
                float fold = inverse * (K_FOLD / factor_of<K_CODE_BITS>(KeyWords::field_of(i) + h));
                pairs[h] = pack(x.x * inverse, x.y * inverse, __half());
                codes[i][h] = pack(x.x * fold, x.y * fold, __half());
            }
            if (threadIdx.x / WARP == i % WARPS) {
                *((uint2*)&s.zeros[i / 2 * WARP + lane] + i % 2) = make_uint2(pairs[0], pairs[1]);
            }
        }
        __syncthreads();
    } else {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            rows[i][0] = *(const u32*)&s.q[g][16 * i + 2 * t];
            rows[i][1] = *(const u32*)&s.q[g][16 * i + 2 * t + 8];
        }
    }
    scale = p.scale * LOG2_E;
    for (u32 h = 0; h < 2; ++h) {
        norm[h] = scale * __shfl_sync(ALL_LANES, power, 4 * (2 * t + h)) * (SUBNORMAL / K_FOLD);
        slope[h] = KIVI_ALIBI && 2 * t + h < n ? p.alibi[head + 2 * t + h] * LOG2_E : 0.0f;
    }
}

// Words that only lanes whose column is a query read; others keep what is in them. Two sets, so that one is read while
// the other is used.
struct Words {
    u32 x[2][4] = {};
};

// What a warp has of a span so far: row h of tile i, queries 2 t and 2 t + 1 in sum[i][2 h], sum[i][2 h + 1].
struct State {
    static constexpr float NARROW = 7.0f, WIDE = -2.0f, FRESH = -3e38f, FRESH_WIDE = -2e38f;
    static constexpr float BEYOND = 4.0f;  // p is at most 2^(limit - BEYOND) after the reference moved

    float sum[STEPS][4];
    float zero[4];       // row g: sum of p times the zeros of value group g; row g + 8: sum of p over packed values
    float reference[2];  // log2 of what p is relative to, and 0 as long as there is none
    float total[2];      // sum of p, of this lane's tokens whose values are not packed
    float limit;         // p may grow to 2^limit before the reference moves; FRESH or FRESH_WIDE: no token yet
    bool settled;        // sums are those of values, not those of codes in their places

    __device__ void clear() {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
        }
        zero[0] = zero[1] = zero[2] = zero[3] = total[0] = total[1] = 0.0f;
        reference[0] = reference[1] = 0.0f;
        limit = FRESH;
        settled = true;
    }

    // For value scales from 512 on: p times such a scale must be an f16.
    __device__ void widen() { limit = fresh() ? FRESH_WIDE : WIDE; }

    __device__ bool fresh() const { return limit <= FRESH_WIDE; }

    // Moves the reference for logits that are as much as best above it; by how much is left in best.
    __device__ __forceinline__ void follow(float (&best)[2]) {
        float by[2], next = limit == FRESH || limit == NARROW ? NARROW : WIDE, room = next - BEYOND;
        for (u32 h = 0; h < 2; ++h) {
            best[h] = fresh() ? best[h] - room : fmaxf(best[h] - room, 0.0f);
            by[h] = fresh() ? 0.0f : exp2_fast(-best[h]);
            reference[h] += best[h];
            total[h] *= by[h];
            zero[h] *= by[h];
            zero[2 + h] *= by[h];
        }
        limit = next;
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                sum[i][e] *= by[e % 2];
            }
        }
    }
};

// Logits y of N tiles of 16 tokens, in powers of 2 and relative to the reference, become weights.
template <u32 N>
__device__ __forceinline__ void softmax(State& s, float (&y)[N][4]) {
    float largest = y[0][0];
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            largest = fmaxf(largest, y[m][e]);
        }
    }
    if (__any_sync(ALL_LANES, largest > s.limit)) {
        float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (u32 m = 0; m < N; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                best[e % 2] = fmaxf(best[e % 2], y[m][e]);
            }
        }
        for (u32 h = 0; h < 2; ++h) {
            for (u32 step = 4; step < WARP; step *= 2) {
                best[h] = fmaxf(best[h], __shfl_xor_sync(ALL_LANES, best[h], step));
            }
        }
        s.follow(best);
#pragma unroll
        for (u32 m = 0; m < N; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                y[m][e] -= best[e % 2];
            }
        }
    }
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = exp2_fast(y[m][e]);
        }
    }
}

// Adds weights whose values are not packed.
template <u32 N>
__device__ __forceinline__ void add_total(State& s, const float (&y)[N][4]) {
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.total[e % 2] += y[m][e];
        }
    }
}

// Weights as operand B of the products with values.
template <u32 N, class T>
__device__ __forceinline__ void weights(const float (&y)[N][4], u32 (&p)[N][2], T type) {
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
        p[m][0] = transpose(pack(y[m][0], y[m][1], type));
        p[m][1] = transpose(pack(y[m][2], y[m][3], type));
    }
}

// Adds the slopes, and takes out tokens that are not in [low, high).
template <u32 N>
__device__ __forceinline__ void mask(float (&y)[N][4], const Queries& q, u32 token, u32 low, u32 high, u32 at) {
    u32 g = threadIdx.x % WARP / 4;
    bool cut = token < low || token + 16 * N > high;
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            u32 j = token + 16 * m + 8 * (e / 2) + g;
            if (KIVI_ALIBI) {
                y[m][e] -= q.slope[e % 2] * (float)(at - j);
            }
            if (cut) {
                y[m][e] = j < low || j >= high ? -INFINITY : y[m][e];
            }
        }
    }
}
