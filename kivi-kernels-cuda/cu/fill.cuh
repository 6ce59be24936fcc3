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
