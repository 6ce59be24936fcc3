// copies.cuh: packed tiles on their way to shared memory, for each warp of decode.cu by itself.
#pragma once
#include "span.cuh"

// Copies bytes with all lanes; behind each 128 of them, pad bytes are left out (span.cuh says why).
template <u32 BYTES, u32 PAD>
__device__ __forceinline__ void copy_bytes(u32 to, const char* from, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < BYTES; i += WARP * 16) {
        if (BYTES % (WARP * 16) == 0 || lane * 16 + i < BYTES) {
            copy_async(to + padded<PAD>(lane * 16) + padded<PAD>(i), from + i);
        }
    }
}

// Copies N rows with all lanes.
template <u32 N>
__device__ __forceinline__ void copy_rows(u32 to, const char* from, u32 lane) {
    constexpr u32 PIECES = HEAD_DIM / 8;  // of 16 bytes
#pragma unroll
    for (u32 j = 0; j < N * PIECES; j += WARP) {
        u32 i = lane + j;
        if (N * PIECES % WARP == 0 || i < N * PIECES) {
            copy_async(to + i / PIECES * ROW_STRIDE * 2 + i % PIECES * 16, from + j * 16);
        }
    }
}

// Brings N tokens from token t of a page on to a stage; the page is that of the lane: 16 bytes a lane further.
template <u32 N>
__device__ __forceinline__ void copy_tile(u32 stage, const char* page, u32 t, u32 lane) {
    if (K_CODES) {
        copy_bytes<N * K_WORDS * 4, 0>(stage, page + t * (K_WORDS * 4), lane);
        const char* params = page + t / GROUP_SIZE * (HEAD_DIM * 4) + K_PARAMS_START * 4;
        copy_bytes<KEY_GROUPS<N> * HEAD_DIM * 4, K_PARAMS_PAD>(stage + K_PARAMS_AT, params, lane);
    } else {
        copy_rows<N>(stage, page + t * (K_WORDS * 4), lane);
    }
    if (V_CODES) {
        copy_bytes<N * V_WORDS * 4, V_PAD>(stage + V_AT, page + t * (V_WORDS * 4) + V_START * 4, lane);
        const char* params = page + t * (VALUE_GROUPS * 4) + V_PARAMS_START * 4;
        copy_bytes<N * VALUE_GROUPS * 4, 0>(stage + V_PARAMS_AT, params, lane);
    } else {
        copy_rows<N>(stage + V_AT, page + t * (V_WORDS * 4) + V_START * 4, lane);
    }
}

// The copies of a warp. STAGES tiles are under way or in use; the next goes where the oldest was.
struct Copies {
    const Team& team;
    u32 lane;
    u32 first, oldest;  // stages
    u32 span, spans;    // of the team's spans the next tile's, and where they end
    Walk walk;          // the next tile
    u32 head, pages;    // its KV head; where its sequence's pages begin in the table
    u32 page;           // its page's number, which is asked for early

    __device__ explicit Copies(const Team& team)
        : team(team),
          lane(lane_id()),
          first(keep(shared_address(dynamic_shared()) + STAGES_AT + threadIdx.x / WARP * (STAGES * STAGE_BYTES))),
          oldest(first) {}

    // Starts with the first of new spans. Pages are asked for before the first is waited for.
    __device__ void restart(const Cache& c, const Shared& s) {
        u32 heads[STAGES], tokens[STAGES], of_tile[STAGES];  // pages
        bool some[STAGES], wide[STAGES];
        spans = team.first * SPANS + s.n_spans[team.first];
        if (s.n_spans[team.first] == 0) {
            return;
        }
        enter(c, s, team.first * SPANS);
#pragma unroll
        for (u32 i = 0; i < STAGES; ++i) {
            find(c, s);
            heads[i] = head, tokens[i] = walk.token, of_tile[i] = page, some[i] = walk.more(), wide[i] = walk.wide();
            if (some[i]) {
                advance(s);
            }
        }
        find(c, s);
#pragma unroll
        for (u32 i = 0; i < STAGES; ++i) {
            if (some[i]) {
                copy(c, of_tile[i], heads[i], tokens[i], wide[i]);
            }
            commit_async();  // without a tile too: waiting counts groups
            next();
        }
    }

    __device__ __forceinline__ void enter(const Cache& c, const Shared& s, u32 next) {
        const Span& of = s.spans[next];
        span = next;
        walk.enter(of, team);
        head = of.head;
        pages = of.extent.seq * c.max_pages;
    }

    __device__ __forceinline__ void find(const Cache& c, const Shared& s) {
        while (!walk.more() && span + 1 < spans) {
            enter(c, s, span + 1);
        }
        if (walk.more()) {
            page = c.page_table[pages + walk.token / PAGE_TOKENS];
        }
    }

    __device__ __forceinline__ void advance(const Shared& s) {
        if (walk.wide()) {
            walk.next_wide(s.spans[span], team);
        } else {
            walk.next(team);
        }
    }

    // Begins to copy a tile to the oldest stage.
    __device__ __forceinline__ void copy(const Cache& c, u32 page, u32 head, u32 token, bool wide) {
        u64 record = page * c.n_kv_heads + head;
        const char* from = (const char*)c.pool + record * (PAGE_WORDS * 4) + lane * 16;
        if (TILE == WIDE_TILE || wide) {
            copy_tile<WIDE_TILE>(oldest, from, token % PAGE_TOKENS, lane);
        } else {
            copy_tile<TILE>(oldest, from, token % PAGE_TOKENS, lane);
        }
    }

    __device__ __forceinline__ void next() {
        oldest = oldest == first + (STAGES - 1) * STAGE_BYTES ? first : oldest + STAGE_BYTES;
    }

    // The stage with the oldest tile.
    __device__ __forceinline__ u32 wait() {
        wait_async<STAGES - 1>();
        __syncwarp();
        return oldest;
    }

    // Gives it free for the next tile, if there is one.
    __device__ __forceinline__ void release(const Cache& c, const Shared& s) {
        __syncwarp();
        if (walk.more()) {
            copy(c, page, head, walk.token, walk.wide());
            advance(s);
            find(c, s);
        }
        commit_async();
        next();
    }
};
