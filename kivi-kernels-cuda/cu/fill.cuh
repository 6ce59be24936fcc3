// fill.cuh: tiles of tokens in shared memory, as rows of activations, wherever and however the cache has them.
#pragma once
#include "codes.cuh"
#include "row.cuh"

constexpr u32 TILE = KIVI_PREFILL_TILE, STAGES = KIVI_PREFILL_STAGES;
constexpr u32 THREADS = KIVI_PREFILL_WARPS * WARP;  // of a block
constexpr u32 PER_ROW = THREADS / TILE;             // that bring a token of the cache
constexpr u32 CHUNKS = HEAD_DIM / 8;                // of 16 bytes, of a row

// What a block reads: the tokens of a head that are in [low, high).
struct Span {
    u32 seq, head, len;  // tokens from len on are new
    u32 low, high;
    u32 start;  // plus a new token: its row
};

// A pair of neighbouring channels from their codes, a code in each half; finite.
__device__ __forceinline__ u32 dequantized(u32 codes, u32 scales, u32 zeros) {
#if KIVI_ACT_BF16
    float low = (float)(codes & 0xffff) * half_at(scales, 0) + half_at(zeros, 0);
    float high = (float)(codes >> 16) * half_at(scales, 16) + half_at(zeros, 16);
    return pack(low, high, Act());
#else
    // 0x6400 is 1024, whose last place is 1.
    u32 numbers = multiply_add_f16(codes | 0x64006400, 0x3c003c00, 0xe400e400);
    u32 x = multiply_add_f16(numbers, scales, zeros), largest = 0x7bff7bff;
    __half2 y = __hmin2(*(__half2*)&x, *(__half2*)&largest);
    return *(u32*)&y;
#endif
}

// The words of a token's keys that are thread `part`'s.
__device__ __forceinline__ void fill_keys(const Row& row, u32 part, Act* to) {
    constexpr u32 PAIRS = 16 / K_CODE_BITS, MASK = ((1u << K_CODE_BITS) - 1) * 0x10001u;
    for (u32 i = part; i < K_WORDS; i += PER_ROW) {
        u32 word = ((const u32*)row.data)[i], pairs[PAIRS];
        const uint4* params = (const uint4*)row.params + i * PAIRS / 2;  // scales, zeros, scales, zeros
#pragma unroll
        for (u32 j = 0; j < PAIRS; j += 2) {
            uint4 x = params[j / 2];
            pairs[j] = dequantized(word >> j * K_CODE_BITS & MASK, x.x, x.y);
            pairs[j + 1] = dequantized(word >> (j + 1) * K_CODE_BITS & MASK, x.z, x.w);
        }
#pragma unroll
        for (u32 j = 0; j < PAIRS; j += 2) {
            *(uint2*)(to + 2 * (i * PAIRS + j)) = make_uint2(pairs[j], pairs[j + 1]);
        }
    }
}

// The same for values, whose token has half of each word.
__device__ __forceinline__ void fill_values(const Row& row, u32 part, Act* to) {
    constexpr u32 PER_UNIT = 16 / V_CODE_BITS, MASK = ((1u << V_CODE_BITS) - 1) * 0x10001u;
    u32 both = row.shift ? 0x3232 : 0x1010;
    for (u32 i = part; i < HEAD_DIM / PER_UNIT; i += PER_ROW) {
        u32 unit = ((const u32*)row.data)[i] >> row.shift & 0xffff;
        unit |= unit >> V_CODE_BITS << 16;  // neighbours in different halves
#pragma unroll
        for (u32 j = 0; j < PER_UNIT; j += 2) {
            u32 channel = channel_at(HEAD_DIM, i * PER_UNIT + j);
            u32 scale = row.params[channel / GROUP_SIZE], zero = row.params[VALUE_GROUPS + channel / GROUP_SIZE];
            u32 codes = unit >> j * V_CODE_BITS & MASK;
            *(u32*)(to + channel) = dequantized(codes, __byte_perm(scale, scale, both), __byte_perm(zero, zero, both));
        }
    }
}

// Brings the row of a token of the cache with PER_ROW threads; zeros if it is not seen.
template <bool KEY>
__device__ __forceinline__ void fill_row(const Cache& c, const Side& side, const Span& span, u32 token, Act* to) {
    u32 part = threadIdx.x % PER_ROW;
    bool seen = token >= span.low && token < span.high;
    Row row = {Row::FULL, nullptr, nullptr, 0};
    if (seen) {
        row = find_row(c, side, span.seq, span.head, token);
    }
    if ((KEY ? K_CODES : V_CODES) && row.form == Row::CODES) {
        return KEY ? fill_keys(row, part, to) : fill_values(row, part, to);
    }
    const Act* from = seen ? (const Act*)row.data : c.k.rows;  // an address to name, from which nothing is read
    for (u32 channel = 8 * part; channel < HEAD_DIM; channel += 8 * PER_ROW) {
        copy_async(to + channel, seen ? from + channel : from, seen);
    }
}

// Brings TILE tokens from token on, all of them new and seen: nothing is to be looked up.
__device__ __forceinline__ void fill_new(const Side& side, const Span& span, u32 token, Act (*to)[ROW_STRIDE]) {
    constexpr u32 AT_ONCE = THREADS / CHUNKS;
    u32 first = threadIdx.x / CHUNKS, channel = threadIdx.x % CHUNKS * 8;
    const Act* from = side.rows + (u64)(span.start + token + first) * side.row_stride + span.head * HEAD_DIM + channel;
    if (THREADS % CHUNKS && first >= AT_ONCE) {
        return;
    }
#pragma unroll
    for (u32 row = 0; row < TILE; row += AT_ONCE) {
        if (TILE % AT_ONCE == 0 || row + first < TILE) {
            copy_async(&to[row + first][channel], from);
        }
        from += AT_ONCE * side.row_stride;
    }
}

// Brings keys and values of TILE tokens from token on; zeros for those that are not seen.
__device__ __forceinline__ void fill_tile(const Cache& c, const Span& span, u32 token, Act (*k)[ROW_STRIDE],
                                          Act (*v)[ROW_STRIDE]) {
    if (token >= max(span.len, span.low) && token + TILE <= span.high) {
        fill_new(c.k, span, token, k);
        fill_new(c.v, span, token, v);
        return;
    }
    u32 row = threadIdx.x / PER_ROW;
    fill_row<true>(c, c.k, span, token + row, k[row]);
    fill_row<false>(c, c.v, span, token + row, v[row]);
}
