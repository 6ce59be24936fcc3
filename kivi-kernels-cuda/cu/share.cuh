// share.cuh: what plan.cu and decode.cu know of rows, and of how they are shared.
#pragma once
#include "row.cuh"

struct BlockPlan;

struct DecodeParams {
    AttendParams attend;
    BlockPlan* plan;   // [blocks]: by plan.cu
    float* partials;   // [blocks][2][QUERIES][head_dim + 2]
    u32* arrived;      // [blocks], zero before and after
    u32 blocks;
    u32 query_blocks;  // of a KV head
    u32 few;           // sequences with more new rows than these are not this kernel's
    u32 warps;         // of a block
    u32 tile;          // tokens
    u32 rows_cost;     // of 16 rows in full precision, in tiles
    u32 settled;       // whether no launch that may still run writes the plan, what it was made from, or pages
    u32 unused;
};
KIVI_CHECK_SIZE(DecodeParams);

// What a row sees: rows [first, start), tokens of which a side at least is packed [start, end), rows [end, at].
struct Extent {
    u32 seq, slot, active, len, at, first, start, end;
    u32 k_packed, v_packed;
    u32 few;  // whether the row is this kernel's

    __device__ u32 tiles(u32 tile) const { return end > start ? (end + tile - 1) / tile - start / tile : 0; }
    __device__ u32 head_tiles() const { return (start - first + 15) / 16; }
    __device__ u32 row_tiles() const { return head_tiles() + (at + 1 - end + 15) / 16; }
    __device__ u32 cost(u32 tile, u32 rows_cost) const {
        return !few ? 0 : active ? tiles(tile) + row_tiles() * rows_cost : 1;
    }
};

__device__ Extent extent_of(const DecodeParams& d, u32 row) {
    const AttendParams& p = d.attend;
    const Cache& c = p.cache;
    Extent e;
    e.seq = c.seq_of_row[row];
    e.few = c.row_start[e.seq + 1] - c.row_start[e.seq] <= d.few;
    e.len = c.len[e.seq];
    e.slot = c.slots[e.seq];
    e.k_packed = c.k.packed[e.seq];
    e.v_packed = c.v.packed[e.seq];
    e.active = c.active[e.seq];
    e.at = e.len + (row - c.row_start[e.seq]);
    e.first = p.window && e.at + 1 > p.window ? e.at + 1 - p.window : 0;
    e.start = min(max(e.first, is_quantized(c.k) || is_quantized(c.v) ? c.sinks : 0), e.at + 1);
    e.end = max(e.start, max(e.k_packed, e.v_packed));
    return e;
}

// How rows and units are shared. Whole: each has a team of its own, teams take turns; or several blocks, a part each.
// Else they are one line, of which each block has an equal piece.
struct Share {
    u64 length;    // of the line
    u32 items;     // rows and units
    u32 units;     // of a row
    u32 blocks;    // of the line
    u32 team;      // warps
    u32 parts;     // blocks to a row and unit, at most; 0: the line
    u32 unused;

    __device__ u64 start(u32 block) const;
    __device__ u32 block_at(u64 x) const;
};

// a / b; most lines are short, and 64-bit division takes some hundred instructions.
__device__ u64 divide(u64 a, u64 b) { return (a | b) >> 32 ? a / b : (u32)a / (u32)b; }

__device__ u64 Share::start(u32 block) const { return divide(length * block, blocks); }
__device__ u32 Share::block_at(u64 x) const { return (u32)divide((x + 1) * blocks + length - 1, length) - 1; }

// What plan.cu leaves for a block of decode.cu: how all is shared, and the row with which the block begins, if it has one.
struct BlockPlan {
    Share share;
    u64 row_start;  // where the row starts on the line
    u32 row;
    Extent extent;
    u32 unused[2];
};
static_assert(sizeof(BlockPlan) == 96, "PLAN_WORDS in ops/plan.rs");
