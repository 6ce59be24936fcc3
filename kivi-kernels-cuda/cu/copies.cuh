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

// Copies rows with all lanes.
__device__ __forceinline__ void copy_rows(u32 to, const char* from, u32 lane) {
    constexpr u32 PIECES = HEAD_DIM / 8;  // of 16 bytes
#pragma unroll
    for (u32 j = 0; j < TILE * PIECES; j += WARP) {
        u32 i = lane + j;
        if (TILE * PIECES % WARP == 0 || i < TILE * PIECES) {
            copy_async(to + i / PIECES * ROW_STRIDE * 2 + i % PIECES * 16, from + j * 16);
        }
    }
}

// Brings the tile that starts with token t of a page to a stage; the page is that of the lane: 16 bytes a lane further.
__device__ __forceinline__ void copy_tile(u32 stage, const char* page, u32 t, u32 lane) {
    if (K_CODES) {
        copy_bytes<K_BYTES, 0>(stage, page + t * (K_WORDS * 4), lane);
        const char* params = page + t / GROUP_SIZE * (HEAD_DIM * 4);
        copy_bytes<HEAD_DIM * 4, K_PARAMS_PAD>(stage + K_PARAMS_AT, params + K_PARAMS_START * 4, lane);
    } else {
        copy_rows(stage, page + t * (K_WORDS * 4), lane);
    }
    if (V_CODES) {
        copy_bytes<TILE * V_WORDS * 4, V_PAD>(stage + V_AT, page + t * (V_WORDS * 4) + V_START * 4, lane);
        const char* params = page + t / TILE * V_PARAM_BYTES;
        copy_bytes<V_PARAM_BYTES, 0>(stage + V_PARAMS_AT, params + V_PARAMS_START * 4, lane);
    } else {
        copy_rows(stage + V_AT, page + t * (V_WORDS * 4) + V_START * 4, lane);
    }
}

// The copies of a warp. STAGES tiles are under way or in use; the next goes where the oldest was.
struct Copies {
    u32 lane;
    u32 first, oldest;     // stages
    u32 warp, step;        // the warp's first tile of a span, and the tokens to its next
    u32 span, spans;       // of the team's spans the next tile's, and where they end
    u32 token, end;        // the next tile, and where its span ends
    u32 head, pages;       // its KV head; where its sequence's pages begin in the table
    u32 page;              // its page's number, which is asked for early

    __device__ explicit Copies(const Team& team)
        : lane(lane_id()),
          first(keep(shared_address(dynamic_shared()) + STAGES_AT + threadIdx.x / WARP * (STAGES * STAGE_BYTES))),
          oldest(first),
          warp(team.warp),
          step(team.warps * TILE) {}

    // Starts with the first of new spans. Pages are asked for before the first is waited for.
    __device__ void restart(const Cache& c, const Shared& s, const Team& team) {
        u32 heads[STAGES], tokens[STAGES], of_tile[STAGES];  // pages
        bool some[STAGES];
        spans = team.first * SPANS + s.n_spans[team.first];
        enter(c, s, team.first * SPANS);
#pragma unroll
        for (u32 i = 0; i < STAGES; ++i) {
            find(c, s);
            heads[i] = head, tokens[i] = token, of_tile[i] = page, some[i] = token < end;
            token += some[i] ? step : 0;
        }
        find(c, s);
#pragma unroll
        for (u32 i = 0; i < STAGES; ++i) {
            if (some[i]) {
                copy(c, of_tile[i], heads[i], tokens[i]);
            }
            commit_async();  // without a tile too: waiting counts groups
            next();
        }
    }

    __device__ __forceinline__ void enter(const Cache& c, const Shared& s, u32 next) {
        const Span& of = s.spans[next];
        span = next;
        token = token_of(of, of.tile + warp);
        end = token_of(of, of.tile_end);
        head = of.head;
        pages = of.extent.seq * c.max_pages;
    }

    __device__ __forceinline__ void find(const Cache& c, const Shared& s) {
        while (token >= end && span + 1 < spans) {
            enter(c, s, span + 1);
        }
        if (token < end) {
            page = c.page_table[pages + token / PAGE_TOKENS];
        }
    }

    // Begins to copy a tile to the oldest stage.
    __device__ __forceinline__ void copy(const Cache& c, u32 page, u32 head, u32 token) {
        u64 record = page * c.n_kv_heads + head;
        copy_tile(oldest, (const char*)c.pool + record * (PAGE_WORDS * 4) + lane * 16, token % PAGE_TOKENS, lane);
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
        if (token < end) {
            copy(c, page, head, token);
            token += step;
            find(c, s);
        }
        commit_async();
        next();
    }
};
