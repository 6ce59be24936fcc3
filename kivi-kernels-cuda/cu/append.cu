// append.cu: writing the cache of one layout, each element read once; cache.cu has the kernels for the others.
//   append       grid (2 n_kv_heads, parts, n_seqs): keys of the heads, then values; the parts share a head's new tokens
//   append_step  grid (n_kv_heads / heads, n_seqs): few new tokens; a warp for the keys of a head, and one for the values
//   append_rows  grid (n_seqs n_kv_heads / 8): the same of many sequences without keys that are due; a warp for a head
//   append_due   grid (n_kv_heads / 8, n_seqs / 8): those keys alone
//
// One launch does a step, prompts too, but for few tokens of many sequences. All reading and writing of a ring is one
// block's: part 0 of a head packs what is due from the ring, then stores new rows there. Other tiles come from the new rows
// alone. In a step of few tokens it is one warp's, but for keys that are due: teams pack them, and when all of a block's have,
// its warps store the new rows.
#include "pack.cuh"

struct AppendParams {
    Cache cache;
    u32 heads;    // of a block of append_step
    // Whether no launch that may still run writes what the step is about, or the cache: append_rows alone may, before
    // append_due, which reads none of it before it waits.
    u32 settled;
};
KIVI_CHECK_SIZE(AppendParams);

constexpr u32 DUE_SEQS = 8;  // sequences of a block of append_due

// What a step has for one side of a head of a sequence.
struct Step {
    Source source;
    u32 end;           // tokens after it
    u32 packed, next;  // packed before and after it
};

template <bool KEYS>
constexpr bool CODES = KEYS ? K_CODES : V_CODES;

template <bool KEYS>
__device__ __forceinline__ Step step_of(const Cache& c, const Side& side, u32 seq, u32 head) {
    u32 channel = lane_of_row() * 8, len = c.len[seq], rows = c.row_start[seq];
    const Act* fresh = side.rows + ((long long)rows - len) * (long long)side.row_stride + head * HEAD_DIM + channel;
    Step step = {{fresh, nullptr, side.row_stride, len, c.residual}, len + (c.row_start[seq + 1] - rows), 0, 0};
    if (CODES<KEYS>) {
        step.source.ring = (Act*)slot_row(c, side.ring, c.residual, seq, head, 0) + channel;
        step.next = side.packed_next[seq];
        step.packed = KEYS ? side.packed[seq] : max(side.packed[seq], c.sinks);
    }
    return step;
}

// to := rows [begin, end) of the new ones, by BY threads, `every` rows at a time; `to` is told the token.
template <u32 BY, class To>
__device__ __forceinline__ void store_rows(const Source& source, u32 begin, u32 end, u32 every, To to) {
    for (u32 token = begin + threadIdx.x % BY / LANES; token < end; token += every) {
        if (lane_of_row() < ROW_LANES) {
            *(uint4*)to(token) = __ldcs((const uint4*)(source.fresh + token * source.stride));
        }
    }
}

// Rows of a side without codes, to their pages.
template <u32 BY>
__device__ __forceinline__ void store_pages(const Cache& c, const Side& side, const Step& step, u32 seq, u32 head,
                                            u32 begin, u32 every) {
    store_rows<BY>(step.source, begin, step.end, every, [&](u32 token) {
        u32* row = page_at(c, seq, head, token) + side.codes_start + token % PAGE_TOKENS * (HEAD_DIM / 2);
        return (Act*)row + lane_of_row() * 8;
    });
}

// Rows that stay whole, to ring and sinks.
template <u32 BY>
__device__ __forceinline__ void store_window(const Cache& c, const Side& side, const Step& step, u32 seq, u32 head) {
    const Source& source = step.source;
    store_rows<BY>(source, max(source.len, step.next), step.end, BY / LANES, [&](u32 token) {
        return source.ring + token % c.residual * HEAD_DIM;
    });
    Act* sinks = (Act*)slot_row(c, side.sink, c.sinks, seq, head, 0) + lane_of_row() * 8;
    store_rows<BY>(source, source.len, min(step.end, c.sinks), BY / LANES, [&](u32 token) {
        return sinks + token * HEAD_DIM;
    });
}

// A block's part of many tokens.
template <bool KEYS>
__device__ __forceinline__ void append_many(const Cache& c, const Side& side, u32 seq, u32 head, u32 part, u32 parts) {
    Step step = step_of<KEYS>(c, side, seq, head);
    if (!CODES<KEYS>) {
        u32 at_once = BLOCK / LANES;
        store_pages<BLOCK>(c, side, step, seq, head, step.source.len + part * at_once, parts * at_once);
        return;
    }
    auto pack = [&](u32 first) {
        u32 begin = max(first, step.packed), stop = min(first + TILE, step.next);
        if (begin < stop && KEYS) {
            pack_keys(c, step.source, seq, head, first, begin, stop);
        } else if (begin < stop) {
            u32 own = first + threadIdx.x / WARP * OF_WARP<DEPTH>;
            pack_values<DEPTH>(c, step.source, seq, head, own, begin, stop);
        }
    };
    u32 from_ring = (step.source.len + TILE - 1) / TILE;  // tiles below this one may have rows of the ring
    u32 tile = part == 0 ? min(step.packed / TILE, from_ring) : from_ring + part;
    for (; tile * (u64)TILE < step.next; tile += tile < from_ring ? 1 : parts) {
        pack(tile * TILE);
    }
    if (part == 0) {
        __syncthreads();
        store_window<BLOCK>(c, side, step, seq, head);
    }
}

// Rows of the ring that will be packed, to the second-level cache.
__device__ __forceinline__ void ask_due(const Step& step) {
    u32 token = step.packed + threadIdx.x % WARP / LANES;
    if (token < step.next && lane_of_row() < ROW_LANES) {
        ask(step.source.ring + token % step.source.residual * HEAD_DIM);
    }
}

// Few new tokens of a head, by a warp; keys unless they are due.
template <bool KEYS>
__device__ __forceinline__ void append_few(const Cache& c, const Side& side, const Step& step, u32 seq, u32 head) {
    if (!CODES<KEYS>) {
        store_pages<WARP>(c, side, step, seq, head, step.source.len, WARP / LANES);
        return;
    }
    if (KEYS && step.packed < step.next) {
        return;
    }
    if (!KEYS) {
        constexpr u32 EACH = OF_WARP<2>;
        for (u32 first = step.packed / EACH * EACH; first < step.next; first += EACH) {
            pack_values<2>(c, step.source, seq, head, first, step.packed, step.next);
            __syncwarp();
        }
    }
    store_window<WARP>(c, side, step, seq, head);
}

// Keys of heads [begin, end) that are due, by a block: teams take windows of them, then warps the new rows.
__device__ __forceinline__ void append_due_keys(const Cache& c, u32 seq, u32 begin, u32 end) {
    constexpr u32 TEAMS = BLOCK / K_TEAM, WINDOW = TILE / TEAMS;  // WINDOW: tokens
    u32 heads = end - begin, packed = c.k.packed[seq], next = c.k.packed_next[seq], team = threadIdx.x / K_TEAM;
    u32 windows = (next - packed + WINDOW - 1) / WINDOW;
    for (u32 i = team; i < windows * heads; i += TEAMS) {
        u32 head = begin + i % heads, from = packed + i / heads * WINDOW;
        Step step = step_of<true>(c, c.k, seq, head);
        pack_keys(c, step.source, seq, head, from - team * WINDOW, from, min(from + WINDOW, next));
    }
    __syncthreads();
    for (u32 head = begin + threadIdx.x / WARP; head < end; head += WARPS) {
        store_window<WARP>(c, c.k, step_of<true>(c, c.k, seq, head), seq, head);
    }
}

__device__ __forceinline__ bool keys_are_due(const Cache& c, u32 seq) {
    return K_CODES && c.active[seq] && c.k.packed[seq] < c.k.packed_next[seq];
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2) append(AppendParams p) {
    wait_for_launch_before();
    const Cache& c = p.cache;
    u32 head = blockIdx.x % c.n_kv_heads, seq = blockIdx.z;
    if (!c.active[seq]) {
        return;
    }
    if (blockIdx.x < c.n_kv_heads) {
        append_many<true>(c, c.k, seq, head, blockIdx.y, gridDim.y);
    } else {
        append_many<false>(c, c.v, seq, head, blockIdx.y, gridDim.y);
    }
}

// What a step is about is read before the launch before is done, if it is settled.
__device__ __forceinline__ void wait_unless_settled(const AppendParams& p) {
    if (!p.settled) {
        wait_for_launch_before();
    }
}

template <bool KEYS>
__device__ __forceinline__ void append_side(const Cache& c, const Side& side, u32 seq, u32 head) {
    u32 active = c.active[seq];
    Step step = step_of<KEYS>(c, side, seq, head);
    if (CODES<KEYS> && !KEYS && active) {
        ask_due(step);
    }
    wait_for_launch_before();
    if (active) {
        append_few<KEYS>(c, side, step, seq, head);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2) append_step(AppendParams p) {
    wait_unless_settled(p);
    const Cache& c = p.cache;
    u32 seq = blockIdx.y, first = blockIdx.x * p.heads, end = min(first + p.heads, c.n_kv_heads);
    u32 warp = threadIdx.x / WARP, head = first + warp / 2;
    if (head < end && warp % 2) {
        append_side<false>(c, c.v, seq, head);
    } else if (head < end) {
        append_side<true>(c, c.k, seq, head);
    }
    wait_for_launch_before();
    if (keys_are_due(c, seq)) {
        append_due_keys(c, seq, first, end);
    }
}

// Keys that are due take three times the registers, which would leave room for a third as many warps.
extern "C" __global__ void __launch_bounds__(BLOCK, 6) append_rows(AppendParams p) {
    wait_unless_settled(p);
    const Cache& c = p.cache;
    u32 i = blockIdx.x * WARPS + threadIdx.x / WARP, seq = min(i / c.n_kv_heads, c.n_seqs - 1), head = i % c.n_kv_heads;
    bool active = i < c.n_seqs * c.n_kv_heads && c.active[seq];
    Step keys = step_of<true>(c, c.k, seq, head), values = step_of<false>(c, c.v, seq, head);
    if (V_CODES && active) {
        ask_due(values);
    }
    wait_for_launch_before();
    if (active) {
        append_few<true>(c, c.k, keys, seq, head);
        append_few<false>(c, c.v, values, seq, head);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2) append_due(AppendParams p) {
    wait_unless_settled(p);
    const Cache& c = p.cache;
    u32 first = blockIdx.x * WARPS, seq = blockIdx.y * DUE_SEQS + threadIdx.x % WARP;
    bool due = threadIdx.x % WARP < DUE_SEQS && seq < c.n_seqs && keys_are_due(c, seq);
    u32 those = __ballot_sync(ALL_LANES, due);
    wait_for_launch_before();
    for (; those != 0; those &= those - 1) {
        append_due_keys(c, blockIdx.y * DUE_SEQS + __ffs(those) - 1, first, min(first + WARPS, c.n_kv_heads));
    }
}
