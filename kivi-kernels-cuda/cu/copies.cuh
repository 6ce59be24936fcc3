// copies.cuh: packed tiles on their way to shared memory, for each warp of decode.cu by itself.
#pragma once
#include "span.cuh"

// Copies bytes with all lanes.
__device__ __forceinline__ void copy_bytes(char* to, const void* from, u32 bytes) {
    for (u32 i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16) {
        copy_async(to + i, (const char*)from + i);
    }
}

__device__ __forceinline__ void copy_rows(char* to, const void* from) {
    for (u32 i = threadIdx.x % WARP; i < TILE * HEAD_DIM / 8; i += WARP) {
        copy_async(to + i / (HEAD_DIM / 8) * ROW_STRIDE * 2 + i % (HEAD_DIM / 8) * 16, (const char*)from + i * 16);
    }
}

// Brings the tile that starts with token t of a page to a stage.
__device__ __forceinline__ void copy_tile(const Cache& c, char* stage, u64* barrier, const u32* page, u32 t) {
    const u32* k = page + c.k.codes_start + t * K_WORDS;
    const u32* v = page + c.v.codes_start + t * V_WORDS;
    const u32* k_params = page + c.k.params_start + t / GROUP_SIZE * HEAD_DIM;
    const u32* v_params = page + c.v.params_start + t * VALUE_GROUPS;
#if KIVI_BULK
    if (threadIdx.x % WARP == 0) {
        bulk_expect(barrier, STAGE_BYTES);
        bulk_copy(stage, k, K_BYTES, barrier);
        bulk_copy(stage + K_PARAMS_AT, k_params, K_PARAM_BYTES, barrier);
        bulk_copy(stage + V_AT, v, V_BYTES, barrier);
        bulk_copy(stage + V_PARAMS_AT, v_params, V_PARAM_BYTES, barrier);
    }
#else
    if (K_CODES) {
        copy_bytes(stage, k, K_BYTES);
        copy_bytes(stage + K_PARAMS_AT, k_params, K_PARAM_BYTES);
    } else {
        copy_rows(stage, k);
    }
    if (V_CODES) {
        copy_bytes(stage + V_AT, v, V_BYTES);
        copy_bytes(stage + V_PARAMS_AT, v_params, V_PARAM_BYTES);
    } else {
        copy_rows(stage + V_AT, v);
    }
#endif
}

// The copies of a warp: which tile is next, and how many were begun and used.
struct Copies {
    char* stages;
    u64* barriers;
    u32 span, tile, page;  // the next, and its page's number, which is asked for early
    u32 begun, used;

    __device__ Copies(Shared& s)
        : stages(dynamic_shared() + STAGES_AT + threadIdx.x / WARP * STAGES * STAGE_BYTES),
          barriers(s.barriers[threadIdx.x / WARP]), begun(0), used(0) {
#if KIVI_BULK
        if (threadIdx.x % WARP == 0) {
            for (u32 i = 0; i < STAGES; ++i) {
                bulk_begin(&barriers[i]);
            }
            bulk_fence();
        }
        __syncwarp();
#endif
    }

    // Starts with the first of new spans.
    __device__ void restart(const Cache& c, const Shared& s) {
        span = 0;
        tile = s.spans[0].tile + threadIdx.x / WARP;
        find(c, s);
        for (u32 i = 0; i < STAGES; ++i) {
            begin(c, s);
        }
    }

    __device__ __forceinline__ void find(const Cache& c, const Shared& s) {
        while (span < s.n_spans && tile >= s.spans[span].tile_end) {
            span += 1;
            tile = span < s.n_spans ? s.spans[span].tile + threadIdx.x / WARP : 0;
        }
        if (span < s.n_spans) {
            u32 token = token_of(s.spans[span], tile);
            page = c.page_table[(u64)s.spans[span].extent.seq * c.max_pages + token / PAGE_TOKENS];
        }
    }

    // Begins to copy the next tile, if there is one.
    __device__ __forceinline__ void begin(const Cache& c, const Shared& s) {
        if (span < s.n_spans) {
            const u32* record = c.pool + ((u64)page * c.n_kv_heads + s.spans[span].head) * c.page_words;
            u32 token = token_of(s.spans[span], tile) % PAGE_TOKENS;
            copy_tile(c, stages + begun % STAGES * STAGE_BYTES, &barriers[begun % STAGES], record, token);
            begun += 1;
            tile += WARPS;
            find(c, s);
        }
        commit_async();  // without a tile too: waiting counts groups
    }

    // The stage with the oldest tile that was not used.
    __device__ __forceinline__ const char* wait() {
#if KIVI_BULK
        bulk_wait(&barriers[used % STAGES], used / STAGES % 2);
#else
        wait_async<STAGES - 1>();
        __syncwarp();
#endif
        return stages + used % STAGES * STAGE_BYTES;
    }

    // Gives it free for the next copy.
    __device__ __forceinline__ void release(const Cache& c, const Shared& s) {
        __syncwarp();
        used += 1;
        begin(c, s);
    }
};
