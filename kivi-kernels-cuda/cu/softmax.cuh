// softmax.cuh: decode.cu's queries, and the softmax that a warp keeps.
#pragma once
#include "span.cuh"

// The queries of a span as operand B, column g of lane 4 g + t; columns beyond them are the last one again.
struct Queries {
    static constexpr u32 ITEMS = (STEPS * 4 + WARP - 1) / WARP;  // words of a lane

    u32 lane;
    u32 at;               // the lane's words in shared memory (span.cuh); K_CODES only
    bool needed;          // the lane's column is a query
    const Act* row;       // it, in memory
    const Act* first;     // the first one
    u32 rows[STEPS][2];   // as it is, in the order of channels; for keys in shared memory
    uint2 ahead[ITEMS];   // of the warp's first query, on their way; K_CODES only
    float scale;          // of the logits of rows, in powers of 2
    float norm[2];        // of logits over codes in their places, for the lane's queries 2 t and 2 t + 1
    float slope[2];

    __device__ void fetch(const Team& team, const Act* q_rows, u32 n);
    __device__ void load(const AttendParams& p, Shared& s, const Team& team, u32 head, u32 n);
    __device__ __forceinline__ void fetch_query(const Act* q_row);
    __device__ __forceinline__ void fold(Shared& s, const Team& team, u32 query);
};

// Asks for a query, of which lane 4 i + t takes what step i needs.
__device__ __forceinline__ void Queries::fetch_query(const Act* q_row) {
#pragma unroll
    for (u32 k = 0; k < ITEMS; ++k) {
        u32 i = (lane + k * WARP) / 4;
        ahead[k] = i < STEPS ? *(const uint2*)(q_row + KeyWords::pair_of(i, lane % 4) * 2) : make_uint2(0, 0);
    }
}

// Tells a team's other warps a query: normalized by a power of two, for fields of codes in their places and for zeros,
// which all take as they are.
__device__ __forceinline__ void Queries::fold(Shared& s, const Team& team, u32 query) {
    u32 t = lane % 4;
    float largest = 0.0f;
#pragma unroll
    for (u32 k = 0; k < ITEMS; ++k) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            largest = fmaxf(largest, fabsf(to_f32(((const Act*)&ahead[k])[e])));
        }
    }
    largest = warp_max(largest);
    // The power of two in largest; queries of zeros, infinities and subnormal numbers stay as they are.
    u32 exponent = __float_as_uint(largest) >> 23;
    float inverse = exponent - 1 < 253 ? __uint_as_float((254 - exponent) << 23) : 1.0f;
    if (lane == 0) {
        s.power[team.first][query] = exponent - 1 < 253 ? __uint_as_float(exponent << 23) : 1.0f;
    }
    char* set = (char*)s.regions[team.first + query / 4];
#pragma unroll
    for (u32 k = 0; k < ITEMS; ++k) {
        u32 i = (lane + k * WARP) / 4;
        if (i < STEPS) {
            u32 zeros[2], codes[2];
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                float fold = inverse * (K_FOLD / factor_of<K_CODE_BITS>(KeyWords::field_of(i) + h));
                float low = to_f32(((const Act*)&ahead[k])[2 * h]), high = to_f32(((const Act*)&ahead[k])[2 * h + 1]);
                zeros[h] = pack(low * inverse, high * inverse, __half());
                codes[h] = pack(low * fold, high * fold, __half());
            }
            char* to = set + i / 2 * PAIR_BYTES + (query % 4 * 4 + t) * 16 + i % 2 * 8;
            *(uint2*)to = make_uint2(zeros[0], zeros[1]);
            *(uint2*)(to + CODES_AT) = make_uint2(codes[0], codes[1]);
        }
    }
}

// Asks for the queries of a span.
__device__ void Queries::fetch(const Team& team, const Act* q_rows, u32 n) {
    lane = lane_id();
    u32 g = lane / 4, t = lane % 4;
    row = q_rows + min(g, n - 1) * HEAD_DIM;
    first = q_rows;
    needed = g < n;
    if (!K_CODES) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            rows[i][0] = *(const u32*)(row + 16 * i + 2 * t);
            rows[i][1] = *(const u32*)(row + 16 * i + 2 * t + 8);
        }
    } else if (team.warp < n) {
        fetch_query(q_rows + team.warp * HEAD_DIM);
    }
}

// Called by all warps of a team; waits for them.
__device__ void Queries::load(const AttendParams& p, Shared& s, const Team& team, u32 head, u32 n) {
    u32 t = lane % 4, column = min(lane / 4, n - 1);
    if (K_CODES) {
        for (u32 query = team.warp; query < n; query += team.warps) {
            if (query != team.warp) {
                fetch_query(first + query * HEAD_DIM);
            }
            fold(s, team, query);
        }
        at = keep(shared_address(s.regions[team.first + column / 4]) + (column % 4 * 4 + t) * 16);
        team.sync();
    }
    scale = p.scale * LOG2_E;
    for (u32 h = 0; h < 2; ++h) {
        u32 query = min(2 * t + h, n - 1);
        norm[h] = K_CODES ? scale * s.power[team.first][query] * (SUBNORMAL / K_FOLD) : 0.0f;
        slope[h] = KIVI_ALIBI ? p.alibi[head + query] * LOG2_E : 0.0f;
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

    float sum[STEPS][4];  // of codes in their places, if values are packed, until they are settled
    float zero[4];       // row g: sum of p times the zeros of value group g; row g + 8: sum of p over packed values
    float reference[2];  // log2 of what p is relative to, and 0 as long as there is none
    float total[2];      // sum of p, of this lane's tokens whose values are not packed
    float limit;         // p may grow to 2^limit before the reference moves; FRESH or FRESH_WIDE: no token yet

    __device__ void clear() {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
        }
        zero[0] = zero[1] = zero[2] = zero[3] = total[0] = total[1] = 0.0f;
        reference[0] = reference[1] = 0.0f;
        limit = FRESH;
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
