// prefill.cu: attention of many rows a sequence, on tensor cores (FlashAttention-2, arXiv 2307.08691).
//   grid (blocks of query rows, n_kv_heads)
//
// The query rows of a sequence and KV head are its new tokens times the query heads that share the KV head: row m is
// head m % ratio of new token m / ratio. A block has BLOCK_ROWS of them, a warp 16 or 32, and goes over the tokens in
// tiles of TILE: from pages (dequantized), ring, sinks and the new rows alike, brought to shared memory a tile ahead.
// Sequences with few new rows are decode.cu's.
#include "codes.cuh"
#include "row.cuh"

struct PrefillParams {
    AttendParams attend;
    u32 few;  // sequences with so many new rows, or fewer, are not this kernel's
    u32 unused;
};
KIVI_CHECK_SIZE(PrefillParams);

constexpr u32 TILE = KIVI_PREFILL_TILE, STAGES = KIVI_PREFILL_STAGES;
constexpr u32 M_TILES = KIVI_PREFILL_M_TILES;  // of 16 rows, a warp
constexpr u32 N_TILES = TILE / 8;
constexpr u32 BLOCK_ROWS = WARPS * M_TILES * 16;
constexpr u32 PER_ROW = BLOCK / TILE;     // threads that bring one token

struct Shared {
    Act q[BLOCK_ROWS][ROW_STRIDE];
    Act k[STAGES][TILE][ROW_STRIDE];
    Act v[STAGES][TILE][ROW_STRIDE];
};
static_assert(sizeof(Shared) <= KIVI_PREFILL_SHARED, "more shared memory than the launch has");

// The query rows of a block.
struct Work {
    u32 seq, first;  // row of the sequence's m rows
    u32 rows;        // m rows of the sequence
    bool found;
};

// The block's rows. Blocks that come first have the last rows, which see most.
__device__ Work find_work(const PrefillParams& p, u32 ratio) {
    const Cache& c = p.attend.cache;
    u32 lane = threadIdx.x % WARP, block = gridDim.x - 1 - blockIdx.x;
    for (u32 base = 0; base < c.n_seqs; base += WARP) {
        u32 seq = base + lane, rows = seq < c.n_seqs ? c.row_start[seq + 1] - c.row_start[seq] : 0;
        u32 blocks = rows > p.few ? (rows * ratio + BLOCK_ROWS - 1) / BLOCK_ROWS : 0, end = blocks;
        for (u32 step = 1; step < WARP; step *= 2) {
            u32 below = __shfl_up_sync(ALL_LANES, end, step);
            end += lane >= step ? below : 0;
        }
        u32 hit = __ballot_sync(ALL_LANES, block < end && block >= end - blocks);
        if (hit) {
            u32 from = __ffs(hit) - 1;
            u32 first = __shfl_sync(ALL_LANES, (block - (end - blocks)) * BLOCK_ROWS, from);
            return {base + from, first, __shfl_sync(ALL_LANES, rows * ratio, from), true};
        }
        block -= __shfl_sync(ALL_LANES, end, WARP - 1);
    }
    return {0, 0, 0, false};
}

// A dequantized pair of neighbouring channels, the first of which is even; finite.
__device__ __forceinline__ u32 value_pair(float low_code, float high_code, float2 scale, float2 zero) {
    float limit = KIVI_ACT_BF16 ? INFINITY : 65504.0f;
    float low = fminf(low_code * scale.x + zero.x, limit), high = fminf(high_code * scale.y + zero.y, limit);
    return pack(low, high, Act());
}

__device__ __forceinline__ u32 key_codes(const Row& row, u32 channel) {
    constexpr u32 PER_WORD = 32 / K_CODE_BITS, MASK = (1u << K_CODE_BITS) - 1;
    u32 codes = ((const u32*)row.data)[channel / PER_WORD] >> channel % PER_WORD / 2 * K_CODE_BITS;
    uint2 params = *(const uint2*)(row.params + channel);  // scales, zeros
    return value_pair((float)(codes & MASK), (float)(codes >> 16 & MASK),
                      make_float2(half_at(params.x, 0), half_at(params.x, 16)),
                      make_float2(half_at(params.y, 0), half_at(params.y, 16)));
}

__device__ __forceinline__ u32 value_codes(const Row& row, u32 channel) {
    constexpr u32 PER_UNIT = 16 / V_CODE_BITS, MASK = (1u << V_CODE_BITS) - 1;
    u32 place = place_of(HEAD_DIM, channel);
    u32 codes = ((const u32*)row.data)[place / PER_UNIT] >> (row.shift + place % PER_UNIT * V_CODE_BITS);
    const u32* params = row.params + channel / GROUP_SIZE;
    float scale = half_at(params[0], row.shift), zero = half_at(params[VALUE_GROUPS], row.shift);
    return value_pair((float)(codes & MASK), (float)(codes >> V_CODE_BITS & MASK), make_float2(scale, scale),
                      make_float2(zero, zero));
}

// Brings the row of a token with PER_ROW threads; zeros if it is not seen.
template <bool KEY>
__device__ __forceinline__ void load_row(const Cache& c, const Side& side, u32 seq, u32 head, u32 token, bool seen,
                                         Act* to) {
    u32 part = threadIdx.x % PER_ROW;
    Row row = {Row::FULL, nullptr, nullptr, 0};
    if (seen) {
        row = find_row(c, side, seq, head, token);
    }
    if ((KEY ? K_CODES : V_CODES) && row.form == Row::CODES) {
        for (u32 channel = 2 * part; channel < HEAD_DIM; channel += 2 * PER_ROW) {
            *(u32*)(to + channel) = KEY ? key_codes(row, channel) : value_codes(row, channel);
        }
        return;
    }
    const Act* from = seen ? (const Act*)row.data : c.k.rows;  // an address to name, from which nothing is read
    for (u32 channel = 8 * part; channel < HEAD_DIM; channel += 8 * PER_ROW) {
        copy_async(to + channel, seen ? from + channel : from, seen);
    }
}

// Brings the tokens from token on that are in [low, high).
__device__ __forceinline__ void load_tile(const Cache& c, Shared& sh, u32 stage, u32 seq, u32 token, u32 low,
                                          u32 high) {
    u32 row = threadIdx.x / PER_ROW, head = blockIdx.y;
    bool seen = token + row >= low && token + row < high;
    load_row<true>(c, c.k, seq, head, token + row, seen, sh.k[stage][row]);
    load_row<false>(c, c.v, seq, head, token + row, seen, sh.v[stage][row]);
}

// What a warp has so far of its rows; lane 4 g + t: rows 16 m + 8 h + g.
struct State {
    float sum[M_TILES][2 * STEPS][4];
    float largest[M_TILES][2];
    float total[M_TILES][2];
};

// S = Q K^T of a tile.
__device__ __forceinline__ void logits(const Shared& sh, u32 stage, float (&s)[M_TILES][N_TILES][4]) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Act* q = &sh.q[warp * M_TILES * 16 + lane % 16][lane / 16 * 8];
    const Act* k = &sh.k[stage][lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        u32 a[M_TILES][4];
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            load_matrices(a[m], q + 16 * m * ROW_STRIDE + 16 * i);
        }
#pragma unroll
        for (u32 n = 0; n < N_TILES; n += 2) {
            u32 b[4];
            load_matrices(b, k + 8 * n * ROW_STRIDE + 16 * i);
#pragma unroll
            for (u32 m = 0; m < M_TILES; ++m) {
                mma(s[m][n], a[m], b[0], b[1], Act());
                mma(s[m][n + 1], a[m], b[2], b[3], Act());
            }
        }
    }
}

// O += P V of a tile.
__device__ __forceinline__ void mix(const Shared& sh, u32 stage, const float (&p)[M_TILES][N_TILES][4], State& state) {
    u32 lane = threadIdx.x % WARP;
    const Act* v = &sh.v[stage][lane / 8 % 2 * 8 + lane % 8][lane / 16 * 8];
#pragma unroll
    for (u32 n = 0; n < N_TILES; n += 2) {
        u32 a[M_TILES][4];
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                a[m][e] = pack(p[m][n + e / 2][e % 2 * 2], p[m][n + e / 2][e % 2 * 2 + 1], Act());
            }
        }
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 b[4];
            load_transposed(b, v + 8 * n * ROW_STRIDE + 16 * i);
#pragma unroll
            for (u32 m = 0; m < M_TILES; ++m) {
                mma(state.sum[m][2 * i], a[m], b[0], b[1], Act());
                mma(state.sum[m][2 * i + 1], a[m], b[2], b[3], Act());
            }
        }
    }
}

// A lane's rows: the positions of their tokens, and slopes.
struct Lines {
    u32 at[M_TILES][2];
    float slope[M_TILES][2];
};

// Takes out what rows do not see, and adds slopes.
__device__ __forceinline__ void mask(float (&s)[M_TILES][N_TILES][4], const Lines& lines, u32 token, u32 window,
                                     float scale) {
    u32 t = threadIdx.x % 4;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 n = 0; n < N_TILES; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                u32 j = token + 8 * n + 2 * t + e % 2, at = lines.at[m][e / 2];
                if (KIVI_ALIBI) {
                    s[m][n][e] -= lines.slope[m][e / 2] * (float)(int)(at - j) / scale;
                }
                bool seen = j <= at && (window == 0 || at - j < window);
                s[m][n][e] = seen ? s[m][n][e] : -INFINITY;
            }
        }
    }
}

// Logits become weights, relative to the largest so far; earlier sums follow.
__device__ __forceinline__ void softmax(float (&s)[M_TILES][N_TILES][4], State& state, float scale) {
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float largest = state.largest[m][h];
#pragma unroll
            for (u32 n = 0; n < N_TILES; ++n) {
                largest = fmaxf(largest, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            }
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            float base = largest == -INFINITY ? 0.0f : largest * scale;
            float by = exp2_fast(state.largest[m][h] * scale - base), total = 0.0f;
            state.largest[m][h] = largest;
#pragma unroll
            for (u32 n = 0; n < N_TILES; ++n) {
                s[m][n][2 * h] = exp2_fast(s[m][n][2 * h] * scale - base);
                s[m][n][2 * h + 1] = exp2_fast(s[m][n][2 * h + 1] * scale - base);
                total += s[m][n][2 * h] + s[m][n][2 * h + 1];
            }
            state.total[m][h] = state.total[m][h] * by + total;
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; ++i) {
                state.sum[m][i][2 * h] *= by;
                state.sum[m][i][2 * h + 1] *= by;
            }
        }
    }
}

// Out rows; those of a sequence that is not active are 0.
__device__ void finish(const AttendParams& a, const Work& work, u32 ratio, State& state, bool active) {
    u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float total = state.total[m][h];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            u32 line = work.first + (warp * M_TILES + m) * 16 + 8 * h + g;
            if (line >= work.rows) {
                continue;
            }
            u64 row = a.cache.row_start[work.seq] + line / ratio, head = blockIdx.y * ratio + line % ratio;
            Act* out = a.out + row * a.out_stride + head * HEAD_DIM + 2 * t;
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; ++i) {
                for (u32 e = 0; e < 2; ++e) {
                    store(&out[8 * i + e], active ? state.sum[m][i][2 * h + e] / total : 0.0f);
                }
            }
        }
    }
}

// The block's queries; zeros behind the last.
__device__ void load_queries(const AttendParams& a, Shared& sh, const Work& work, u32 ratio) {
    for (u32 i = threadIdx.x; i < BLOCK_ROWS * HEAD_DIM; i += BLOCK) {
        u32 line = work.first + i / HEAD_DIM;
        u64 row = a.cache.row_start[work.seq] + line / ratio, head = blockIdx.y * ratio + line % ratio;
        bool there = line < work.rows;
        sh.q[i / HEAD_DIM][i % HEAD_DIM] = there ? a.q[row * a.q_stride + head * HEAD_DIM + i % HEAD_DIM] : Act{};
    }
}

extern "C" __global__ void __launch_bounds__(KIVI_BLOCK, 1) prefill(PrefillParams p) {
    Shared& sh = *(Shared*)dynamic_shared();
    const AttendParams& a = p.attend;
    const Cache& c = a.cache;
    u32 ratio = a.n_heads / c.n_kv_heads, warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4;
    Work work = find_work(p, ratio);
    if (!work.found) {
        return;
    }
    u32 len = c.len[work.seq];
    bool active = c.active[work.seq];
    State state = {};
    Lines lines;
    float scale = a.scale * LOG2_E;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            u32 line = min(work.first + (warp * M_TILES + m) * 16 + 8 * h + g, work.rows - 1);
            lines.at[m][h] = len + line / ratio;
            lines.slope[m][h] = KIVI_ALIBI ? a.alibi[blockIdx.y * ratio + line % ratio] : 0.0f;
            state.largest[m][h] = -INFINITY;
        }
    }
    // Tokens that any row of the block sees, and what all rows of the warp see.
    u32 last = min(work.first + BLOCK_ROWS, work.rows) - 1;
    u32 high = len + last / ratio + 1, lowest = len + work.first / ratio;
    u32 low = a.window && lowest + 1 > a.window ? lowest + 1 - a.window : 0;
    u32 warp_first = min(work.first + warp * M_TILES * 16, work.rows - 1);
    u32 warp_last = min(work.first + (warp + 1) * M_TILES * 16, work.rows) - 1;
    u32 warp_low = len + warp_first / ratio, warp_high = len + max(warp_last, warp_first) / ratio;
    u32 first = low / TILE, tiles = active ? (high + TILE - 1) / TILE - first : 0;

    load_queries(a, sh, work, ratio);
    if (STAGES > 1 && tiles > 0) {
        load_tile(c, sh, 0, work.seq, first * TILE, low, high);
    }
    commit_async();
    for (u32 i = 0; i < tiles; ++i) {
        u32 token = (first + i) * TILE, ahead = i + STAGES - 1, stage = i % STAGES;
        if (ahead < tiles) {
            load_tile(c, sh, ahead % STAGES, work.seq, (first + ahead) * TILE, low, high);
        }
        commit_async();
        wait_async<STAGES - 1>();
        __syncthreads();
        if (token <= warp_high) {
            float s[M_TILES][N_TILES][4] = {};
            logits(sh, stage, s);
            bool whole = token + TILE <= warp_low + 1 && (a.window == 0 || warp_high - token < a.window);
            if (KIVI_ALIBI || !whole) {
                mask(s, lines, token, a.window, a.scale);
            }
            softmax(s, state, scale);
            mix(sh, stage, s, state);
        }
        __syncthreads();
    }
    finish(a, work, ratio, state, active);
}
