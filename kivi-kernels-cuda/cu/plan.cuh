// plan.cuh: who does what in decode.cu; every block finds out for itself, from lengths that lie on the device.
#pragma once
#include "span.cuh"

// How rows and units are shared. Whole: each has a team of its own, teams take turns; or several blocks, a part each.
// Else they are one line, of which each block has an equal piece.
struct Share {
    u64 length;    // of the line
    u32 items;     // rows and units
    u32 units;     // of a row
    u32 blocks;    // of the line
    u32 team;      // warps
    u32 parts;     // blocks to a row and unit, at most; 0: the line

    __device__ u64 start(u32 block) const;
    __device__ u32 block_at(u64 x) const;
};

// What the rows cost: the sum over all, and the largest; whether all are this kernel's.
struct Costs {
    u64 sum;
    u32 largest, all;
};

// What is spent besides tiles, in tiles of a warp, by estimate: once a row and unit, more with several warps, more with
// several blocks; and with pieces of a line, of which most blocks have two.
constexpr float UNIT_COST = 1.0f, TEAM_COST = 2.0f, PARTS_COST = 2.0f, LINE_COST = 8.0f;

// a / b; most lines are short, and 64-bit division takes some hundred instructions.
__device__ u64 divide(u64 a, u64 b) { return (a | b) >> 32 ? a / b : (u32)a / (u32)b; }

__device__ u64 Share::start(u32 block) const { return divide(length * block, blocks); }
__device__ u32 Share::block_at(u64 x) const { return (u32)divide((x + 1) * blocks + length - 1, length) - 1; }

// Chooses what should be done first. All blocks choose the same.
__device__ Share choose(const DecodeParams& p, const Costs& costs) {
    u32 units = p.attend.cache.n_kv_heads * p.query_blocks;
    Share share = {costs.sum * units, p.attend.rows * units, units, 0, DECODE_WARPS, 0};
    share.blocks = (u32)min((u64)gridDim.x, (share.length + DECODE_WARPS - 1) / DECODE_WARPS);
    if (!costs.all) {
        return share;
    }
    float largest = (float)costs.largest, grid = 1.0f / (float)gridDim.x, items = (float)share.items * grid;
    float tiles = (float)share.length * grid / DECODE_WARPS, best = tiles + items * (UNIT_COST + TEAM_COST) + LINE_COST;
    if (share.items <= gridDim.x) {
        u32 parts = gridDim.x / share.items;
        float time = largest / (float)(parts * DECODE_WARPS) + UNIT_COST + TEAM_COST + (parts > 1 ? PARTS_COST : 0.0f);
        if (time <= best) {
            best = time;
            share.parts = parts;
        }
    }
    // A region has room for 4 queries.
    u32 least = p.attend.n_heads / p.attend.cache.n_kv_heads > 4 ? 2 : 1;
#pragma unroll
    for (u32 team = 1; team <= DECODE_WARPS; ++team) {
        if (DECODE_WARPS % team) continue;
        float turns = ceilf(items * team / DECODE_WARPS - 0.001f), longest = largest / team;
        float time = fminf(turns * longest, tiles + longest) + turns * (UNIT_COST + (team > 1 ? TEAM_COST : 0.0f));
        if (time < best && team >= least) {
            best = time;
            share.parts = 1;
            share.team = team;
        }
    }
    return share;
}

// The sum over the threads up to this one; the sum over all in total.
__device__ u64 block_scan(Shared& s, u64 x, u64* total) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (u32 step = 1; step < WARP; step *= 2) {
        u64 below = __shfl_up_sync(ALL_LANES, x, step);
        x += lane >= step ? below : 0;
    }
    if (lane == WARP - 1) {
        s.scan[warp] = x;
    }
    __syncthreads();
    u64 before = 0, all = 0;
    for (u32 w = 0; w < DECODE_WARPS; ++w) {
        before += w < warp ? s.scan[w] : 0;
        all += s.scan[w];
    }
    __syncthreads();
    *total = all;
    return before + x;
}

// The largest x of the threads, in each.
__device__ u64 block_largest(Shared& s, u64 x) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) {
        s.scan[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    for (u32 w = 0; w < DECODE_WARPS; ++w) {
        x = max(x, s.scan[w]);
    }
    __syncthreads();
    return x;
}

// Where this block's piece of the line starts.
__device__ u64 start_of_block(const Share& share) {
    return blockIdx.x < share.blocks ? share.start(blockIdx.x) : share.length;
}

// If x is in a row that ends at a place of the line: it is where this block's piece starts.
__device__ void start_in(Shared& s, u64 x, u32 row, const Extent& extent, u64 end, u64 cost) {
    if (end - cost <= x && x < end) {
        s.line = x;
        s.row = s.extent_row = row;
        s.row_start = end - cost;
        s.extent = extent;
    }
}

// Measures all rows and, if they are shared as a line, finds the row where this block's piece starts: s.line, s.row,
// s.row_start, s.extent.
__device__ Share measure(const DecodeParams& p, Shared& s) {
    u32 rows = p.attend.rows;
    Costs costs = {0, 0, 1};
    for (u32 base = 0; base < rows; base += DECODE_BLOCK) {
        u32 cost = base + threadIdx.x < rows ? extent_of(p, base + threadIdx.x).cost() : 1;
        costs.largest = max(costs.largest, cost);
        costs.all &= cost > 0;
        costs.sum += base + threadIdx.x < rows ? cost : 0;
    }
    block_scan(s, costs.sum, &costs.sum);
    costs.largest = (u32)block_largest(s, costs.largest);
    costs.all = !__syncthreads_or(!costs.all);
    Share share = choose(p, costs);
    u64 x = start_of_block(share), before = 0;
    for (u32 base = 0; share.parts == 0 && before <= x && base < rows; base += DECODE_BLOCK) {
        u64 total, row = base + threadIdx.x, cost = 0;
        Extent extent = {};
        if (row < rows) {
            extent = extent_of(p, row);
            cost = extent.cost() * (u64)share.units;
        }
        u64 end = before + block_scan(s, cost, &total);
        start_in(s, x, row, extent, end, cost);
        before += total;
    }
    return share;
}

// The same for at most as many rows as a warp has lanes, without waiting for other warps.
__device__ Share measure_few(const DecodeParams& p, Shared& s) {
    u32 lane = threadIdx.x % WARP, rows = p.attend.rows, cost = 0;
    Extent extent = {};
    if (lane < rows) {
        extent = extent_of(p, lane);
        cost = extent.cost();
    }
    u32 sum = cost, largest = cost;
    for (u32 step = 1; step < WARP; step *= 2) {
        u32 below = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? below : 0;
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    u32 all = !__any_sync(ALL_LANES, lane < rows && cost == 0);
    Share share = choose(p, {__shfl_sync(ALL_LANES, sum, WARP - 1), largest, all});
    if (share.parts == 0 && threadIdx.x < WARP) {
        start_in(s, start_of_block(share), lane, extent, (u64)sum * share.units, (u64)cost * share.units);
    }
    return share;
}

// Plans a team's next spans, by a warp: items first, first + step, .., a lane each.
__device__ void plan_items(const DecodeParams& p, Shared& s, const Share& share, const Team& team, u32 first, u32 step) {
    u32 lane = threadIdx.x % WARP, item = first + lane * step, part = share.parts > 1 ? blockIdx.x % share.parts : 0;
    Extent extent;
    u32 row = 0, from = 1, to = 0, piece = 1, cost = 0;
    if (lane < team.warps * SPANS && item < share.items) {
        row = item / share.units;
        extent = extent_of(p, row);
        cost = extent.cost();
        piece = share.parts > 1 ? max((cost + share.parts - 1) / share.parts, DECODE_WARPS) : cost;
        from = part * piece;
        to = min(from + piece, cost);
    }
    u32 some = __ballot_sync(ALL_LANES, from < to), before = __popc(some & ((1u << lane) - 1));
    if (from < to) {
        Span span = span_of(p.attend.cache, extent, row, item - row * share.units, from, to);
        span.parts = (cost + piece - 1) / piece;
        span.first_block = blockIdx.x - part;
        span.slot = 2 * blockIdx.x + (part == 0);
        s.spans[team.first * SPANS + before] = span;
    }
    if (lane == 0) {
        s.n_spans[team.first] = __popc(some);
        s.more[team.first] = share.parts == 1 && first + team.warps * SPANS * step < share.items;
    }
}

// The span at s.line, and moves on to the next.
__device__ Span next_span(const DecodeParams& p, Shared& s, const Share& share, u64 end) {
    for (;; s.row += 1) {
        if (s.row != s.extent_row) {
            s.extent_row = s.row;
            s.extent = extent_of(p, s.row);
        }
        if (s.extent.cost() > 0) {
            break;
        }
    }
    u64 cost = s.extent.cost();
    u32 unit = (u32)divide(s.line - s.row_start, cost);
    u64 first = s.row_start + unit * cost, last = first + cost;
    Span span = span_of(p.attend.cache, s.extent, s.row, unit, (u32)(s.line - first), (u32)(min(end, last) - first));
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
__device__ void plan_line(const DecodeParams& p, Shared& s, const Share& share) {
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
                plan_line(p, s, share);
            }
        } else {
            u32 step = gridDim.x * (DECODE_WARPS / team.warps), n = team.warps * SPANS;
            u32 first = share.parts > 1 ? blockIdx.x / share.parts : blockIdx.x + gridDim.x * (team.first / team.warps);
            plan_items(p, s, share, team, first + round * n * step, step);
        }
    }
    team.sync();
}
