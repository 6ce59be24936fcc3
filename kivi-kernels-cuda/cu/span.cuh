// span.cuh: decode.cu's constants, what its warps share, and what a piece of a row and unit is.
#pragma once
#include "codes.cuh"
#include "share.cuh"

constexpr u32 DECODE_WARPS = KIVI_DECODE_WARPS, DECODE_BLOCK = DECODE_WARPS * WARP;
constexpr u32 QUERIES = 8;
constexpr u32 ROUND = 4;  // queries of which the warps' sums are added at a time
constexpr u32 TILE = KIVI_TILE;            // tokens; work is shared in units of it
constexpr u32 WIDE_TILE = KIVI_WIDE_TILE;  // where all is packed
constexpr u32 STAGES = KIVI_STAGES;

// What lanes read together lies 128 bytes apart: with so many bytes more behind each 128, in different banks.
constexpr u32 K_PARAMS_PAD = 16, V_PAD = 32;
template <u32 PAD>
__device__ constexpr u32 padded(u32 at) { return at + at / 128 * PAD; }

template <u32 TOKENS>
constexpr u32 KEY_GROUPS = TOKENS > GROUP_SIZE ? TOKENS / GROUP_SIZE : 1;
constexpr u32 K_BYTES = K_CODES ? WIDE_TILE * K_WORDS * 4 : WIDE_TILE * ROW_STRIDE * 2;
constexpr u32 K_PARAM_BYTES = K_CODES ? padded<K_PARAMS_PAD>(KEY_GROUPS<WIDE_TILE> * HEAD_DIM * 4) : 0;
constexpr u32 V_BYTES = V_CODES ? padded<V_PAD>(WIDE_TILE * V_WORDS * 4) : WIDE_TILE * ROW_STRIDE * 2;
constexpr u32 V_PARAM_BYTES = V_CODES ? WIDE_TILE * VALUE_GROUPS * 4 : 0;
constexpr u32 K_PARAMS_AT = K_BYTES, V_AT = K_PARAMS_AT + K_PARAM_BYTES, V_PARAMS_AT = V_AT + V_BYTES;
constexpr u32 STAGE_BYTES = V_PARAMS_AT + V_PARAM_BYTES;
constexpr u32 ROWS_COST = KIVI_ROWS_COST;  // of 16 rows in full precision, in tiles
constexpr u32 SPANS = KIVI_SPANS;  // room for so many for each warp of a team

constexpr float K_FOLD = 16.0f;         // in q'; q < 2 and scales below 512 make q' < 2^14
constexpr float WIDE_FOLD = 1 / 256.0f;  // on larger scales

// A team's queries in shared memory, 4 columns of operand B to a set: for each two steps the words of zeros of its
// lanes, then so many bytes on those of codes. A set lies in the region of a warp, which has room for sums of ROUND
// queries, too.
constexpr u32 PAIR_BYTES = 4 * 4 * 16;  // of two steps: 4 lanes a column, 16 bytes a lane
constexpr u32 CODES_AT = (STEPS + 1) / 2 * PAIR_BYTES;
constexpr u32 SUM_STRIDE = HEAD_DIM < 64 ? 64 : HEAD_DIM;
constexpr u32 REGION = 2 * CODES_AT > ROUND * SUM_STRIDE * 4 ? 2 * CODES_AT : ROUND * SUM_STRIDE * 4;

// Where a head's rows in full precision lie, of the type of activations.
struct RowsOf {
    const Act* fresh;  // of token 0, were it a new one
    const Act* ring;
    const Act* sink;
    u64 stride;        // of new rows
};

// A piece of one row and unit.
struct Span {
    Extent extent;
    u32 row, unit, head;     // KV head
    u32 token, wide_end, token_end;  // wide tiles, then others
    u32 turn;                        // the team's warp that has the first of those
    u32 row_tile, row_tile_end;
    u32 row_turn;                    // and the one that has the first of these, behind the last of all tiles
    u32 first_block, parts;  // the blocks that have a piece of it
    u32 slot;                // of this block's partial result
    const char* pages;       // the head's record of page 0
    const u32* table;        // the pages of its sequence
    RowsOf k, v;
};

// Warps that do the same span, and wait for each other.
struct Team {
    u32 warps;  // a divisor of DECODE_WARPS
    u32 first;  // of them in the block
    u32 warp;   // this one among them

    __device__ explicit Team(u32 n) : warps(n), first(threadIdx.x / WARP / n * n), warp(threadIdx.x / WARP % n) {}
    // How far this warp's turn is behind that of the warp that begins.
    __device__ u32 behind(u32 begin) const { return warp < begin ? warp + warps - begin : warp - begin; }
    __device__ u32 thread() const { return warp * WARP + threadIdx.x % WARP; }
    __device__ u32 threads() const { return warps * WARP; }
    // Spans that are planned at a time, by a lane each.
    __device__ u32 spans() const { return min(warps * SPANS, WARP); }
    __device__ void sync() const {
        if (warps == 1) {
            __syncwarp();
        } else {
            sync_threads(1 + first, threads());
        }
    }
};

// What a team has in common is at its first warp.
struct Shared {
    float4 regions[DECODE_WARPS][REGION / 16];
    float power[DECODE_WARPS][QUERIES];    // of 2 in each query
    float2 totals[DECODE_WARPS][QUERIES];  // references and totals of each warp
    Span spans[DECODE_WARPS * SPANS];
    u32 n_spans[DECODE_WARPS], more[DECODE_WARPS];
    u64 line, row_start;  // where the spans stop; where their last row starts
    Extent extent;  // of row extent_row
    u32 row, extent_row, last;
};
constexpr u32 STAGES_AT = (sizeof(Shared) + 127) / 128 * 128;
static_assert(STAGES_AT + DECODE_WARPS * STAGES * STAGE_BYTES <= KIVI_SHARED, "more shared memory than the launch has");

// Rows of a side of the new row `row`, which sees e.
__device__ RowsOf rows_of(const Cache& c, const Side& side, const Extent& e, u32 row, u32 head) {
    const Act* fresh = side.rows + ((long long)row - e.at) * (long long)side.row_stride + head * HEAD_DIM;
    u64 line = (u64)e.slot * c.n_kv_heads + head;
    return {fresh, (const Act*)side.ring + line * c.residual * HEAD_DIM,
            (const Act*)side.sink + line * c.sinks * HEAD_DIM, side.row_stride};
}

// The tiles of a row and unit from one place of its line to another, for a team of so many warps.
__device__ Span span_of(const Cache& c, const Extent& extent, u32 warps, u32 row, u32 unit, u32 from, u32 to) {
    Span span;
    span.extent = extent;
    span.row = row;
    span.unit = unit;
    span.head = unit % c.n_kv_heads;
    u32 tiles = extent.active ? extent.tiles(TILE) : 0;
    u32 first = min(from, tiles), last = min(to, tiles), before = extent.start / TILE;
    // Pieces meet where a wide tile may begin.
    auto token_at = [&](u32 i) {
        u32 token = (before + i) * TILE;
        return i < tiles ? token / WIDE_TILE * WIDE_TILE : token;
    };
    span.token = token_at(first);
    span.token_end = token_at(last);
    u32 packed = min(span.token_end, min(extent.k_packed, extent.v_packed));
    span.wide_end = max(span.token, packed / WIDE_TILE * WIDE_TILE);
    span.turn = (span.wide_end - span.token) / WIDE_TILE % warps;
    span.row_turn = (span.turn + (span.token_end - span.wide_end) / TILE) % warps;
    span.row_tile = (from - first + ROWS_COST - 1) / ROWS_COST;
    span.row_tile_end = extent.active ? (to - last + ROWS_COST - 1) / ROWS_COST : 0;
    span.pages = (const char*)(c.pool + (u64)span.head * PAGE_WORDS);
    span.table = c.page_table + (u64)extent.seq * c.max_pages;
    span.k = rows_of(c, c.k, extent, row, span.head);
    span.v = rows_of(c, c.v, extent, row, span.head);
    return span;
}

// The tiles of a span that are one warp's, in turn: each at a token, wide ones first.
struct Walk {
    u32 token, wide_end, end;

    __device__ __forceinline__ void enter(const Span& span, const Team& team) {
        token = span.token + team.warp * WIDE_TILE;
        wide_end = span.wide_end;
        end = span.token_end;
        turn(span, team);
    }
    __device__ __forceinline__ bool more() const { return token < end; }
    __device__ __forceinline__ bool wide() const { return token < wide_end; }
    __device__ __forceinline__ void next_wide(const Span& span, const Team& team) {
        token += team.warps * WIDE_TILE;
        turn(span, team);
    }
    __device__ __forceinline__ void next(const Team& team) { token += team.warps * TILE; }

    // From wide tiles to others, which the warps go on to take in turn.
    __device__ __forceinline__ void turn(const Span& span, const Team& team) {
        if (token >= wide_end) {
            token = wide_end + team.behind(span.turn) * TILE;
        }
    }
};
