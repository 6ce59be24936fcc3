// plan.cu: measures the rows of a step and chooses how decode.cu shares them, for each of its blocks. Lengths lie on the
// device, so that a recorded launch serves any; layers of the same settings share a plan.
//   grid: one block
#include "share.cuh"

// What all threads have of the rows.
struct Totals {
    u64 of_warp[WARPS];
};

// What the rows cost: the sum over all, and the largest; how many are this kernel's.
struct Costs {
    u64 sum, rows;
    u32 largest;
};

// What is spent besides tiles, in tiles of a warp, by estimate: once a row and unit, more with several warps, more with
// several blocks (found where tiles are small, as they are wherever there are parts, but where the boundary is moved); with pieces
// of a line, of which most blocks have two; and for each row and unit that is passed over.
constexpr float UNIT_COST = 1.0f, TEAM_COST = 2.0f, PARTS_COST = 3.5f, LINE_COST = 8.0f, IDLE_COST = 0.5f;

// Chooses what should be done first.
__device__ Share choose(const DecodeParams& p, const Costs& costs) {
    u32 units = p.attend.cache.n_kv_heads * p.query_blocks;
    Share share = {costs.sum * units, p.attend.rows * units, units, 0, p.warps, 0, 0};
    share.blocks = (u32)min((u64)p.blocks, (share.length + p.warps - 1) / p.warps);
    u32 mine = (u32)costs.rows * units;
    if (mine == 0) {
        return share;
    }
    float largest = (float)costs.largest, grid = 1.0f / (float)p.blocks, items = (float)mine * grid;
    float tiles = (float)share.length * grid / p.warps, best = tiles + items * (UNIT_COST + TEAM_COST) + LINE_COST;
    if (mine == share.items && mine <= p.blocks) {
        u32 parts = p.blocks / share.items;
        float time = largest / (float)(parts * p.warps) + UNIT_COST + TEAM_COST + (parts > 1 ? PARTS_COST : 0.0f);
        if (time <= best) {
            best = time;
            share.parts = parts;
        }
    }
    // A region has room for 4 queries.
    u32 least = p.attend.n_heads / p.attend.cache.n_kv_heads > 4 ? 2 : 1;
    float idle = IDLE_COST * (float)(share.items - mine) * grid / p.warps;
    for (u32 team = least; team <= p.warps; ++team) {
        float turns = ceilf(items * team / p.warps - 0.001f), longest = largest / team;
        float time = fminf(turns * longest, tiles + longest) + idle + turns * (UNIT_COST + (team > 1 ? TEAM_COST : 0.0f));
        if (time < best && p.warps % team == 0) {
            best = time;
            share.parts = 1;
            share.team = team;
        }
    }
    return share;
}

// The sum over the threads up to this one; the sum over all in total.
__device__ u64 block_scan(Totals& s, u64 x, u64* total) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (u32 step = 1; step < WARP; step *= 2) {
        u64 below = __shfl_up_sync(ALL_LANES, x, step);
        x += lane >= step ? below : 0;
    }
    if (lane == WARP - 1) {
        s.of_warp[warp] = x;
    }
    __syncthreads();
    u64 before = 0, all = 0;
    for (u32 w = 0; w < WARPS; ++w) {
        before += w < warp ? s.of_warp[w] : 0;
        all += s.of_warp[w];
    }
    __syncthreads();
    *total = all;
    return before + x;
}

// The largest x of the threads, in each.
__device__ u64 block_largest(Totals& s, u64 x) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) {
        s.of_warp[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    for (u32 w = 0; w < WARPS; ++w) {
        x = max(x, s.of_warp[w]);
    }
    __syncthreads();
    return x;
}

__device__ Share measure(const DecodeParams& p, Totals& s) {
    Costs costs = {};
    for (u32 row = threadIdx.x; row < p.attend.rows; row += BLOCK) {
        u32 cost = extent_of(p, row).cost(p.tile, p.rows_cost);
        costs.largest = max(costs.largest, cost);
        costs.rows += cost > 0;
        costs.sum += cost;
    }
    block_scan(s, costs.sum, &costs.sum);
    block_scan(s, costs.rows, &costs.rows);
    costs.largest = (u32)block_largest(s, costs.largest);
    return choose(p, costs);
}

// The first row of each block's piece of the line.
__device__ void start_line(const DecodeParams& p, Totals& s, const Share& share) {
    u64 before = 0;
    for (u32 base = 0; base < p.attend.rows; base += BLOCK) {
        u64 total, row = base + threadIdx.x, cost = row < p.attend.rows ? extent_of(p, row).cost(p.tile, p.rows_cost) * (u64)share.units : 0;
        u64 end = before + block_scan(s, cost, &total), start = end - cost;
        u32 block = cost > 0 ? (u32)divide(start * share.blocks + share.length - 1, share.length) : share.blocks;
        for (; block < share.blocks && share.start(block) < end; ++block) {
            p.plan[block].row = (u32)row;
            p.plan[block].row_start = start;
        }
        before += total;
    }
    __syncthreads();
}

// The row with which a block begins; none if it has nothing to do.
__device__ u32 first_row(const DecodeParams& p, const Share& share, u32 block) {
    if (share.parts == 0) {
        return block < share.blocks ? p.plan[block].row : ~0u;
    }
    u32 item = block / share.parts;
    return item < share.items ? item / share.units : ~0u;
}

extern "C" __global__ void __launch_bounds__(BLOCK) plan_decode(const __grid_constant__ DecodeParams p) {
    wait_for_launch_before();
    __shared__ Totals s;
    Share share = measure(p, s);
    if (share.parts == 0) {
        start_line(p, s, share);
    }
    for (u32 block = threadIdx.x; block < p.blocks; block += BLOCK) {
        BlockPlan& plan = p.plan[block];
        plan.share = share;
        plan.row = first_row(p, share, block);
        if (plan.row != ~0u) {
            plan.extent = extent_of(p, plan.row);
        }
    }
}
