// span.cuh: decode.cu's constants, and which tiles a block has.
#pragma once
#include "codes.cuh"
#include "row.cuh"

struct DecodeParams {
    AttendParams attend;
    float* partials;      // [grid][2][QUERIES][head_dim + 2]
    u32* arrived;         // [grid], zero before and after
    u32 query_blocks;     // of a KV head
    u32 few;              // sequences with more new rows than these are not this kernel's
};
KIVI_CHECK_SIZE(DecodeParams);

constexpr u32 QUERIES = 8;
constexpr u32 ROUND = 4;  // queries of which the warps' sums are added at a time
constexpr u32 TILE = K_CODES && V_CODES && HEAD_DIM * (K_BITS + V_BITS) <= 2048 ? 32 : 16;
constexpr u32 M_TILES = TILE / 16;
constexpr u32 STAGES = KIVI_STAGES;

// What lanes read together lies 128 bytes apart: with so many bytes more behind each 128, in different banks.
constexpr u32 K_PARAMS_PAD = 16, V_PAD = 32;
template <u32 PAD>
__device__ constexpr u32 padded(u32 at) { return at + at / 128 * PAD; }

constexpr u32 K_BYTES = K_CODES ? TILE * K_WORDS * 4 : TILE * ROW_STRIDE * 2;
constexpr u32 K_PARAM_BYTES = K_CODES ? padded<K_PARAMS_PAD>(HEAD_DIM * 4) : 0;
constexpr u32 V_BYTES = V_CODES ? padded<V_PAD>(TILE * V_WORDS * 4) : TILE * ROW_STRIDE * 2;
constexpr u32 V_PARAM_BYTES = V_CODES ? TILE * VALUE_GROUPS * 4 : 0;
constexpr u32 K_PARAMS_AT = K_BYTES, V_AT = K_PARAMS_AT + K_PARAM_BYTES, V_PARAMS_AT = V_AT + V_BYTES;
constexpr u32 STAGE_BYTES = V_PARAMS_AT + V_PARAM_BYTES;
constexpr u32 ROWS_TILES = (64 * HEAD_DIM + STAGE_BYTES / 2) / STAGE_BYTES;  // 16 rows in bytes of packed tiles
constexpr u32 ROWS_COST = ROWS_TILES > 1 ? ROWS_TILES : 1;
constexpr u32 MAX_SPANS = 32;  // planned at a time

constexpr float K_FOLD = 16.0f;         // in q'; q < 2 and scales below 512 make q' < 2^14
constexpr float WIDE_FOLD = 1 / 256.0f;  // on larger scales

// What a row sees: rows [first, start), tokens of which a side at least is packed [start, end), rows [end, at].
struct Extent {
    u32 seq, slot, active, len, at, first, start, end;
    u32 k_packed, v_packed;
    u32 few;  // whether the row is this kernel's

    __device__ u32 tiles() const { return end > start ? (end + TILE - 1) / TILE - start / TILE : 0; }
    __device__ u32 head_tiles() const { return (start - first + 15) / 16; }
    __device__ u32 row_tiles() const { return head_tiles() + (at + 1 - end + 15) / 16; }
    __device__ u32 cost() const { return !few ? 0 : active ? tiles() + row_tiles() * ROWS_COST : 1; }
};

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
    u32 tile, tile_end, row_tile, row_tile_end;
    u32 first_block, parts;  // the blocks that have a piece of it
    u32 slot;                // of this block's partial result
    const char* pages;       // the head's record of page 0
    const u32* table;        // the pages of its sequence
    RowsOf k, v;
};

struct Shared {
    uint4 zeros[(STEPS + 1) / 2 * WARP];
    Act q[QUERIES][ROW_STRIDE];
    float largest[WARPS][QUERIES];
    float total[WARPS][QUERIES];
    float sums[WARPS][ROUND][HEAD_DIM < 64 ? 64 : HEAD_DIM];  // as many as add_partials needs
    Span spans[MAX_SPANS];
    u64 scan[WARPS];
    u64 line, row_start;  // where the spans stop; where their last row starts
    Extent extent;  // of row extent_row
    u32 row, extent_row, n_spans, last;
};
constexpr u32 STAGES_AT = (sizeof(Shared) + 127) / 128 * 128;
static_assert(STAGES_AT + WARPS * STAGES * STAGE_BYTES <= KIVI_SHARED, "more shared memory than the launch has");

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
    e.start = min(max(e.first, K_CODES || V_CODES ? c.sinks : 0), e.at + 1);
    e.end = max(e.start, max(e.k_packed, e.v_packed));
    return e;
}

// Rows of a side of the new row `row`, which sees e.
__device__ RowsOf rows_of(const Cache& c, const Side& side, const Extent& e, u32 row, u32 head) {
    const Act* fresh = side.rows + ((long long)row - e.at) * (long long)side.row_stride + head * HEAD_DIM;
    u64 line = (u64)e.slot * c.n_kv_heads + head;
    return {fresh, (const Act*)side.ring + line * c.residual * HEAD_DIM,
            (const Act*)side.sink + line * c.sinks * HEAD_DIM, side.row_stride};
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
    for (u32 w = 0; w < WARPS; ++w) {
        before += w < warp ? s.scan[w] : 0;
        all += s.scan[w];
    }
    __syncthreads();
    *total = all;
    return before + x;
}

// a / b; most lines are short, and 64-bit division takes some hundred instructions.
__device__ u64 divide(u64 a, u64 b) { return (a | b) >> 32 ? a / b : (u32)a / (u32)b; }

// The line as the blocks share it.
struct Line {
    u64 length;
    u32 units, blocks;

    __device__ u64 start(u32 block) const { return divide(length * block, blocks); }
    __device__ u32 block_at(u64 x) const { return (u32)divide((x + 1) * blocks + length - 1, length) - 1; }
};

// How the line is shared, and where this block's piece starts: s.line.
__device__ u64 share(Shared& s, Line& line) {
    line.blocks = (u32)min((u64)gridDim.x, (line.length + WARPS - 1) / WARPS);
    u64 x = blockIdx.x < line.blocks ? line.start(blockIdx.x) : 0;
    if (threadIdx.x == 0) {
        s.line = x;
    }
    return x;
}

// If x is in a row that ends at a place of the line: it is where this block's piece starts.
__device__ void start_in(Shared& s, u64 x, u32 row, const Extent& extent, u64 end, u64 cost) {
    if (end - cost <= x && x < end) {
        s.row = s.extent_row = row;
        s.row_start = end - cost;
        s.extent = extent;
    }
}

// Measures the line, and finds the row where this block's piece starts: s.line, s.row, s.row_start, s.extent.
__device__ Line measure(const DecodeParams& p, Shared& s) {
    u32 rows = p.attend.rows, units = p.attend.cache.n_kv_heads * p.query_blocks;
    Line line = {0, units, 0};
    for (u32 base = 0; base < rows; base += BLOCK) {
        u64 total, cost = base + threadIdx.x < rows ? extent_of(p, base + threadIdx.x).cost() : 0;
        block_scan(s, cost, &total);
        line.length += total * line.units;
    }
    u64 x = share(s, line), before = 0;
    for (u32 base = 0; before <= x && base < rows; base += BLOCK) {
        u64 total, row = base + threadIdx.x, cost = 0;
        Extent extent = {};
        if (row < rows) {
            extent = extent_of(p, row);
            cost = extent.cost() * (u64)units;
        }
        u64 end = before + block_scan(s, cost, &total);
        start_in(s, x, row, extent, end, cost);
        before += total;
    }
    return line;
}

// The same for at most as many rows as a warp has lanes, without waiting for other warps.
__device__ Line measure_few(const DecodeParams& p, Shared& s) {
    u32 lane = threadIdx.x % WARP, rows = p.attend.rows, units = p.attend.cache.n_kv_heads * p.query_blocks;
    Extent extent = {};
    u32 cost = 0;
    if (lane < rows) {
        extent = extent_of(p, lane);
        cost = extent.cost();
    }
    u32 sum = cost;
    for (u32 step = 1; step < WARP; step *= 2) {
        u32 below = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? below : 0;
    }
    Line line = {(u64)__shfl_sync(ALL_LANES, sum, WARP - 1) * units, units, 0};
    u64 x = share(s, line);
    if (threadIdx.x < WARP) {
        start_in(s, x, lane, extent, (u64)sum * units, (u64)cost * units);
    }
    return line;
}

// The span at s.line, and moves on to the next.
__device__ Span next_span(const DecodeParams& p, Shared& s, const Line& line, u64 end) {
    Span span;
    for (;; s.row += 1) {
        if (s.row != s.extent_row) {
            s.extent_row = s.row;
            s.extent = extent_of(p, s.row);
        }
        span.extent = s.extent;
        if (span.extent.cost() > 0) {
            break;
        }
    }
    u64 cost = span.extent.cost();
    span.row = s.row;
    span.unit = (u32)divide(s.line - s.row_start, cost);
    span.head = span.unit % p.attend.cache.n_kv_heads;
    u64 first = s.row_start + span.unit * cost, last = first + cost;
    u32 from = (u32)(s.line - first), to = (u32)(min(end, last) - first);
    u32 tiles = span.extent.active ? span.extent.tiles() : 0;
    span.tile = min(from, tiles);
    span.tile_end = min(to, tiles);
    span.row_tile = (from - span.tile + ROWS_COST - 1) / ROWS_COST;
    span.row_tile_end = span.extent.active ? (to - span.tile_end + ROWS_COST - 1) / ROWS_COST : 0;
    span.first_block = line.block_at(first);
    span.parts = line.block_at(last - 1) - span.first_block + 1;
    span.slot = 2 * blockIdx.x + (span.first_block == blockIdx.x);
    const Cache& c = p.attend.cache;
    span.pages = (const char*)(c.pool + (u64)span.head * PAGE_WORDS);
    span.table = c.page_table + (u64)span.extent.seq * c.max_pages;
    span.k = rows_of(c, c.k, span.extent, span.row, span.head);
    span.v = rows_of(c, c.v, span.extent, span.row, span.head);
    s.line = min(end, last);
    if (last == s.row_start + cost * line.units) {
        s.row_start = last;
        s.row += 1;
    }
    return span;
}

// The first token of a span's tile.
__device__ u32 token_of(const Span& span, u32 tile) { return (span.extent.start / TILE + tile) * TILE; }
