// decode.cu: attention of single rows over long caches, at the speed of memory.
//   grid: as many blocks as the device holds at a time; they share all rows' tokens evenly
//
// Work is a line: for each row and unit (a KV head and up to QUERIES of its query heads) first its packed tiles of TILE
// tokens, then its tiles of 16 rows in full precision, each as long as its bytes. A block takes an equal piece of the
// line. A span is what a piece has of one row and unit. The warps of a block take a span's tiles in turn, each with a
// softmax of its own, and copy tiles STAGES ahead, beyond the end of a span. A span that is not a whole row and unit
// leaves a partial result; the block that arrives last adds them up. Nothing depends on which one that is.
//
// Tiles are the 16-row operand of mma.m16n8k16, the queries its 8 columns (docs/cuda.md has the budget):
//   S^T = K Q^T    on raw codes, q folded with the group's scales; zeros are one row more, the same for all tokens
//   O^T = V^T P^T  on raw codes, p folded with the tokens' scales; zeros are further rows, one a group
// p is kept within f16 by a reference that follows the largest logit only when it must.
#include "copies.cuh"
#include "tiles.cuh"

// The sum of the warps' results, relative to one reference: unscaled sums in sh.sums[0], references and totals in
// sh.largest[0], sh.total[0].
__device__ void add_warps(Shared& sh, State& s) {
    u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (u32 h = 0; h < 2; ++h) {
        for (u32 step = 4; step < WARP; step *= 2) {
            s.total[h] += __shfl_xor_sync(ALL_LANES, s.total[h], step);
        }
        if (g == 0) {
            sh.largest[warp][2 * t + h] = s.fresh ? -INFINITY : s.reference[h];
            sh.total[warp][2 * t + h] = s.total[h];
        }
    }
    __syncthreads();
    float by[2], largest[2], total[2];
    for (u32 h = 0; h < 2; ++h) {
        largest[h] = -INFINITY;
        total[h] = 0.0f;
        for (u32 w = 0; w < WARPS; ++w) {
            largest[h] = fmaxf(largest[h], sh.largest[w][2 * t + h]);
        }
        float base = largest[h] == -INFINITY ? 0.0f : largest[h];
        by[h] = s.fresh ? 0.0f : exp2_fast(s.reference[h] - base);
        for (u32 w = 0; w < WARPS; ++w) {
            total[h] += sh.total[w][2 * t + h] * exp2_fast(sh.largest[w][2 * t + h] - base);
        }
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] *= by[e % 2];
        }
    }
    for (u32 half = WARPS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (warp >= half && warp < 2 * half) {
#pragma unroll
            for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    sh.sums[warp - half][2 * t + e % 2][channel_of(i, e / 2, g)] = s.sum[i][e];
                }
            }
        }
        __syncthreads();
        if (warp < half) {
#pragma unroll
            for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    s.sum[i][e] += sh.sums[warp][2 * t + e % 2][channel_of(i, e / 2, g)];
                }
            }
        }
    }
    if (warp == 0) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                sh.sums[0][2 * t + e % 2][channel_of(i, e / 2, g)] = s.sum[i][e];
            }
        }
        for (u32 h = 0; h < 2 && g == 0; ++h) {
            sh.largest[0][2 * t + h] = largest[h];
            sh.total[0][2 * t + h] = total[h];
        }
    }
    __syncthreads();
}

constexpr u32 PARTIAL = QUERIES * (HEAD_DIM + 2);  // floats: sums, references, totals

// Leaves the block's result of a span for the others; true in the block that is the last to do so.
__device__ bool leave_partial(const DecodeParams& p, Shared& sh, const Span& span) {
    float* partial = p.partials + (u64)span.slot * PARTIAL;
    for (u32 i = threadIdx.x; i < QUERIES * HEAD_DIM; i += BLOCK) {
        __stcg(partial + i, sh.sums[0][i / HEAD_DIM][i % HEAD_DIM]);
    }
    if (threadIdx.x < QUERIES) {
        __stcg(partial + QUERIES * HEAD_DIM + threadIdx.x, sh.largest[0][threadIdx.x]);
        __stcg(partial + QUERIES * HEAD_DIM + QUERIES + threadIdx.x, sh.total[0][threadIdx.x]);
    }
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

// Adds up what the blocks left of a span: as add_warps leaves it.
__device__ void add_partials(const DecodeParams& p, Shared& sh, const Span& span) {
    // The first block's is in its second slot, the others' in their first.
    auto partial = [&](u32 i) { return p.partials + (u64)(2 * (span.first_block + i) + (i == 0)) * PARTIAL; };
    for (u32 i = threadIdx.x; i < QUERIES * HEAD_DIM; i += BLOCK) {
        u32 n = i / HEAD_DIM;
        float largest = -INFINITY, total = 0.0f, sum = 0.0f;
        for (u32 part = 0; part < span.parts; ++part) {
            largest = fmaxf(largest, __ldcg(partial(part) + QUERIES * HEAD_DIM + n));
        }
        float base = largest == -INFINITY ? 0.0f : largest;
        for (u32 part = 0; part < span.parts; ++part) {
            const float* x = partial(part);
            float by = exp2_fast(__ldcg(x + QUERIES * HEAD_DIM + n) - base);
            total += __ldcg(x + QUERIES * HEAD_DIM + QUERIES + n) * by;
            sum += __ldcg(x + i) * by;
        }
        sh.sums[0][n][i % HEAD_DIM] = sum;
        if (i % HEAD_DIM == 0) {
            sh.total[0][n] = total;
        }
    }
    __syncthreads();
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
    for (u32 tile = span.tile + threadIdx.x / WARP; tile < span.tile_end; tile += WARPS) {
        u32 token = token_of(span, tile);
        const char* stage = copies.wait();
        if (token + TILE <= min(span.extent.k_packed, span.extent.v_packed)) {
            use_packed(span, stage, token, q, s);
        } else {
            use_mixed(c, sh, span, stage, token, q, s);
        }
        copies.release(c, sh);
    }
    settle(s);
    for (u32 tile = span.row_tile + threadIdx.x / WARP; tile < span.row_tile_end; tile += WARPS) {
        use_rows(c, sh, span, tile, q, s);
    }
    add_warps(sh, s);
    bool done = span.parts == 1;
    if (!done && leave_partial(p, sh, span)) {
        add_partials(p, sh, span);
        done = true;
    }
    Act* out = a.out + span.row * a.out_stride + (u64)head * HEAD_DIM;
    for (u32 i = threadIdx.x; done && i < n * HEAD_DIM; i += BLOCK) {
        float x = sh.sums[0][i / HEAD_DIM][i % HEAD_DIM] / sh.total[0][i / HEAD_DIM];
        store(&out[i], span.extent.active ? x : 0.0f);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(KIVI_BLOCK, KIVI_BLOCKS_PER_SM) decode(DecodeParams p) {
    Shared& sh = *(Shared*)dynamic_shared();
    Line line = measure(p, sh);
    if (blockIdx.x >= line.blocks) {
        return;
    }
    u64 end = line.start(blockIdx.x + 1);
    Copies copies(sh);
    while (sh.line < end) {
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
    }
}
