// decode.cu: attention of single rows over long caches, at the speed of memory.
//   grid: as many blocks as the device holds at a time; they share all rows' tokens evenly
//
// Work is a line: for each row and unit (a KV head and up to QUERIES of its query heads) its packed tiles of TILE
// tokens, then its tiles of 16 rows in full precision, each as long as its bytes. A block takes an equal piece of the
// line. A span is what a piece has of one row and unit. The warps of a block take a span's tiles in turn, rows first,
// each with a softmax of its own, and copy packed tiles STAGES ahead, beyond the end of a span. A span that is not a
// whole row and unit leaves a partial result; the block that arrives last adds them up. Nothing depends on which one
// that is.
//
// Tiles are the 16-row operand of mma.m16n8k16, the queries its 8 columns (docs/cuda.md has the budget):
//   S^T = K Q^T    on raw codes, q folded with the group's scales; zeros are one row more, the same for all tokens
//   O^T = V^T P^T  on raw codes, p folded with the tokens' scales; zeros are further rows, one a group, and ones add
//                  up p
// p is kept within f16 by a reference that follows the largest logit only when it must.
#include "copies.cuh"
#include "tiles.cuh"

constexpr u32 PARTIAL = QUERIES * (HEAD_DIM + 2);  // floats: sums, references, totals

// 2 to the difference of a reference and the largest one, which may both be of nothing.
__device__ __forceinline__ float weight(float reference, float largest) {
    return exp2_fast(reference - (largest == -INFINITY ? 0.0f : largest));
}

// Tells the block each warp's references and totals, and makes the warps' sums relative to the largest reference.
__device__ void share_totals(Shared& sh, State& s) {
    u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        for (u32 step = 4; step < WARP; step *= 2) {
            s.total[h] += __shfl_xor_sync(ALL_LANES, s.total[h], step);
        }
        if (g == 0) {
            sh.largest[warp][2 * t + h] = s.fresh() ? -INFINITY : s.reference[h];
            sh.total[warp][2 * t + h] = s.total[h];
        }
    }
    __syncthreads();
    float by[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        float largest = sh.largest[0][2 * t + h];
#pragma unroll
        for (u32 w = 1; w < WARPS; ++w) {
            largest = fmaxf(largest, sh.largest[w][2 * t + h]);
        }
        by[h] = s.fresh() ? 0.0f : weight(s.reference[h], largest);
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] *= by[e % 2];
        }
    }
}

// The largest reference of the warps, and the sum of their totals relative to it.
__device__ __forceinline__ float2 add_totals(const Shared& sh, u32 query) {
    float largest = sh.largest[0][query], total = 0.0f;
#pragma unroll
    for (u32 w = 1; w < WARPS; ++w) {
        largest = fmaxf(largest, sh.largest[w][query]);
    }
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
        total += sh.total[w][query] * weight(sh.largest[w][query], largest);
    }
    return make_float2(largest, total);
}

// Adds the warps' results for n queries; emit is given query, channel, sum, and the query's reference and total.
template <class Emit>
__device__ void add_warps(Shared& sh, State& s, u32 n, Emit emit) {
    u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    share_totals(sh, s);
    for (u32 first = 0; first < n; first += ROUND) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            u32 query = 2 * t + h - first;  // of this round, if it is one
            if (query < ROUND && first + query < n) {
#pragma unroll
                for (u32 i = 0; i < STEPS; ++i) {
                    sh.sums[warp][query][channel_of(i, 0, g)] = s.sum[i][h];
                    sh.sums[warp][query][channel_of(i, 1, g)] = s.sum[i][2 + h];
                }
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < min(n - first, ROUND) * HEAD_DIM; i += BLOCK) {
            u32 query = i / HEAD_DIM, channel = i % HEAD_DIM;
            float sum = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) {
                sum += sh.sums[w][query][channel];
            }
            emit(first + query, channel, sum, add_totals(sh, first + query));
        }
        __syncthreads();
    }
}

// True in the block that is the last of a span's to leave its partial result.
__device__ bool arrive(const DecodeParams& p, Shared& sh, const Span& span) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        sh.last = atomicAdd(&p.arrived[span.first_block], 1u) == span.parts - 1;
        if (sh.last) {
            p.arrived[span.first_block] = 0;  // for the next launch
        }
    }
    __syncthreads();
    __threadfence();
    return sh.last;
}

// A sum of 4 channels with its reference and total; more may be added.
struct Sum {
    float largest, total;
    float4 sum;

    __device__ __forceinline__ void add(float reference, float more, float4 x) {
        float both = fmaxf(largest, reference), mine = weight(largest, both), its = weight(reference, both);
        largest = both;
        total = total * mine + more * its;
        sum.x = sum.x * mine + x.x * its;
        sum.y = sum.y * mine + x.y * its;
        sum.z = sum.z * mine + x.z * its;
        sum.w = sum.w * mine + x.w * its;
    }
};

// Adds some of what blocks left of a span, for a query and 4 channels from one on: parts first, first + step, ..
__device__ Sum add_parts(const DecodeParams& p, const Span& span, u32 query, u32 channel, u32 first, u32 step) {
    constexpr u32 AHEAD = 8;
    Sum all = {-INFINITY, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
    for (u32 base = first; base < span.parts; base += AHEAD * step) {
        float reference[AHEAD], total[AHEAD];
        float4 sum[AHEAD];
#pragma unroll
        for (u32 j = 0; j < AHEAD; ++j) {
            u32 part = min(base + j * step, span.parts - 1);
            // The first block's is in its second slot, the others' in their first.
            const float* x = p.partials + (u64)(2 * (span.first_block + part) + (part == 0)) * PARTIAL;
            sum[j] = __ldcg((const float4*)(x + query * HEAD_DIM + channel));
            reference[j] = __ldcg(x + QUERIES * HEAD_DIM + query);
            total[j] = __ldcg(x + QUERIES * HEAD_DIM + QUERIES + query);
        }
#pragma unroll
        for (u32 j = 0; j < AHEAD; ++j) {
            if (base + j * step < span.parts) {
                all.add(reference[j], total[j], sum[j]);
            }
        }
    }
    return all;
}

// Adds up what the blocks left of a span, several threads to each 4 channels of a query, in a fixed order.
__device__ void add_partials(const DecodeParams& p, Shared& sh, const Span& span, u32 n, Act* out) {
    static_assert(sizeof(sh.sums) >= BLOCK * sizeof(Sum), "room for a sum of each thread");
    constexpr u32 QUADS = HEAD_DIM / 4;
    Sum* sums = (Sum*)sh.sums;
    u32 items = n * QUADS, threads = items < BLOCK ? BLOCK / items : 1;
    for (u32 base = 0; base < items; base += BLOCK) {
        u32 item = items < BLOCK ? threadIdx.x % items : base + threadIdx.x, first = items < BLOCK ? threadIdx.x / items : 0;
        bool some = item < items && first < threads;
        if (some) {
            sums[threadIdx.x] = add_parts(p, span, item / QUADS, item % QUADS * 4, first, threads);
        }
        __syncthreads();
        if (some && first == 0) {
            Sum all = sums[threadIdx.x];
            for (u32 j = 1; j < threads; ++j) {
                Sum more = sums[threadIdx.x + j * items];
                all.add(more.largest, more.total, more.sum);
            }
            float x[4] = {all.sum.x, all.sum.y, all.sum.z, all.sum.w};
            for (u32 i = 0; i < 4; ++i) {
                store(&out[item * 4 + i], x[i] / all.total);
            }
        }
        __syncthreads();
    }
}

__device__ void run_span(const DecodeParams& p, Shared& sh, const Span& span, Copies& copies) {
    const AttendParams& a = p.attend;
    const Cache& c = a.cache;
    u32 ratio = a.n_heads / c.n_kv_heads, first = span.unit / c.n_kv_heads * QUERIES;
    u32 n = min(QUERIES, ratio - first), head = span.head * ratio + first;
    const Act* q_rows = a.q + span.row * a.q_stride + (u64)head * HEAD_DIM;
    for (u32 i = threadIdx.x; i < QUERIES * HEAD_DIM; i += BLOCK) {
        u32 query = i / HEAD_DIM;
        store(&sh.q[query][i % HEAD_DIM], query < n ? to_f32(q_rows[i]) : 0.0f);
    }
    __syncthreads();
    Queries q;
    q.load(a, sh, head, n);
    State s;
    s.clear();
    for (u32 tile = span.row_tile + threadIdx.x / WARP; tile < span.row_tile_end; tile += WARPS) {
        use_rows(c, sh, span, tile, q, s);
    }
    unsettle(s);
    u32 token = token_of(span, span.tile + threadIdx.x / WARP), end = token_of(span, span.tile_end);
    u32 packed = min(end, min(span.extent.k_packed, span.extent.v_packed)), start = span.extent.start;
    while (token < end) {
        if (token < start || token + TILE > packed) {
            use_tile<false>(c, sh, span, copies.wait(), token, q, s);
            copies.release(c, sh);
            token += WARPS * TILE;
        }
        // By themselves, so that what seldom happens takes none of their registers.
        u32 tiles = packed >= token + TILE ? (packed - token - TILE) / (WARPS * TILE) + 1 : 0;
        for (u32 i = 0; i < tiles; ++i) {
            use_tile<true>(c, sh, span, copies.wait(), token + i * (WARPS * TILE), q, s);
            copies.release(c, sh);
        }
        token += tiles * (WARPS * TILE);
    }
    settle(s);
    Act* out = a.out + span.row * a.out_stride + (u64)head * HEAD_DIM;
    if (span.parts == 1) {
        add_warps(sh, s, n, [&](u32 query, u32 channel, float sum, float2 total) {
            store(&out[query * HEAD_DIM + channel], span.extent.active ? sum / total.y : 0.0f);
        });
        return;
    }
    float* partial = p.partials + (u64)span.slot * PARTIAL;
    add_warps(sh, s, n, [&](u32 query, u32 channel, float sum, float2 total) {
        __stcg(partial + query * HEAD_DIM + channel, sum);
        if (channel == 0) {
            __stcg(partial + QUERIES * HEAD_DIM + query, total.x);
            __stcg(partial + QUERIES * HEAD_DIM + QUERIES + query, total.y);
        }
    });
    if (arrive(p, sh, span)) {
        add_partials(p, sh, span, n, out);
    }
}

extern "C" __global__ void __launch_bounds__(KIVI_BLOCK, KIVI_BLOCKS_PER_SM) decode(const __grid_constant__ DecodeParams p) {
    wait_for_launch_before();
    Shared& sh = *(Shared*)dynamic_shared();
    Line line = p.attend.rows <= WARP ? measure_few(p, sh) : measure(p, sh);
    if (blockIdx.x >= line.blocks) {
        return;
    }
    u64 end = line.start(blockIdx.x + 1);
    Copies copies;
    do {
        __syncthreads();
        if (threadIdx.x == 0) {
            sh.n_spans = 0;
            while (sh.n_spans < MAX_SPANS && sh.line < end) {
                sh.spans[sh.n_spans] = next_span(p, sh, line, end);
                sh.n_spans += 1;
            }
        }
        __syncthreads();
        copies.restart(p.attend.cache, sh);
        for (u32 i = 0; i < sh.n_spans; ++i) {
            run_span(p, sh, sh.spans[i], copies);
        }
    } while (sh.line < end);
}
