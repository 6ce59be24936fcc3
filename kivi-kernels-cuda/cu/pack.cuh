// pack.cuh: rows to codes, for append.cu.
//
// A tile is TILE tokens. A thread holds 8 channels (16 bytes) of DEPTH neighbouring tokens in registers, in a step 2 of
// values; LANES threads hold a row. Smallest and largest elements meet in shared memory, where a thread makes two
// neighbours' scales and zeros. What does not count (sinks, tokens that are not due, channels beyond the head) is NaN:
// no scale sees it, its code is 0.
#pragma once
#include "codes.cuh"

#if KIVI_ACT_BF16
typedef __nv_bfloat162 Act2;
#else
typedef __half2 Act2;
#endif

constexpr u32 DEPTH = 16;
constexpr u32 ROW_LANES = HEAD_DIM / 8;
constexpr u32 LANES = ROW_LANES <= 8 ? 8 : ROW_LANES <= 16 ? 16 : 32;
constexpr u32 TILE = BLOCK / LANES * DEPTH;
constexpr u32 NANS = 0x7fff7fff;
static_assert(TILE % GROUP_SIZE == 0 && PAGE_TOKENS % DEPTH == 0, "whole groups to a tile, whole runs to a page");

// New rows and the ring of one side of a head, as the thread's 8 channels of them.
struct Source {
    const Act* fresh;  // of token 0, had it a row
    Act* ring;
    u64 stride;
    u32 len, residual;
};

template <u32 N>
struct Run {
    uint4 row[N];
};

__device__ __forceinline__ u32 lane_of_row() { return threadIdx.x % LANES; }
__device__ __forceinline__ u32 first_of_run() { return threadIdx.x / LANES * DEPTH; }

__device__ __forceinline__ u32 min2(u32 a, u32 b) {
    Act2 x = __hmin2(*(Act2*)&a, *(Act2*)&b);
    return *(u32*)&x;
}

__device__ __forceinline__ u32 max2(u32 a, u32 b) {
    Act2 x = __hmax2(*(Act2*)&a, *(Act2*)&b);
    return *(u32*)&x;
}

__device__ __forceinline__ u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// Half h of a pair of activations.
__device__ __forceinline__ float half_of(u32 pair, u32 h) {
#if KIVI_ACT_BF16
    return __uint_as_float(h ? pair & 0xffff0000u : pair << 16);
#else
    return half_at(pair, 16 * h);
#endif
}

// As page_of, of pages whose length is known.
__device__ __forceinline__ u32* page_at(const Cache& c, u32 seq, u32 head, u32 token) {
    u64 page = c.page_table[(u64)seq * c.max_pages + token / PAGE_TOKENS];
    return c.pool + (page * c.n_kv_heads + head) * c.page_words;
}

__device__ __forceinline__ u32 part_of(const uint4& x, u32 i) {
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

// The thread's tokens from `token` on; NaN for those outside [begin, end).
template <u32 N>
__device__ __forceinline__ void load(Run<N>& run, const Source& s, u32 token, u32 begin, u32 end) {
    const Act* fresh = s.fresh + token * s.stride;
    bool in_head = lane_of_row() < ROW_LANES;
    if (in_head && token >= max(begin, s.len) && token + N <= end) {
#pragma unroll
        for (u32 t = 0; t < N; ++t) {
            run.row[t] = __ldcs((const uint4*)(fresh + t * s.stride));
        }
        return;
    }
    const Act* ring = s.ring + token % s.residual * HEAD_DIM;  // a run does not wrap: residual is a multiple of 32
#pragma unroll
    for (u32 t = 0; t < N; ++t) {
        run.row[t] = make_uint4(NANS, NANS, NANS, NANS);
        if (in_head && token + t >= begin && token + t < end) {
            run.row[t] = *(const uint4*)(token + t < s.len ? ring + t * HEAD_DIM : fresh + t * s.stride);
        }
    }
}

// Scales, zeros and 1 / scales of two neighbours.
typedef uint4 Params;

__device__ __forceinline__ u32 inverse_of(u32 params) {
    float scale = half_at(params, 0);
    return __float_as_uint(scale > 0.0f ? __fdividef(1.0f, scale) : 0.0f);
}

// Threads that share groups and wait for each other: a warp, unless a group is more.
constexpr u32 K_TEAM = GROUP_SIZE * LANES / DEPTH <= WARP ? WARP : BLOCK;

template <u32 TEAM>
__device__ __forceinline__ void team_sync() {
    if (TEAM == WARP) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

// What codes need of a group.
struct Group {
    float zero, scale, inverse, top;
};

// Group h of two.
template <u32 BITS>
__device__ __forceinline__ Group group_of(const Params& p, u32 h) {
    float scale = half_at(p.x, 16 * h);
    return {half_at(p.y, 16 * h), scale, __uint_as_float(h ? p.w : p.z), scale * ((1 << BITS) - 1)};
}

// 2^23 + the code of x, as bits. The quotient is corrected once: it is within 2^-40 of the exact one, and no quotient
// of an f32 by an f16 comes as near to a half without being one. So it is rounded as the exact division of group.rs
// is.
constexpr u32 CODE_BIAS = 0x4b000000;
__device__ __forceinline__ u32 biased_code(float x, const Group& g) {
    float t = fminf(fmaxf(__fsub_rn(x, g.zero), 0.0f), g.top);
    float steps = __fmul_rn(t, g.inverse);
    steps = __fmaf_rn(__fmaf_rn(-steps, g.scale, t), g.inverse, steps);
    return __float_as_uint(__fadd_rn(steps, 8388608.0f));
}

// Those of two groups, from their smallest and largest elements.
__device__ __forceinline__ Params params_pair(u32 smallest, u32 largest, u32 bits) {
    u32 even = params_of(fminf(INFINITY, half_of(smallest, 0)), fmaxf(-INFINITY, half_of(largest, 0)), bits);
    u32 odd = params_of(fminf(INFINITY, half_of(smallest, 1)), fmaxf(-INFINITY, half_of(largest, 1)), bits);
    return make_uint4(low_halves(even, odd), high_halves(even, odd), inverse_of(even), inverse_of(odd));
}

// Keys: tokens [begin, end), which are whole groups, of a tile that starts at `first`.
__device__ void pack_keys(const Cache& c, const Source& source, u32 seq, u32 head, u32 first, u32 begin, u32 end) {
    constexpr u32 PAIRS = HEAD_DIM / 2, RUNS = GROUP_SIZE / DEPTH;
    __shared__ u32 partial[2][TILE / DEPTH][PAIRS];
    __shared__ Params params[TILE / GROUP_SIZE][PAIRS];
    u32 lane = lane_of_row(), token = first + first_of_run();
    Run<DEPTH> run;
    load(run, source, token, max(begin, c.sinks), end);
    if (lane < ROW_LANES) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 smallest = NANS, largest = NANS;
#pragma unroll
            for (u32 t = 0; t < DEPTH; ++t) {
                smallest = min2(smallest, part_of(run.row[t], i));
                largest = max2(largest, part_of(run.row[t], i));
            }
            partial[0][threadIdx.x / LANES][lane * 4 + i] = smallest;
            partial[1][threadIdx.x / LANES][lane * 4 + i] = largest;
        }
    }
    team_sync<K_TEAM>();
    constexpr u32 OF_TEAM = TILE / GROUP_SIZE * PAIRS * K_TEAM / BLOCK;
    for (u32 n = threadIdx.x % K_TEAM; n < OF_TEAM; n += K_TEAM) {
        u32 i = threadIdx.x / K_TEAM * OF_TEAM + n;
        u32 group = i / PAIRS, pair = i % PAIRS, at = first + group * GROUP_SIZE;
        if (at < begin || at >= end) {
            continue;
        }
        u32 smallest = NANS, largest = NANS;
        for (u32 j = 0; j < RUNS; ++j) {
            smallest = min2(smallest, partial[0][group * RUNS + j][pair]);
            largest = max2(largest, partial[1][group * RUNS + j][pair]);
        }
        Params both = params_pair(smallest, largest, K_CODE_BITS);
        params[group][pair] = both;
        u32* stored = page_at(c, seq, head, at) + c.k.params_start + at % PAGE_TOKENS / GROUP_SIZE * HEAD_DIM;
        *(uint2*)(stored + 2 * pair) = make_uint2(both.x, both.y);
    }
    team_sync<K_TEAM>();
    bool due = token >= begin && token < end && lane < ROW_LANES;
    if (!__any_sync(ALL_LANES, due)) {
        return;  // a warp as a whole: its lanes exchange codes
    }
    // Words of a token that are a thread's; with 2 bits a half of one.
    constexpr u32 WORDS = K_CODE_BITS == 8 ? 2 : 1, FIELDS = 4 / WORDS;  // FIELDS: pairs to a word
    constexpr u32 ONES = ((1u << K_CODE_BITS * FIELDS) - 1) / ((1u << K_CODE_BITS) - 1) * 0x10001u;
    u32 words[DEPTH][WORDS];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        Params both = due ? params[first_of_run() / GROUP_SIZE][lane * 4 + i] : make_uint4(0, 0, 0, 0);
        Group even = group_of<K_CODE_BITS>(both, 0), odd = group_of<K_CODE_BITS>(both, 1);
#pragma unroll
        for (u32 t = 0; t < DEPTH; ++t) {
            u32 pair = part_of(run.row[t], i), before = i % FIELDS == 0 ? 0u - CODE_BIAS * ONES : words[t][i / FIELDS];
            u32 low = biased_code(half_of(pair, 0), even), high = biased_code(half_of(pair, 1), odd);
            words[t][i / FIELDS] = before + ((low + (high << 16)) << (i % FIELDS * K_CODE_BITS));
        }
    }
    u32* codes = page_at(c, seq, head, due ? token : begin) + c.k.codes_start + token % PAGE_TOKENS * K_WORDS;
    if (K_CODE_BITS == 2) {
        // Two lanes have the halves of a word: the even one stores that of the even token.
        u32 odd = lane % 2;
#pragma unroll
        for (u32 t = 0; t < DEPTH; t += 2) {
            u32 other = __shfl_xor_sync(ALL_LANES, odd ? words[t][0] : words[t + 1][0], 1);
            u32 own = odd ? words[t + 1][0] : words[t][0];
            if (due) {
                codes[(t + odd) * K_WORDS + lane / 2] = __byte_perm(own, other, odd ? 0x2604 : 0x6240);
            }
        }
    } else if (due) {
#pragma unroll
        for (u32 t = 0; t < DEPTH; ++t) {
            for (u32 w = 0; w < WORDS; ++w) {
                codes[t * K_WORDS + lane * WORDS + w] = words[t][w];
            }
        }
    }
}

// Two tokens' halves of a word, each if it is due.
__device__ __forceinline__ void store_halves(u32* word, u32 x, bool even, bool odd) {
    if (even && odd) {
        *word = x;
    } else if (even) {
        *(u16*)word = (u16)x;
    } else if (odd) {
        ((u16*)word)[1] = (u16)(x >> 16);
    }
}

// w[j] of the four lanes that differ in bits 1 and 2 of their number, transposed: w[j] comes from the j-th of them.
__device__ __forceinline__ void transpose_words(u32 (&w)[4]) {
#pragma unroll
    for (u32 step = 1; step < 4; step *= 2) {
        bool upper = threadIdx.x & 2 * step;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (!(j & step)) {
                u32 other = __shfl_xor_sync(ALL_LANES, upper ? w[j] : w[j + step], 2 * step);
                w[j + step] = upper ? w[j + step] : other;
                w[j] = upper ? other : w[j];
            }
        }
    }
}

// The same for nibbles, four to a half.
__device__ __forceinline__ u32 transpose_nibbles(u32 x) {
    bool upper = threadIdx.x & 2;
    u32 own = upper ? 0xf0f0f0f0u : 0x0f0f0f0fu;
    u32 other = __shfl_xor_sync(ALL_LANES, __funnelshift_l(x, x, upper ? 4 : 28), 2);
    x = (x & own) | (other & ~own);
    other = __shfl_xor_sync(ALL_LANES, x, 4);
    return __byte_perm(x, other, threadIdx.x & 4 ? 0x3715 : 0x6240);
}

// Stores a pair of tokens' codes: w[j] has those of channels 2 j and 2 j + 1 of the thread, both tokens'.
__device__ __forceinline__ void store_values(u32* pair, u32 (&w)[4], bool even, bool odd) {
    constexpr u32 BLOCKS = HEAD_DIM / 64, REST = HEAD_DIM % 64 / 16;  // blocks; tiles of what is left
    constexpr u32 OF_TILE = 2 * V_CODE_BITS;                          // bits
    constexpr u32 PER_UNIT = 16 / OF_TILE;                            // tiles
    u32 lane = lane_of_row(), block = lane / 8, g = lane % 2 * 4 + lane % 8 / 2;
    u32 units[4 / PER_UNIT];
    if (V_CODE_BITS == 2) {
        units[0] = transpose_nibbles(w[0] | w[1] << 4 | w[2] << 8 | w[3] << 12);
    } else {
        transpose_words(w);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 before = i % PER_UNIT == 0 ? 0 : units[i / PER_UNIT];
            units[i / PER_UNIT] = before | w[i] << (i % PER_UNIT * OF_TILE);
        }
    }
    if (block < BLOCKS) {
#pragma unroll
        for (u32 u = 0; u < 4 / PER_UNIT; ++u) {
            store_halves(pair + (g * BLOCKS + block) * (4 / PER_UNIT) + u, units[u], even, odd);
        }
    }
    constexpr u32 SHARE = REST == 0 || REST >= PER_UNIT ? 1 : PER_UNIT / (REST + !REST);     // lanes to a unit of those
    constexpr u32 UNITS = (REST + PER_UNIT - 1) / PER_UNIT;
#pragma unroll
    for (u32 step = 1; step < SHARE; step *= 2) {
        units[0] |= __shfl_down_sync(ALL_LANES, units[0], 2 * step) << (step * REST * OF_TILE);
    }
    if (REST > 0 && block == BLOCKS && g % SHARE == 0) {
#pragma unroll
        for (u32 u = 0; u != UNITS; ++u) {
            store_halves(pair + 4 / PER_UNIT * 8 * BLOCKS + g * REST / PER_UNIT + u, units[u], even, odd);
        }
    }
}

// Tokens of a warp whose threads hold N each.
template <u32 N>
constexpr u32 OF_WARP = WARP / LANES * N;

// Values: the tokens of a warp from `first` on that are in [begin, end).
template <u32 N>
__device__ void pack_values(const Cache& c, const Source& source, u32 seq, u32 head, u32 first, u32 begin, u32 end) {
    constexpr u32 GROUP_LANES = GROUP_SIZE / 8, PAIRS = OF_WARP<N> / 2;
    __shared__ u32 partials[WARPS][2][N / 2][WARP];
    __shared__ Params params_of_warps[WARPS][PAIRS][VALUE_GROUPS];
    auto& partial = partials[threadIdx.x / WARP];
    auto& params = params_of_warps[threadIdx.x / WARP];
    u32 lane = lane_of_row(), of_run = threadIdx.x % WARP / LANES * N, token = first + of_run;
    Run<N> run;
    load(run, source, token, begin, end);
#pragma unroll
    for (u32 t = 0; t < N; t += 2) {
        u32 smallest[2], largest[2];
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            uint4 x = run.row[t + h];
            smallest[h] = min2(min2(x.x, x.y), min2(x.z, x.w));
            largest[h] = max2(max2(x.x, x.y), max2(x.z, x.w));
        }
        u32 low = low_halves(smallest[0], smallest[1]), high = high_halves(smallest[0], smallest[1]);
        partial[0][t / 2][threadIdx.x % WARP] = min2(low, high);
        low = low_halves(largest[0], largest[1]), high = high_halves(largest[0], largest[1]);
        partial[1][t / 2][threadIdx.x % WARP] = max2(low, high);
    }
    __syncwarp();
    for (u32 i = threadIdx.x % WARP; i < PAIRS * VALUE_GROUPS; i += WARP) {
        u32 pair = i / VALUE_GROUPS, group = i % VALUE_GROUPS, at = first + 2 * pair;
        bool due[2] = {at >= begin && at < end, at + 1 >= begin && at + 1 < end};
        if (!due[0] && !due[1]) {
            continue;
        }
        u32 at_lane = 2 * pair / N * LANES + group * GROUP_LANES, smallest = NANS, largest = NANS;
#pragma unroll
        for (u32 j = 0; j < GROUP_LANES; ++j) {
            if (HEAD_DIM % GROUP_SIZE == 0 || group * GROUP_LANES + j < ROW_LANES) {
                smallest = min2(smallest, partial[0][pair % (N / 2)][at_lane + j]);
                largest = max2(largest, partial[1][pair % (N / 2)][at_lane + j]);
            }
        }
        Params both = params_pair(smallest, largest, V_CODE_BITS);
        params[pair][group] = both;
        u32* stored = page_at(c, seq, head, at) + c.v.params_start + at % PAGE_TOKENS * VALUE_GROUPS + group;
        store_halves(stored, both.x, due[0], due[1]);
        store_halves(stored + VALUE_GROUPS, both.y, due[0], due[1]);
    }
    __syncwarp();
    if (!__any_sync(ALL_LANES, token < end && token + N > begin)) {
        return;
    }
    u32* page = page_at(c, seq, head, min(max(token, begin), end - 1));
    u32* codes = page + c.v.codes_start + token % PAGE_TOKENS * V_WORDS;
    u32 group = lane / GROUP_LANES;
    constexpr u32 ONES = (1 + (1u << V_CODE_BITS)) * 0x10001u;
#pragma unroll
    for (u32 t = 0; t < N; t += 2) {
        u32 at = token + t;
        bool even = at >= begin && at < end, odd = at + 1 >= begin && at + 1 < end;
        if (!__any_sync(ALL_LANES, even || odd)) {
            continue;
        }
        Params both = make_uint4(0, 0, 0, 0);
        if (group < VALUE_GROUPS && (even || odd)) {
            both = params[(of_run + t) / 2][group];
        }
        Group groups[2] = {group_of<V_CODE_BITS>(both, 0), group_of<V_CODE_BITS>(both, 1)};
        u32 w[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            w[i] = 0u - CODE_BIAS * ONES;
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                u32 pair = part_of(run.row[t + h], i);
                u32 low = biased_code(half_of(pair, 0), groups[h]), high = biased_code(half_of(pair, 1), groups[h]);
                w[i] += (low + (high << V_CODE_BITS)) << 16 * h;
            }
        }
        store_values(codes + t * V_WORDS, w, even, odd);
    }
}
