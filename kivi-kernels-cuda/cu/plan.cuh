// plan.cuh: who does what in decode.cu, from the plan that plan.cu has left for each block.
#pragma once
#include "span.cuh"

// What a row sees: known for the one with which the block begins.
__device__ Extent extent_at(const DecodeParams& p, u32 row) {
    const BlockPlan& plan = p.plan[blockIdx.x];
    return row == plan.row ? plan.extent : extent_of(p, row);
}

// Plans a team's next spans, by a warp: items first, first + step, .., a lane each.
__device__ void plan_items(const DecodeParams& p, Shared& s, const Share& share, const Team& team, u32 first, u32 step) {
    u32 lane = threadIdx.x % WARP, item = first + lane * step, part = share.parts > 1 ? blockIdx.x % share.parts : 0;
    Extent extent;
    u32 row = 0, from = 1, to = 0, piece = 1, cost = 0;
    if (lane < team.spans() && item < share.items) {
        row = item / share.units;
        extent = extent_at(p, row);
        cost = extent.cost(TILE, ROWS_COST);
        piece = share.parts > 1 ? max((cost + share.parts - 1) / share.parts, DECODE_WARPS) : cost;
        from = part * piece;
        to = min(from + piece, cost);
    }
    u32 some = __ballot_sync(ALL_LANES, from < to), before = __popc(some & ((1u << lane) - 1));
    if (from < to) {
        Span span = span_of(p.attend.cache, extent, team.warps, row, item - row * share.units, from, to);
        span.parts = (cost + piece - 1) / piece;
        span.first_block = blockIdx.x - part;
        span.slot = 2 * blockIdx.x + (part == 0);
        s.spans[team.first * SPANS + before] = span;
    }
    if (lane == 0) {
        s.n_spans[team.first] = __popc(some);
        s.more[team.first] = share.parts == 1 && first + team.spans() * step < share.items;
    }
}

// The span at s.line, and moves on to the next.
__device__ Span next_span(const DecodeParams& p, Shared& s, const Share& share, u64 end) {
    for (;; s.row += 1) {
        if (s.row != s.extent_row) {
            s.extent_row = s.row;
            s.extent = extent_of(p, s.row);
        }
        if (s.extent.cost(TILE, ROWS_COST) > 0) {
            break;
        }
    }
    u64 cost = s.extent.cost(TILE, ROWS_COST);
    u32 unit = (u32)divide(s.line - s.row_start, cost);
    u64 first = s.row_start + unit * cost, last = first + cost;
    Span span = span_of(p.attend.cache, s.extent, DECODE_WARPS, s.row, unit, (u32)(s.line - first), (u32)(min(end, last) - first));
    span.first_block = share.block_at(first);
    span.parts = share.block_at(last - 1) - span.first_block + 1;
    span.slot = 2 * blockIdx.x + (span.first_block == blockIdx.x);
    s.line = min(end, last);
    if (last == s.row_start + cost * share.units) {
        s.row_start = last;
        s.row += 1;
    }
    return span;
}

// Plans the next spans of this block's piece of the line, by one thread.
__device__ void plan_line(const DecodeParams& p, Shared& s, const Share& share, u32 round) {
    const BlockPlan& plan = p.plan[blockIdx.x];
    if (round == 0) {
        s.line = share.start(blockIdx.x);
        s.row = s.extent_row = plan.row;
        s.row_start = plan.row_start;
        s.extent = plan.extent;
    }
    u64 end = share.start(blockIdx.x + 1);
    u32 n = 0;
    while (n < DECODE_WARPS * SPANS && s.line < end) {
        s.spans[n] = next_span(p, s, share, end);
        n += 1;
    }
    s.n_spans[0] = n;
    s.more[0] = s.line < end;
}

// Plans a team's next spans, the round-th time; its warps wait for them.
__device__ void plan(const DecodeParams& p, Shared& s, const Share& share, const Team& team, u32 round) {
    team.sync();
    if (team.warp == 0) {
        if (share.parts == 0) {
            if (threadIdx.x == 0) {
                plan_line(p, s, share, round);
            }
        } else {
            u32 step = gridDim.x * (DECODE_WARPS / team.warps), n = team.spans();
            u32 first = share.parts > 1 ? blockIdx.x / share.parts : blockIdx.x + gridDim.x * (team.first / team.warps);
            plan_items(p, s, share, team, first + round * n * step, step);
        }
    }
    team.sync();
}
