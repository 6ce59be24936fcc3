// copies.cuh: packed tiles on their way to shared memory, for each warp of decode.cu by itself.
#pragma once
#include "span.cuh"

// Copies bytes with all lanes; behind each 128 of them, pad bytes are left out (span.cuh says why).
template <u32 BYTES, u32 PAD>
__device__ __forceinline__ void copy_bytes(char* to, const char* from) {
    u32 at = threadIdx.x % WARP * 16;
    to += padded<PAD>(at);
    from += at;
#pragma unroll
    for (u32 i = 0; i < BYTES; i += WARP * 16) {
        if (BYTES % (WARP * 16) == 0 || at + i < BYTES) {
            copy_async(to + padded<PAD>(i), from + i);
        }
    }
}

__device__ __forceinline__ void copy_rows(char* to, const char* from) {
    constexpr u32 PIECES = HEAD_DIM / 8;  // of 16 bytes
#pragma unroll
    for (u32 j = 0; j < TILE * PIECES; j += WARP) {
        u32 i = threadIdx.x % WARP + j;
        if (TILE * PIECES % WARP == 0 || i < TILE * PIECES) {
            copy_async(to + i / PIECES * ROW_STRIDE * 2 + i % PIECES * 16, from + i * 16);
        }
    }
}

// Brings the tile that starts with token t of a page to a stage.
__device__ __forceinline__ void copy_tile(const Cache& c, char* stage, const char* page, u32 t) {
    const char* k = page + c.k.codes_start * 4 + t * (K_WORDS * 4);
    const char* v = page + c.v.codes_start * 4 + t * (V_WORDS * 4);
    if (K_CODES) {
        copy_bytes<K_BYTES, 0>(stage, k);
        copy_bytes<HEAD_DIM * 4, K_PARAMS_PAD>(
            stage + K_PARAMS_AT, page + c.k.params_start * 4 + t / GROUP_SIZE * (HEAD_DIM * 4));
    } else {
        copy_rows(stage, k);
    }
    if (V_CODES) {
        copy_bytes<TILE * V_WORDS * 4, V_PAD>(stage + V_AT, v);
        copy_bytes<V_PARAM_BYTES, 0>(stage + V_PARAMS_AT, page + c.v.params_start * 4 + t * (VALUE_GROUPS * 4));
    } else {
        copy_rows(stage + V_AT, v);
    }
}

// The copies of a warp. STAGES tiles are under way or in use; the next goes where the oldest was.
struct Copies {
    char* stages;
    u32 stage;           // of the oldest
    u32 span, tile, end; // the next tile
    u32 page;            // its page's number, which is asked for early
    u32 token;           // the first token of tile 0 of its span
    u32 record;          // bytes of a page with all heads
    const char* head;    // page 0 of its head
    const u32* table;    // the pages of its sequence

    __device__ Copies(const Cache& c)
        : stages(dynamic_shared() + STAGES_AT + threadIdx.x / WARP * STAGES * STAGE_BYTES), stage(0),
          record(c.n_kv_heads * c.page_words * 4) {}

    // Starts with the first of new spans.
    __device__ void restart(const Cache& c, const Shared& s) {
        enter(c, s, 0);
        find(c, s);
        for (u32 i = 0; i < STAGES; ++i) {
            begin(c, s, stages + (stage + i) % STAGES * STAGE_BYTES);
        }
    }

    __device__ __forceinline__ void enter(const Cache& c, const Shared& s, u32 next) {
        const Span& now = s.spans[next];
        span = next;
        tile = now.tile + threadIdx.x / WARP;
        end = now.tile_end;
        token = token_of(now, 0);
        head = (const char*)(c.pool + (u64)now.head * c.page_words);
        table = c.page_table + (u64)now.extent.seq * c.max_pages;
    }

    __device__ __forceinline__ void find(const Cache& c, const Shared& s) {
        while (tile >= end && span + 1 < s.n_spans) {
            enter(c, s, span + 1);
        }
        if (tile < end) {
            page = table[(token + tile * TILE) / PAGE_TOKENS];
        }
    }

    // Begins to copy the next tile, if there is one.
    __device__ __forceinline__ void begin(const Cache& c, const Shared& s, char* to) {
        if (tile < end) {
            copy_tile(c, to, head + (u64)page * record, (token + tile * TILE) % PAGE_TOKENS);
            tile += WARPS;
            find(c, s);
        }
        commit_async();  // without a tile too: waiting counts groups
    }

    // The stage with the oldest tile that was not used.
    __device__ __forceinline__ const char* wait() {
        wait_async<STAGES - 1>();
        __syncwarp();
        return stages + stage * STAGE_BYTES;
    }

    // Gives it free for the next copy.
    __device__ __forceinline__ void release(const Cache& c, const Shared& s) {
        __syncwarp();
        begin(c, s, stages + stage * STAGE_BYTES);
        stage = stage + 1 < STAGES ? stage + 1 : 0;
    }
};
