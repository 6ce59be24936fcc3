// sums.cuh: what the warps of decode.cu, and its blocks, have of a row and unit becomes one result.
#pragma once
#include "softmax.cuh"
#include "products.cuh"

constexpr u32 PARTIAL = QUERIES * (HEAD_DIM + 2);  // floats: sums; of each query reference and total
constexpr u32 QUADS = HEAD_DIM / 4;                // channels are added 4 at a time

// 2 to the difference of a reference and the largest one, which may both be of nothing.
__device__ __forceinline__ float weight(float reference, float largest) {
    return exp2_fast(reference - (largest == -INFINITY ? 0.0f : largest));
}

// Sums of 4 channels of a query, and what they and their total are relative to.
struct Sum {
    float reference = -INFINITY, total = 0.0f;
    float4 of = {0.0f, 0.0f, 0.0f, 0.0f};

    __device__ __forceinline__ void scale(float by) {
        total *= by;
        of = {of.x * by, of.y * by, of.z * by, of.w * by};
    }

    template <u32 N>
    __device__ __forceinline__ void add(const Sum (&more)[N]) {
        float largest = reference;
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            largest = fmaxf(largest, more[j].reference);
        }
        scale(weight(reference, largest));
        reference = largest;
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            float by = weight(more[j].reference, largest);
            total += by * more[j].total;
            of.x += by * more[j].of.x;
            of.y += by * more[j].of.y;
            of.z += by * more[j].of.z;
            of.w += by * more[j].of.w;
        }
    }
};

// Tells a team the references and totals of a warp.
__device__ __forceinline__ void tell_totals(Shared& sh, State& s) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        for (u32 step = 4; step < WARP; step *= 2) {
            s.total[h] += __shfl_xor_sync(ALL_LANES, s.total[h], step);
        }
        if (g == 0) {
            sh.totals[threadIdx.x / WARP][2 * t + h] = make_float2(s.fresh() ? -INFINITY : s.reference[h], s.total[h]);
        }
    }
}

// Adds what a team's warps have of a query, of whose channels they left 4 at i of their regions.
__device__ __forceinline__ Sum sum_of_warps(const Shared& sh, const Team& team, u32 query, u32 i) {
    constexpr u32 AT_ONCE = 4;
    Sum sum;
#pragma unroll 1
    for (u32 w = 0; w < team.warps; w += AT_ONCE) {
        Sum more[AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; ++j) {
            if (w + j < team.warps) {
                float2 totals = sh.totals[team.first + w + j][query];
                more[j] = {totals.x, totals.y, sh.regions[team.first + w + j][i]};
            }
        }
        sum.add(more);
    }
    return sum;
}

// Adds a team's results for n queries; emit is given query, first of 4 channels and their sums. All have left the queries in
// shared memory when a sum is written there.
template <class Emit>
__device__ void add_warps(Shared& sh, const Team& team, State& s, u32 n, Emit emit) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float* mine = (float*)sh.regions[threadIdx.x / WARP];
    tell_totals(sh, s);
    team.sync();
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
            u32 query = first + i / QUADS;
            emit(query, i % QUADS * 4, sum_of_warps(sh, team, query, i));
        }
        team.sync();
    }
}

// Writes 4 channels of a result; of nothing, zeros.
__device__ __forceinline__ void emit_quad(Act* out, const float4& sum, float total) {
    float by = 1.0f / total;
    *(uint2*)out = make_uint2(pack(sum.x * by, sum.y * by, Act()), pack(sum.z * by, sum.w * by, Act()));
}

// True in the block that is the last of a span's to leave its partial result. One thread's order is enough for the block,
// since barriers come before and after.
__device__ bool arrive(const DecodeParams& p, Shared& sh, const Span& span) {
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* arrived = &p.arrived[span.first_block];
        sh.last = add_in_order(arrived, 1) == span.parts - 1;
        if (sh.last) {
            *arrived = 0;  // for the next launch
        }
    }
    __syncthreads();
    return sh.last;
}

// What a block left of a span. The first block's is in its second slot, the others' in their first.
__device__ __forceinline__ const float* partial_of(const DecodeParams& p, const Span& span, u32 part) {
    return p.partials + (u64)(2 * (span.first_block + part) + (part == 0)) * PARTIAL;
}

// Of a partial result, 4 channels of a query; and back.
__device__ __forceinline__ Sum read_partial(const float* partial, u32 query, u32 channel) {
    float4 of = __ldcg((const float4*)(partial + query * HEAD_DIM + channel));
    float2 totals = __ldcg((const float2*)(partial + QUERIES * HEAD_DIM) + query);
    return {totals.x, totals.y, of};
}
__device__ __forceinline__ void write_partial(float* partial, u32 query, u32 channel, const Sum& sum) {
    __stcg((float4*)(partial + query * HEAD_DIM + channel), sum.of);
    if (channel == 0) {
        __stcg((float2*)(partial + QUERIES * HEAD_DIM) + query, make_float2(sum.reference, sum.total));
    }
}

constexpr u32 PARTS_AT_ONCE = 8;  // that a thread reads

// Adds 4 channels of a query of the parts first, first + step, ..
__device__ __forceinline__ Sum sum_of_parts(const DecodeParams& p, const Span& span, u32 query, u32 channel, u32 first, u32 step) {
    Sum sum;
#pragma unroll 1
    for (u32 part = first; part < span.parts; part += PARTS_AT_ONCE * step) {
        Sum more[PARTS_AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < PARTS_AT_ONCE; ++j) {
            if (part + j * step < span.parts) {
                more[j] = read_partial(partial_of(p, span, part + j * step), query, channel);
            }
        }
        sum.add(more);
    }
    return sum;
}

// Adds up what the blocks left of a span, as many threads as parts need to each 4 channels of a query, in a fixed order.
__device__ void add_partials(const DecodeParams& p, Shared& sh, const Span& span, u32 n, Act* out) {
    static_assert(sizeof(sh.regions) >= DECODE_BLOCK * sizeof(Sum), "room for a sum of each thread");
    Sum* sums = (Sum*)sh.regions;
    u32 items = n * QUADS, needed = (span.parts + PARTS_AT_ONCE - 1) / PARTS_AT_ONCE;
    u32 threads = max(min(DECODE_BLOCK / items, needed), 1u);
#pragma unroll 1
    for (u32 base = 0; base < items; base += DECODE_BLOCK) {
        u32 first = threadIdx.x / items, item = base + threadIdx.x - first * items;
        Sum sum;
        if (first < threads && item < items) {
            sum = sum_of_parts(p, span, item / QUADS, item % QUADS * 4, first, threads);
            sums[threadIdx.x] = sum;
        }
        __syncthreads();
        if (item < items && first == 0) {
#pragma unroll 1
            for (u32 j = 1; j < threads; ++j) {
                Sum more[1] = {sums[threadIdx.x + j * items]};
                sum.add(more);
            }
            emit_quad(out + item * 4, sum.of, sum.total);
        }
        __syncthreads();
    }
}
