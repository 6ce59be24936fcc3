// sums.cuh: what the warps of decode.cu, and its blocks, have of a row and unit becomes one result.
#pragma once
#include "softmax.cuh"
#include "products.cuh"

constexpr u32 PARTIAL = QUERIES * (HEAD_DIM + 2);  // floats: sums, references, totals
constexpr u32 QUADS = HEAD_DIM / 4;                // channels are added 4 at a time

// 2 to the difference of a reference and the largest one, which may both be of nothing.
__device__ __forceinline__ float weight(float reference, float largest) {
    return exp2_fast(reference - (largest == -INFINITY ? 0.0f : largest));
}

__device__ __forceinline__ void add(float4& sum, float by, const float4& x) {
    sum.x += by * x.x;
    sum.y += by * x.y;
    sum.z += by * x.z;
    sum.w += by * x.w;
}

// Tells a team each warp's references and totals, makes its sums relative to the largest reference of all, and leaves that
// and the sum of all totals in s.totals.
__device__ void share_totals(Shared& sh, const Team& team, State& s) {
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
    team.sync();
    float by[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        constexpr u32 EACH = (DECODE_WARPS + 7) / 8;  // warps to the lanes of a query
        u32 query = 2 * t + h;
        float all[EACH], largest = -INFINITY, total = 0.0f;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            u32 w = g + 8 * i;
            all[i] = w < team.warps ? sh.largest[team.first + w][query] : -INFINITY;
            largest = fmaxf(largest, all[i]);
        }
        for (u32 step = 4; step < WARP; step *= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        }
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            u32 w = g + 8 * i;
            total += w < team.warps ? sh.total[team.first + w][query] * weight(all[i], largest) : 0.0f;
        }
        for (u32 step = 4; step < WARP; step *= 2) {
            total += __shfl_xor_sync(ALL_LANES, total, step);
        }
        by[h] = s.fresh() ? 0.0f : weight(s.reference[h], largest);
        if (team.warp == 0 && g == 0) {
            sh.totals[team.first][query] = make_float2(largest, total);
        }
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] *= by[e % 2];
        }
    }
}

// Adds a team's results for n queries; emit is given query, first of 4 channels, their sums, and the query's reference and
// total. All have left the queries in shared memory when a sum is written there.
template <class Emit>
__device__ void add_warps(Shared& sh, const Team& team, State& s, u32 n, Emit emit) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float* mine = (float*)sh.regions[threadIdx.x / WARP];
    share_totals(sh, team, s);
#pragma unroll 1
    for (u32 first = 0; first < n; first += ROUND) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            u32 query = 2 * t + h - first;  // of this round, if it is one
            if (query < ROUND && first + query < n) {
#pragma unroll
                for (u32 i = 0; i < STEPS; ++i) {
                    mine[query * HEAD_DIM + channel_of(i, 0, g)] = s.sum[i][h];
                    mine[query * HEAD_DIM + channel_of(i, 1, g)] = s.sum[i][2 + h];
                }
            }
        }
        team.sync();
#pragma unroll 1
        for (u32 i = team.thread(); i < min(n - first, ROUND) * QUADS; i += team.threads()) {
            float4 sum = sh.regions[team.first][i];
#pragma unroll 4
            for (u32 w = 1; w < team.warps; ++w) {
                add(sum, 1.0f, sh.regions[team.first + w][i]);
            }
            u32 query = first + i / QUADS;
            emit(query, i % QUADS * 4, sum, sh.totals[team.first][query]);
        }
        team.sync();
    }
}

// Writes 4 channels of a result; of nothing, zeros.
__device__ __forceinline__ void emit_quad(Act* out, const float4& sum, float total) {
    float x[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        store(out + i, x[i] / total);
    }
}

// True in the block that is the last of a span's to leave its partial result. One thread's fences are enough for the block,
// since barriers come before and after.
__device__ bool arrive(const DecodeParams& p, Shared& sh, const Span& span) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        sh.last = atomicAdd(&p.arrived[span.first_block], 1u) == span.parts - 1;
        __threadfence();
        if (sh.last) {
            p.arrived[span.first_block] = 0;  // for the next launch
        }
    }
    __syncthreads();
    return sh.last;
}

// What a block left of a span. The first block's is in its second slot, the others' in their first.
__device__ __forceinline__ const float* partial_of(const DecodeParams& p, const Span& span, u32 part) {
    return p.partials + (u64)(2 * (span.first_block + part) + (part == 0)) * PARTIAL;
}

// Some of the parts' sums of 4 channels of a query, on their way.
struct Parts {
    static constexpr u32 AHEAD = 8;
    float reference[AHEAD];
    float4 sum[AHEAD];

    __device__ __forceinline__ void load(const DecodeParams& p, const Span& span, u32 query, u32 channel, u32 first, u32 step) {
#pragma unroll
        for (u32 j = 0; j < AHEAD; ++j) {
            const float* x = partial_of(p, span, min(first + j * step, span.parts - 1));
            sum[j] = __ldcg((const float4*)(x + query * HEAD_DIM + channel));
            reference[j] = first + j * step < span.parts ? __ldcg(x + QUERIES * HEAD_DIM + query) : -INFINITY;
        }
    }
};

// Finds the largest reference of each of n queries among the parts, and the sum of their totals relative to it; a warp each.
__device__ void share_totals_of_parts(const DecodeParams& p, Shared& sh, const Span& span, u32 n) {
    u32 query = threadIdx.x / WARP;
    float largest = -INFINITY, total = 0.0f;
    if (query < n) {
#pragma unroll 1
        for (u32 part = threadIdx.x % WARP; part < span.parts; part += WARP) {
            const float* x = partial_of(p, span, part) + QUERIES * HEAD_DIM + query;
            float reference = __ldcg(x), more = __ldcg(x + QUERIES), both = fmaxf(largest, reference);
            total = total * weight(largest, both) + more * weight(reference, both);
            largest = both;
        }
        float all = warp_max(largest);
        total = warp_sum(total * weight(largest, all));
        if (threadIdx.x % WARP == 0) {
            sh.totals[0][query] = make_float2(all, total);
        }
    }
    __syncthreads();
}

// Adds up what the blocks left of a span, several threads to each 4 channels of a query, in a fixed order.
__device__ void add_partials(const DecodeParams& p, Shared& sh, const Span& span, u32 n, Act* out) {
    static_assert(sizeof(sh.regions) >= DECODE_BLOCK * sizeof(float4), "room for a sum of each thread");
    float4* sums = sh.regions[0];
    u32 items = n * QUADS, threads = items < DECODE_BLOCK ? DECODE_BLOCK / items : 1;
    u32 first = items < DECODE_BLOCK ? threadIdx.x / items : 0;
#pragma unroll 1
    for (u32 base = 0; base < items; base += DECODE_BLOCK) {
        u32 item = items < DECODE_BLOCK ? threadIdx.x % items : base + threadIdx.x, query = min(item / QUADS, n - 1), part = first;
        float2 totals = make_float2(0.0f, 0.0f);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
        do {
            Parts parts;
            parts.load(p, span, query, item % QUADS * 4, part, threads);
            if (part == first) {  // while they are on their way
                share_totals_of_parts(p, sh, span, n);
                totals = sh.totals[0][query];
            }
#pragma unroll
            for (u32 j = 0; j < Parts::AHEAD; ++j) {
                add(sum, weight(parts.reference[j], totals.x), parts.sum[j]);
            }
            part += Parts::AHEAD * threads;
        } while (part < span.parts);
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (item < items && first == 0) {
#pragma unroll 4
            for (u32 j = 1; j < threads; ++j) {
                add(sum, 1.0f, sums[threadIdx.x + j * items]);
            }
            emit_quad(out + item * 4, sum, totals.y);
        }
        __syncthreads();
    }
}
