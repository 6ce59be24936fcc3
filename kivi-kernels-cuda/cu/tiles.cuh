// tiles.cuh: the tiles of decode.cu: packed, rows that lie anywhere, and those that are both.
#pragma once
#include "products.cuh"

// Row of token first + i in full precision, i below 32; null if it is not in [low, high). The ring has row ring_row for first.
template <bool KEYS>
__device__ __forceinline__ const Act* row_of(const Cache& c, const Span& span, u32 first, u32 ring_row, u32 i, u32 low,
                                             u32 high) {
    const RowsOf& rows = KEYS ? span.k : span.v;
    u32 token = first + i;
    if (token < low || token >= high) {
        return nullptr;
    }
    if (token >= span.extent.len) {
        return rows.fresh + token * rows.stride;
    }
    if (KEYS ? !K_CODES : !V_CODES) {
        const char* page = span.pages + (u64)span.table[token / PAGE_TOKENS] * (c.n_kv_heads * PAGE_WORDS * 4);
        return (const Act*)(page + (KEYS ? 0 : V_START * 4)) + token % PAGE_TOKENS * HEAD_DIM;
    }
    u32 place = ring_row + i;  // in the ring, which has 32 rows or more
    const Act* ring = rows.ring + (place >= c.residual ? place - c.residual : place) * HEAD_DIM;
    return token < c.sinks ? rows.sink + token * HEAD_DIM : ring;
}

__device__ __forceinline__ u32 pair_at(const Act* row, u32 channel) { return row ? *(const u32*)(row + channel) : 0; }

__device__ __forceinline__ uint4 pairs_at(const Act* row, u32 channel) {
    return row ? *(const uint4*)(row + channel) : make_uint4(0, 0, 0, 0);
}

// Logits of 16 rows that lie anywhere. A lane takes 8 channels at a time, of key and query alike.
__device__ __forceinline__ void loose_logits(const Cache& c, const Span& span, const Queries& q,
                                             const State& s, u32 token, u32 low, u32 high, float (&y)[4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    u32 ring_row = token % c.residual;
    const Act* above = row_of<true>(c, span, token, ring_row, g, low, high);
    const Act* below = row_of<true>(c, span, token, ring_row, g + 8, low, high);
    float sums[4] = {};
    constexpr u32 AT_ONCE = 4;  // loads under way of each row
#pragma unroll
    for (u32 first = 0; first < HEAD_DIM / 32; first += AT_ONCE) {
        uint4 a[AT_ONCE], b[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE && first + i < HEAD_DIM / 32; ++i) {
            u32 channel = (4 * (first + i) + t) * 8;
            a[i] = pairs_at(above, channel);
            b[i] = pairs_at(below, channel);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE && first + i < HEAD_DIM / 32; ++i) {
            uint4 x = *(const uint4*)(q.row + (4 * (first + i) + t) * 8);
            mma(sums, {a[i].x, b[i].x, a[i].y, b[i].y}, x.x, x.y, Act());
            mma(sums, {a[i].z, b[i].z, a[i].w, b[i].w}, x.z, x.w, Act());
        }
    }
    if (HEAD_DIM % 32) {
        u32 channel = HEAD_DIM / 32 * 32 + 4 * t;
        mma(sums,
            {pair_at(above, channel), pair_at(below, channel), pair_at(above, channel + 2),
             pair_at(below, channel + 2)},
            *(const u32*)(q.row + channel), *(const u32*)(q.row + channel + 2), Act());
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
        y[e] = sums[e] * q.scale - s.reference[e % 2];
    }
}

// The values of 16 rows that lie anywhere, asked for when it is made: as many channels as fit registers.
struct LooseValues {
    // With codes, rows h = 0, 1 of a tile are a pair of channels, else channels 8 apart.
    static constexpr u32 PAIRS = V_CODES ? 1 : 2, AT_ONCE = 8 / PAIRS;

    const Act* rows[4];
    u32 x[AT_ONCE][PAIRS][4];

    __device__ __forceinline__ LooseValues(const Cache& c, const Span& span, u32 token, u32 low, u32 high) {
        u32 t = threadIdx.x % 4, ring_row = token % c.residual;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            rows[i] = row_of<false>(c, span, token, ring_row, 2 * t + i % 2 + i / 2 * 8, low, high);
        }
        ask(0);
    }

    __device__ __forceinline__ void ask(u32 first) {
        u32 g = threadIdx.x % WARP / 4;
#pragma unroll
        for (u32 i = 0; i < AT_ONCE * PAIRS * 4; ++i) {
            u32 step = first + i / 4 / PAIRS, h = i / 4 % PAIRS;
            x[i / 4 / PAIRS][h][i % 4] = step < STEPS ? pair_at(rows[i % 4], channel_of(step, h, g) & ~1u) : 0;
        }
    }

    // Adds them, weighted, to sums that are settled or not.
    template <bool SETTLED>
    __device__ __forceinline__ void mix(State& s, const u32 (&p)[2]) {
        u32 g = threadIdx.x % WARP / 4;
#pragma unroll
        for (u32 first = 0; first < STEPS; first += AT_ONCE) {
            if (first > 0) {
                ask(first);
            }
#pragma unroll
            for (u32 i = 0; i < AT_ONCE && first + i < STEPS; ++i) {
                u32 v[4];  // tokens 2 t and 2 t + 1 (v[0], v[1]), then 8 more; rows h = 0, 1
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    const u32(&pairs)[4] = x[i][j % 2 % PAIRS];
                    bool odd = V_CODES ? j % 2 : g % 2;  // which of a pair's channels
                    v[j] = __byte_perm(pairs[j / 2 * 2], pairs[j / 2 * 2 + 1], odd ? 0x7632 : 0x5410);
                }
                if (SETTLED || !V_CODES) {
                    mma(s.sum[first + i], v, p[0], p[1], Act());
                } else {
                    float sums[4] = {};
                    mma(sums, v, p[0], p[1], Act());
                    add_values(s, first + i, sums);
                }
            }
        }
    }
};

// One of several, which the compiler may keep in registers.
template <u32 N, u32 WORDS, class T>
__device__ __forceinline__ void take(T (&x)[WORDS], const T (&all)[N][WORDS], u32 at) {
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 i = 0; i < WORDS; ++i) {
            x[i] = m == at ? all[m][i] : x[i];
        }
    }
}

template <u32 N, u32 WORDS, class T>
__device__ __forceinline__ void put(T (&all)[N][WORDS], const T (&x)[WORDS], u32 at) {
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 i = 0; i < WORDS; ++i) {
            all[m][i] = m == at ? x[i] : all[m][i];
        }
    }
}

// Logits of those tokens of a tile whose keys are not packed. Code once for all of them: it is rare, and must be fetched.
template <u32 M>
__device__ __forceinline__ void loose_keys(const Cache& c, const Span& span, u32 token, const Queries& q, const State& s,
                                           float (&y)[M][4]) {
    const Extent& e = span.extent;
    u32 from = max(token, e.k_packed / 16 * 16);
#pragma unroll 1
    for (u32 rows = from; rows < min(token + 16 * M, e.end); rows += 16) {
        float of_rows[4];
        loose_logits(c, span, q, s, rows, e.start, e.end, of_rows);
        put(y, of_rows, (rows - token) / 16);
    }
}

// Has the values of those tokens of a tile that are not packed come to the second-level cache, a row a lane.
template <u32 N>
__device__ __forceinline__ void ask_values(const Cache& c, const Span& span, u32 token) {
    const Extent& e = span.extent;
    u32 lane = threadIdx.x % WARP;
    const Act* row = row_of<false>(c, span, token, token % c.residual, lane, max(e.v_packed, e.start), min(token + N, e.end));
    if (row) {
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM; i += 64) {
            ask(row + i);
        }
    }
}

// Takes the weights of those tokens out of y whose values are not packed, from v_packed on.
template <u32 M>
__device__ __forceinline__ void part(float (&y)[M][4], float (&loose)[M][4], u32 first, u32 v_packed) {
#pragma unroll
    for (u32 m = 0; m < M; ++m) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            bool is_packed = first + 16 * m + i / 2 * 8 < v_packed;
            loose[m][i] = is_packed ? 0.0f : y[m][i];
            y[m][i] = is_packed ? y[m][i] : 0.0f;
        }
    }
}

// Adds the values of those tokens.
template <u32 M>
__device__ __forceinline__ void loose_values(const Cache& c, const Span& span, u32 token, State& s,
                                             const float (&loose)[M][4]) {
    const Extent& e = span.extent;
    u32 p[M][2], from = max(token, max(e.v_packed, e.start) / 16 * 16);
    add_total(s, loose);
    weights(loose, p, Act());
#pragma unroll 1
    for (u32 rows = from; rows < min(token + 16 * M, e.end); rows += 16) {
        u32 of_rows[2] = {};
        take(of_rows, p, (rows - token) / 16);
        LooseValues(c, span, rows, max(e.v_packed, e.start), e.end).mix<false>(s, of_rows);
    }
}

// A tile of N tokens that lies in a stage. WHOLE: both sides are packed, and no token is behind the last one that is seen.
template <bool WHOLE, u32 N>
__device__ __forceinline__ void use_tile(const Cache& c, const Span& span, u32 stage, u32 token, const Queries& q,
                                         State& s) {
    constexpr u32 M = N / 16;
    const Extent& e = span.extent;
    Words words;
    float y[M][4];
    u32 p[M][2];
    bool mixed = V_CODES && !WHOLE && token + N > e.v_packed;
    if (mixed) {
        ask_values<N>(c, span, token);
    }
    Largest<M> largest(stage, q.lane);
    float by = 1.0f;
    // Once more if scales turn out to be wide, which is seen behind the products so that they need not wait for it.
#pragma unroll 1
    do {
        if (!K_CODES) {
            row_logits(stage, q, s, y);
        } else {
            code_logits(stage, by, q, s, words, y);
        }
    } while (by == 1.0f && largest.wide() && (by = narrow(stage, q.lane, largest, s)) != 1.0f);
    if (K_CODES && !WHOLE) {
        loose_keys(c, span, token, q, s, y);
    }
    if (KIVI_ALIBI || !WHOLE || token < e.start) {
        mask(y, q, token, e.start, e.end, e.at);
    }
    softmax(s, y);
    if (!V_CODES) {
        add_total(s, y);
        weights(y, p, Act());
        return mix_rows(stage, q.lane, s, p);
    }
    float loose[M][4];
    if (mixed) {
        part(y, loose, token + q.lane / 4, e.v_packed);
    }
    if (WHOLE || token < e.v_packed) {
        weights(y, p, __half());
        mix_codes(stage, q, s, words, p);
    }
    if (mixed) {
        loose_values(c, span, token, s, loose);
    }
}

// A tile of rows in full precision on both sides.
__device__ __forceinline__ void use_rows(const Cache& c, const Span& span, u32 tile, const Queries& q, State& s) {
    const Extent& e = span.extent;
    bool head = tile < e.head_tiles();
    u32 token = head ? e.first + 16 * tile : e.end + 16 * (tile - e.head_tiles());
    u32 end = head ? e.start : e.at + 1;
    float y[1][4];
    u32 p[1][2];
    LooseValues values(c, span, token, 0, end);  // on their way
    loose_logits(c, span, q, s, token, 0, end, y[0]);
    mask(y, q, token, 0, end, e.at);
    softmax(s, y);
    add_total(s, y);
    weights(y, p, Act());
    values.mix<true>(s, p[0]);
}
