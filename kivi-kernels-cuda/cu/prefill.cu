// prefill.cu: attention of many rows a sequence, on tensor cores (FlashAttention-2, arXiv 2307.08691).
//   grid (blocks of query rows * n_kv_heads)
//
// The query rows of a sequence and KV head are its new tokens times the query heads that share the KV head: row m is
// head m % ratio of new token m / ratio. A block has BLOCK_ROWS of them, a warp 16 or 32, and goes over the tokens in
// tiles of TILE: from pages (dequantized), ring, sinks and the new rows alike, brought to shared memory a tile ahead.
// Sequences with few new rows are decode.cu's.
#include "fill.cuh"

struct PrefillParams {
    AttendParams attend;
    u32 few;       // sequences with so many new rows, or fewer, are not this kernel's
    u32 together;  // KV heads whose blocks run at the same time
};
KIVI_CHECK_SIZE(PrefillParams);

constexpr u32 M_TILES = KIVI_PREFILL_M_TILES;  // of 16 rows, a warp
constexpr u32 N_TILES = TILE / 8;
constexpr u32 WARP_ROWS = M_TILES * 16, BLOCK_ROWS = KIVI_PREFILL_WARPS * WARP_ROWS;
constexpr float LOWEST = -3e38f;  // below all logits, and not infinite
constexpr float SLACK = 7.0f;  // a weight is at most 2^SLACK

struct Shared {
    Act q[BLOCK_ROWS][ROW_STRIDE];
    Act k[STAGES][TILE][ROW_STRIDE];
    Act v[STAGES][TILE][ROW_STRIDE];
};
static_assert(sizeof(Shared) <= KIVI_PREFILL_SHARED, "more shared memory than the launch has");

// The query rows of a block.
struct Work {
    u32 seq, head;
    u32 first;  // row of the sequence's m rows
    u32 rows;   // m rows of the sequence
    bool found;
};

// Rows number `block` of those of all sequences.
__device__ Work find_rows(const PrefillParams& p, u32 ratio, u32 block) {
    const Cache& c = p.attend.cache;
    u32 lane = threadIdx.x % WARP;
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
            return {base + from, 0, first, __shfl_sync(ALL_LANES, rows * ratio, from), true};
        }
        block -= __shfl_sync(ALL_LANES, end, WARP - 1);
    }
    return {0, 0, 0, 0, false};
}

// The block's rows. The heaviest are first, which are the last of a sequence: what ends the launch is light. They are so
// of `together` heads at a time, whose keys and values stay in the second-level cache.
__device__ Work find_work(const PrefillParams& p, u32 ratio) {
    u32 heads = p.attend.cache.n_kv_heads, blocks = gridDim.x / heads;
    u32 base = blockIdx.x / (blocks * p.together) * p.together;
    u32 within = blockIdx.x - base * blocks, wide = min(p.together, heads - base);
    Work work = find_rows(p, ratio, blocks - 1 - within / wide);
    work.head = base + within % wide;
    return work;
}

// What a warp has so far of its rows; lane 4 g + t: rows 16 m + 8 h + g.
struct State {
    float sum[M_TILES][2 * STEPS][4];
    float base[M_TILES][2];  // a logit, times scale, that weights are relative to
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

// Sums follow weights that are now relative to the largest logit of the tile, where that is larger.
__device__ __forceinline__ void raise(State& state, const float (&largest)[M_TILES][2]) {
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float base = fmaxf(state.base[m][h], largest[m][h]), by = exp2_fast(state.base[m][h] - base);
            state.base[m][h] = base;
            state.total[m][h] *= by;
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; ++i) {
                state.sum[m][i][2 * h] *= by;
                state.sum[m][i][2 * h + 1] *= by;
            }
        }
    }
}

// The largest logits of the tile, times scale; raises the base if one is far above it.
__device__ __forceinline__ void follow(const float (&s)[M_TILES][N_TILES][4], State& state, float scale) {
    float largest[M_TILES][2];
    bool above = false;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float x = -INFINITY;
#pragma unroll
            for (u32 n = 0; n < N_TILES; ++n) {
                x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            }
            x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
            largest[m][h] = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2)) * scale;
            above = above || largest[m][h] > state.base[m][h] + SLACK;
        }
    }
    if (__any_sync(ALL_LANES, above)) {
        raise(state, largest);
    }
}

// Logits become weights.
__device__ __forceinline__ void softmax(float (&s)[M_TILES][N_TILES][4], State& state, float scale) {
    follow(s, state, scale);
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 n = 0; n < N_TILES; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                s[m][n][e] = exp2_fast(s[m][n][e] * scale - state.base[m][e / 2]);
                state.total[m][e / 2] += s[m][n][e];
            }
        }
    }
}

// Calls move(element, channel, offset, there) for each 16 bytes of the warp's rows, in shared memory and at offset of an
// array [rows, n_heads * head_dim] with such a stride.
template <class Move>
__device__ __forceinline__ void each_chunk(const AttendParams& a, const Work& work, u32 ratio, u64 stride, Move move) {
    u32 warp = threadIdx.x / WARP;
    for (u32 i = threadIdx.x % WARP; i < WARP_ROWS * CHUNKS; i += WARP) {
        u32 row = warp * WARP_ROWS + i / CHUNKS, channel = i % CHUNKS * 8, line = work.first + row;
        u64 token = a.cache.row_start[work.seq] + line / ratio, head = work.head * ratio + line % ratio;
        move(row, channel, token * stride + head * HEAD_DIM + channel, line < work.rows);
    }
}

__device__ __forceinline__ bool is_aligned(const void* array, u64 stride) {
    return ((u64)array | stride * sizeof(Act)) % 16 == 0;
}

// The warp's queries; zeros behind the last.
__device__ void load_queries(const AttendParams& a, Shared& sh, const Work& work, u32 ratio) {
    bool aligned = is_aligned(a.q, a.q_stride);
    each_chunk(a, work, ratio, a.q_stride, [&](u32 row, u32 channel, u64 offset, bool there) {
        if (aligned) {
            return copy_async(&sh.q[row][channel], there ? a.q + offset : a.q, there);
        }
        for (u32 e = 0; e < 8; ++e) {
            sh.q[row][channel + e] = there ? a.q[offset + e] : Act{};
        }
    });
}

// Out rows, by way of the queries' place; those of a sequence that is not active are 0.
__device__ void finish(const AttendParams& a, Shared& sh, const Work& work, u32 ratio, State& state, bool active) {
    u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    // Of a sequence that is not active nobody waited for the queries, in whose place the results go.
    commit_async();
    wait_async<0>();
    __syncthreads();
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float total = state.total[m][h];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            float by = active ? 1.0f / total : 0.0f;
            u32* row = (u32*)&sh.q[warp * WARP_ROWS + 16 * m + 8 * h + g][2 * t];
#pragma unroll
            for (u32 i = 0; i < 2 * STEPS; ++i) {
                row[4 * i] = pack(state.sum[m][i][2 * h] * by, state.sum[m][i][2 * h + 1] * by, Act());
            }
        }
    }
    __syncwarp();
    bool aligned = is_aligned(a.out, a.out_stride);
    each_chunk(a, work, ratio, a.out_stride, [&](u32 row, u32 channel, u64 offset, bool there) {
        if (there && aligned) {
            *(uint4*)(a.out + offset) = *(const uint4*)&sh.q[row][channel];
        } else if (there) {
            for (u32 e = 0; e < 8; ++e) {
                a.out[offset + e] = sh.q[row][channel + e];
            }
        }
    });
}

// Tokens that rows of the m rows [from, to] of a sequence see: some row [low, high), every row [all_low, all_high).
struct Seen {
    u32 low, high, all_low, all_high;
};

__device__ __forceinline__ Seen seen_by(u32 from, u32 to, u32 len, u32 ratio, u32 window) {
    u32 oldest = len + from / ratio + 1, newest = len + to / ratio + 1;
    return {window && oldest > window ? oldest - window : 0, newest, window && newest > window ? newest - window : 0,
            oldest};
}

extern "C" __global__ void __launch_bounds__(THREADS, KIVI_PREFILL_BLOCKS) prefill(PrefillParams p) {
    wait_for_launch_before();
    Shared& sh = *(Shared*)dynamic_shared();
    const AttendParams& a = p.attend;
    const Cache& c = a.cache;
    u32 ratio = a.n_heads / c.n_kv_heads, warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4;
    Work work = find_work(p, ratio);
    if (!work.found) {
        return;
    }
    u32 len = c.len[work.seq], end = work.rows - 1;
    bool active = c.active[work.seq];
    State state = {};
    Lines lines;
    float scale = a.scale * LOG2_E;
    u32 warp_first = work.first + warp * WARP_ROWS;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            u32 line = min(warp_first + 16 * m + 8 * h + g, end);
            lines.at[m][h] = len + line / ratio;
            lines.slope[m][h] = KIVI_ALIBI ? a.alibi[work.head * ratio + line % ratio] : 0.0f;
            state.base[m][h] = LOWEST;
        }
    }
    Seen of_block = seen_by(work.first, min(work.first + BLOCK_ROWS - 1, end), len, ratio, a.window);
    Seen of_warp = seen_by(min(warp_first, end), min(warp_first + WARP_ROWS - 1, end), len, ratio, a.window);
    Span span = {work.seq, work.head, len, of_block.low, of_block.high, c.row_start[work.seq] - len};
    u32 first = span.low / TILE, tiles = active ? (span.high + TILE - 1) / TILE - first : 0;

    load_queries(a, sh, work, ratio);
    if (STAGES > 1 && tiles > 0) {
        fill_tile(c, span, first * TILE, sh.k[0], sh.v[0]);
    }
    for (u32 i = 0; i < tiles; ++i) {
        u32 token = (first + i) * TILE, stage = i % STAGES, ahead = i + STAGES - 1;
        if (STAGES > 1) {
            commit_async();
            wait_async<0>();
            __syncthreads();  // the tile is there, and all have done with the one before
        }
        if (ahead < tiles) {
            fill_tile(c, span, (first + ahead) * TILE, sh.k[ahead % STAGES], sh.v[ahead % STAGES]);
        }
        if (STAGES == 1) {
            commit_async();
            wait_async<0>();
            __syncthreads();
        }
        if (token < of_warp.high && token + TILE > of_warp.low) {
            float s[M_TILES][N_TILES][4] = {};
            logits(sh, stage, s);
            if (KIVI_ALIBI || token < of_warp.all_low || token + TILE > of_warp.all_high) {
                mask(s, lines, token, a.window, a.scale);
            }
            softmax(s, state, scale);
            mix(sh, stage, s, state);
        }
        if (STAGES == 1) {
            __syncthreads();
        }
    }
    finish(a, sh, work, ratio, state, active);
}
