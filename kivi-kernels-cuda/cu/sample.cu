// sample.cu: a token of each row, drawn; one block a row.
//   order   the largest logit first, the lower place first among equals
//   c_j     the sum of the weights up to token j
//   out     of what top-k, top-p and min-p keep, the token that wins the race: the largest weight by a random time
// Nothing is sorted. Top-k and top-p keep a beginning of the order, whose end is where sums over the order pass a goal; it is
// looked for among bins of ranks, then among the ranks of one bin. Weights are integers (docs/numerics.md): their sums are the
// same in any order, and the tokens those of every other backend.
#include "kivi.cuh"

struct Draw {
    float temperature;  // 0 takes the likeliest
    u32 top_k;          // 0 keeps all
    float top_p;        // 1 keeps all
    float min_log_p;    // minus infinity keeps all
    u32 bits[2];        // random, low half first
};

struct SampleParams {
    u32* out;           // [rows]
    const u16* logits;  // [rows, cols], the bits of Act
    const Draw* draws;  // [rows]
    u64 logits_stride;
    u64 cols;
};
KIVI_CHECK_SIZE(SampleParams);

constexpr u32 BIN = WARP;  // ranks of a bin, a lane each
constexpr u32 BINS = (1 << 16) / BIN;
constexpr u32 EACH = BINS / BLOCK;

// A number of 16 bits that grows with the logit.
__device__ u32 rank_of(u16 bits) {
    bits = bits == 0x8000 ? 0 : bits;  // -0 and 0 are equal
    return bits >> 15 ? 0xffff & ~(u32)bits : bits | 0x8000u;
}

__device__ float logit_of(u32 rank) {
    u16 bits = rank >> 15 ? rank ^ 0x8000 : ~rank;
    Act x;
    memcpy(&x, &bits, sizeof x);
    return to_f32(x);
}

// 2^40 e^d for d <= 0. No operation may be fused with another.
__device__ u64 weight_of(float d) {
    constexpr float POWERS[] = {1.0f,          0.6931472f,    0.2402265f,     0.05550411f,
                                0.009618129f, 0.0013333558f, 0.0001540353f, 1.5252734e-5f};  // of ln 2, by k!
    float y = __fmul_rn(d, 1.442695f);
    if (!(y >= -41.0f)) {
        return 0;
    }
    float whole = rintf(y);
    float rest = __fsub_rn(y, whole);
    float power = POWERS[7];
#pragma unroll
    for (int k = 6; k >= 0; --k) {
        power = __fadd_rn(__fmul_rn(power, rest), POWERS[k]);
    }
    return (u64)(u32)__fmul_rn(power, 0x1p31f) << 9 >> (u32)-whole;
}

// 2^33 v, where v in (0, 1) is the random number of token j: SplitMix64.
__device__ u64 numerator_of(const Draw& draw, u32 j) {
    u64 z = ((u64)draw.bits[1] << 32 | draw.bits[0]) + (j + 1ull) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (z ^ z >> 31) >> 32 << 1 | 1;
}

// -ln(1 - v): with 1 - v = 2^-k (1 + g), 1 + g in [0.75, 1.5). No operation may be fused with another.
__device__ float exponential(u64 numerator) {
    constexpr float SERIES[] = {1.0f, 0.33333334f, 0.2f, 0.14285715f, 0.11111111f};
    u64 rest = (1ull << 33) - numerator;
    u32 k = __clzll(rest) - 31;  // from here on in [0.5, 1)
    k += rest << k < 3ull << 31;
    float g = __fmul_rn((float)(long long)((rest << k) - (1ull << 33)), 0x1p-33f);
    float s = __fdiv_rn(g, __fadd_rn(2.0f, g));
    float q = __fmul_rn(s, s);
    float sum = SERIES[4];
#pragma unroll
    for (int i = 3; i >= 0; --i) {
        sum = __fadd_rn(__fmul_rn(sum, q), SERIES[i]);
    }
    return __fsub_rn(__fmul_rn((float)k, 0.6931472f), __fmul_rn(__fmul_rn(2.0f, s), sum));
}

// A number that grows with x, and falls with j among equals.
__device__ u64 key_of(u32 x, u32 j) { return (u64)x << 32 | (u32)~j; }

// Sums over the order up to and with each bin, the highest first, and how many logits have each rank of one bin.
struct Line {
    u32 counts[BINS];
    u64 weights[BINS];
    u32 equals[BIN];
    u32 found;  // the bin
};

// Tokens of equal logits, and the sums of the weights before and with them.
struct Place {
    u32 rank, equals;
    u64 each, before, through;
};

enum By { COUNT, WEIGHT };

struct Row {
    const u16* x;
    u32 cols;
    float largest, temperature;

    __device__ float distance(u32 rank) const { return __fdiv_rn(__fsub_rn(logit_of(rank), largest), temperature); }
    __device__ u64 weight(u32 rank) const { return weight_of(distance(rank)); }
};

// The sum of x over the threads of the warp up to and with this one.
template <class T>
__device__ T warp_through(T x) {
    for (u32 step = 1; step < WARP; step *= 2) {
        T before = __shfl_up_sync(ALL_LANES, x, step);
        x += threadIdx.x % WARP >= step ? before : 0;
    }
    return x;
}

// The sum of x over the threads of the block before this one.
template <class T>
__device__ T block_before(T x) {
    __shared__ T of_warp[WARPS];
    T through = warp_through(x);
    if (threadIdx.x % WARP == WARP - 1) {
        of_warp[threadIdx.x / WARP] = through;
    }
    __syncthreads();
    T before = through - x;
    for (u32 warp = 0; warp < threadIdx.x / WARP; ++warp) {
        before += of_warp[warp];
    }
    __syncthreads();  // the next call may write of_warp
    return before;
}

__device__ void fill(Line& line, const Row& row) {
    for (u32 bin = threadIdx.x; bin < BINS; bin += BLOCK) {
        line.counts[bin] = 0;
        line.weights[bin] = 0;
    }
    __syncthreads();
#pragma unroll 4
    for (u32 j = threadIdx.x; j < row.cols; j += BLOCK) {
        u32 rank = rank_of(row.x[j]);
        u64 weight = row.weight(rank);
        atomicAdd(&line.counts[rank / BIN], 1u);
        if (weight > 0) {
            atomicAdd(&line.weights[rank / BIN], weight);
        }
    }
    __syncthreads();
    u32 first = BINS - threadIdx.x * EACH;  // this thread has the bins below, highest first
    u32 count = 0;
    u64 weight = 0;
    for (u32 bin = first; bin-- > first - EACH;) {
        count += line.counts[bin];
        weight += line.weights[bin];
    }
    count = block_before(count);
    weight = block_before(weight);
    for (u32 bin = first; bin-- > first - EACH;) {
        line.counts[bin] = count += line.counts[bin];
        line.weights[bin] = weight += line.weights[bin];
    }
    __syncthreads();
}

// Of the order, the token before which goal tokens are (COUNT), or the first through which the weights are more than goal (WEIGHT).
__device__ Place find(Line& line, const Row& row, By by, u64 goal) {
    auto is_at = [&](u64 count_before, u64 count, u64 before, u64 through) {
        return by == COUNT ? count_before <= goal && goal < count : before <= goal && goal < through;
    };
    for (u32 bin = threadIdx.x; bin < BINS; bin += BLOCK) {
        bool top = bin == BINS - 1;
        u32 count = top ? 0 : line.counts[bin + 1];
        u64 weight = top ? 0 : line.weights[bin + 1];
        if (is_at(count, line.counts[bin], weight, line.weights[bin])) {
            line.found = bin;
        }
    }
    if (threadIdx.x < BIN) {
        line.equals[threadIdx.x] = 0;
    }
    __syncthreads();
    u32 bin = line.found;
#pragma unroll 8
    for (u32 j = threadIdx.x; j < row.cols; j += BLOCK) {
        u32 rank = rank_of(row.x[j]);
        if (rank / BIN == bin) {
            atomicAdd(&line.equals[rank % BIN], 1u);
        }
    }
    __syncthreads();
    // Every warp does the rest, a lane a rank.
    u32 rank = bin * BIN + BIN - 1 - threadIdx.x % WARP;
    u32 equals = line.equals[rank % BIN];
    u64 each = row.weight(rank);
    bool top = bin == BINS - 1;
    u64 count = warp_through(equals) + (top ? 0 : line.counts[bin + 1]);
    u64 through = warp_through(equals * each) + (top ? 0 : line.weights[bin + 1]);
    u64 before = through - equals * each;
    bool here = is_at(count - equals, count, before, through);
    u32 lane = __ffs(__ballot_sync(ALL_LANES, here)) - 1;
    Place place;
    place.rank = __shfl_sync(ALL_LANES, rank, lane);
    place.equals = __shfl_sync(ALL_LANES, equals, lane);
    place.each = __shfl_sync(ALL_LANES, each, lane);
    place.before = __shfl_sync(ALL_LANES, before, lane);
    place.through = __shfl_sync(ALL_LANES, through, lane);
    __syncthreads();  // the next call may write found and equals
    return place;
}

// Where the i-th logit of a rank is.
__device__ u32 nth(const Row& row, u32 rank, u32 i) {
    __shared__ u32 place;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 piece = (row.cols + BLOCK - 1) / BLOCK * WARP;  // of a warp, one after the other
    auto here = [&](u32 start) {
        u32 j = warp * piece + start + lane;
        return __ballot_sync(ALL_LANES, j < row.cols && rank_of(row.x[j]) == rank);
    };
    u32 count = 0;
    for (u32 start = 0; start < piece; start += WARP) {
        count += __popc(here(start));
    }
    u32 before = __shfl_sync(ALL_LANES, block_before(lane == 0 ? count : 0), 0);
    if (before <= i && i < before + count) {
        for (u32 start = 0; start < piece; start += WARP) {
            u32 found = here(start);
            if ((found >> lane & 1) && before + __popc(found & ((1u << lane) - 1)) == i) {
                place = warp * piece + start + lane;
            }
            before += __popc(found);
        }
    }
    __syncthreads();
    return place;
}

// The key, by rank, of the last token that top-k and top-p keep; or one below it and above that of the next token.
__device__ u64 last_kept(Line& line, const Row& row, const Draw& draw) {
    bool by_count = draw.top_k > 0 && draw.top_k < row.cols, by_weight = draw.top_p < 1.0f;
    if (!by_count && !by_weight) {
        return 0;
    }
    fill(line, row);
    u64 all = line.weights[0], key = 0;
    if (by_count) {
        Place last = find(line, row, COUNT, draw.top_k - 1);
        all = last.through;
        key = key_of(last.rank, ~0u);
    }
    if (by_weight) {
        u64 goal = __umul64hi((u64)__fmul_rn(draw.top_p, 0x1p64f), all);
        goal -= goal > 0;  // through which the weights are at least so much
        Place last = find(line, row, WEIGHT, goal);
        u32 i = (goal - last.before) / last.each;
        key = key_of(last.rank, i + 1 < last.equals ? nth(row, last.rank, i) : ~0u);
    }
    return key;
}

// The token that wins the race.
__device__ u32 first(const Row& row, const Draw& draw, u64 last_kept) {
    float least = fminf(draw.min_log_p, 0.0f);
    u64 best = 0;
#pragma unroll 4
    for (u32 j = threadIdx.x; j < row.cols; j += BLOCK) {
        u32 rank = rank_of(row.x[j]);
        float d = row.distance(rank);
        u64 weight = weight_of(d);
        if (weight > 0 && d >= least && key_of(rank, j) >= last_kept) {
            float score = __fdiv_rn((float)weight, exponential(numerator_of(draw, j)));
            best = max(best, key_of(__float_as_uint(score), j));
        }
    }
    return ~(u32)block_max(best);
}

extern "C" __global__ void sample(SampleParams p) {
    wait_for_launch_before();
    __shared__ Line line;
    Draw draw = p.draws[blockIdx.x];
    Row row = {p.logits + blockIdx.x * p.logits_stride, (u32)p.cols, 0.0f, draw.temperature};
    bool damaged = false;
    u64 best = 0;
#pragma unroll 8
    for (u32 j = threadIdx.x; j < row.cols; j += BLOCK) {
        u32 rank = rank_of(row.x[j]);
        damaged |= !isfinite(logit_of(rank));
        best = max(best, key_of(rank, j));
    }
    best = block_max(best);
    damaged = __syncthreads_or(damaged);
    u32* out = p.out + blockIdx.x;
    if (damaged || !(draw.temperature > 0.0f)) {
        if (threadIdx.x == 0) {
            *out = damaged ? ~0u : ~(u32)best;
        }
        return;
    }
    row.largest = logit_of(best >> 32);
    u32 token = first(row, draw, last_kept(line, row, draw));
    if (threadIdx.x == 0) {
        *out = token;
    }
}
