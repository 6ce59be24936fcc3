// decode.cu: attention of single rows over long caches, at the speed of memory.
//   grid: as many blocks as the device holds at a time; they share all rows' tokens evenly
//
// Work is a line: for each row and unit (a KV head and up to QUERIES of its query heads) first its packed tiles of TILE tokens,
// then its tiles of 16 rows in full precision, each as long as its bytes. A block takes an equal piece of the line. A span is
// what a piece has of one row and unit. The warps of a block take a span's tiles in turn, each with a softmax of its
// own, and copy tiles STAGES ahead, beyond the end of a span. A span that is not a whole row and unit leaves a
// partial result; the block that arrives last adds them up. Nothing depends on which one that is.
//
// Tiles are the 16-row operand of mma.m16n8k16, the queries its 8 columns (docs/cuda.md has the budget):
//   S^T = K Q^T    on raw codes, q folded with the group's scales; zeros are one row more, the same for all tokens
//   O^T = V^T P^T  on raw codes, p folded with the tokens' scales; zeros are further rows, one a group
// p is kept within f16 by a reference that follows the largest logit only when it must.
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
constexpr u32 TILE = K_CODES && V_CODES && HEAD_DIM * (K_BITS + V_BITS) <= 2048 ? 32 : 16;
constexpr u32 M_TILES = TILE / 16;
constexpr u32 STAGES = KIVI_STAGES;
constexpr u32 ROW_STRIDE = HEAD_DIM + 8;  // of rows in shared memory: 16 bytes more, so that 8 rows are in different banks
constexpr u32 K_BYTES = K_CODES ? TILE * K_WORDS * 4 : TILE * ROW_STRIDE * 2;
constexpr u32 K_PARAM_BYTES = K_CODES ? HEAD_DIM * 4 : 0;
constexpr u32 V_BYTES = V_CODES ? TILE * V_WORDS * 4 : TILE * ROW_STRIDE * 2;
constexpr u32 V_PARAM_BYTES = V_CODES ? TILE * VALUE_GROUPS * 4 : 0;
constexpr u32 K_PARAMS_AT = K_BYTES, V_AT = K_PARAMS_AT + K_PARAM_BYTES, V_PARAMS_AT = V_AT + V_BYTES;
constexpr u32 STAGE_BYTES = V_PARAMS_AT + V_PARAM_BYTES;
constexpr u32 ROWS_COST = (64 * HEAD_DIM + STAGE_BYTES / 2) / STAGE_BYTES > 1 ? (64 * HEAD_DIM + STAGE_BYTES / 2) / STAGE_BYTES : 1;
constexpr u32 MAX_SPANS = 32;  // planned at a time

// Whether tiles come by the copy engine. Rows are padded, which it does not do.
#if KIVI_NO_BULK || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900)
#define KIVI_BULK 0
#else
#define KIVI_BULK (KIVI_K_BITS < 16 && KIVI_V_BITS < 16)
#endif

constexpr float LOG2_E = 1.44269504f;
constexpr float K_FOLD = 16.0f;         // in q'; q < 2 and scales below 512 make q' < 2^14
constexpr float WIDE_FOLD = 1 / 256.0f;  // on larger scales

// What a row sees: rows [first, start), tokens of which a side at least is packed [start, end), rows [end, at].
struct Extent {
    u32 seq, active, at, first, start, end;
    u32 k_packed, v_packed;
    u32 few;  // whether the row is this kernel's

    __device__ u32 tiles() const { return end > start ? (end + TILE - 1) / TILE - start / TILE : 0; }
    __device__ u32 head_tiles() const { return (start - first + 15) / 16; }
    __device__ u32 row_tiles() const { return head_tiles() + (at + 1 - end + 15) / 16; }
    __device__ u32 cost() const { return !few ? 0 : active ? tiles() + row_tiles() * ROWS_COST : 1; }
};

// A piece of one row and unit.
struct Span {
    Extent extent;
    u32 row, unit, head;     // KV head
    u32 tile, tile_end, row_tile, row_tile_end;
    u32 first_block, parts;  // the blocks that have a piece of it
    u32 slot;                // of this block's partial result
};

struct Shared {
    Act q[QUERIES][ROW_STRIDE];
    float largest[WARPS][QUERIES];
    float total[WARPS][QUERIES];
    float sums[WARPS / 2][QUERIES][HEAD_DIM];
    Span spans[MAX_SPANS];
    u64 barriers[WARPS][STAGES];
    u64 scan[WARPS];
    u64 line, row_start;  // where the spans stop; where their last row starts
    u32 row, n_spans, last;
};
constexpr u32 STAGES_AT = (sizeof(Shared) + 127) / 128 * 128;
static_assert(STAGES_AT + WARPS * STAGES * STAGE_BYTES <= KIVI_SHARED, "more shared memory than the launch has");

__device__ Extent extent_of(const DecodeParams& d, u32 row) {
    const AttendParams& p = d.attend;
    const Cache& c = p.cache;
    Extent e;
    e.seq = c.seq_of_row[row];
    e.few = c.row_start[e.seq + 1] - c.row_start[e.seq] <= d.few;
    u32 len = c.len[e.seq];
    e.k_packed = c.k.packed[e.seq];
    e.v_packed = c.v.packed[e.seq];
    e.active = c.active[e.seq];
    e.at = len + (row - c.row_start[e.seq]);
    e.first = p.window && e.at + 1 > p.window ? e.at + 1 - p.window : 0;
    e.start = min(max(e.first, K_CODES || V_CODES ? c.sinks : 0), e.at + 1);
    e.end = max(e.start, max(e.k_packed, e.v_packed));
    return e;
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

// The line as the blocks share it.
struct Line {
    u64 length;
    u32 units, blocks;

    __device__ u64 start(u32 block) const { return length * block / blocks; }
    __device__ u32 block_at(u64 x) const { return (u32)(((x + 1) * blocks + length - 1) / length) - 1; }
};

// Measures the line, and finds the row where this block's piece starts: s.line, s.row, s.row_start.
__device__ Line measure(const DecodeParams& p, Shared& s) {
    u32 rows = p.attend.rows;
    Line line = {0, p.attend.cache.n_kv_heads * p.query_blocks, 0};
    for (u32 base = 0; base < rows; base += BLOCK) {
        u64 total, cost = base + threadIdx.x < rows ? extent_of(p, base + threadIdx.x).cost() : 0;
        block_scan(s, cost, &total);
        line.length += total * line.units;
    }
    line.blocks = (u32)min((u64)gridDim.x, (line.length + WARPS - 1) / WARPS);
    u64 x = blockIdx.x < line.blocks ? line.start(blockIdx.x) : 0, before = 0;
    for (u32 base = 0; before <= x && base < rows; base += BLOCK) {
        u64 total, row = base + threadIdx.x, cost = row < rows ? extent_of(p, row).cost() * (u64)line.units : 0;
        u64 end = before + block_scan(s, cost, &total);
        if (end - cost <= x && x < end) {
            s.row = row;
            s.row_start = end - cost;
        }
        before += total;
    }
    s.line = x;
    __syncthreads();
    return line;
}

// The span at s.line, and moves on to the next.
__device__ Span next_span(const DecodeParams& p, Shared& s, const Line& line, u64 end) {
    Span span;
    span.extent = extent_of(p, s.row);
    while (span.extent.cost() == 0) {
        s.row += 1;
        span.extent = extent_of(p, s.row);
    }
    u64 cost = span.extent.cost();
    span.row = s.row;
    span.unit = (u32)((s.line - s.row_start) / cost);
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
    s.line = min(end, last);
    if (last == s.row_start + cost * line.units) {
        s.row_start = last;
        s.row += 1;
    }
    return span;
}

// The first token of a span's tile.
__device__ u32 token_of(const Span& span, u32 tile) { return (span.extent.start / TILE + tile) * TILE; }

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

// The queries of a span as operand B, column g of lane 4 g + t.
struct Queries {
    u32 codes[STEPS][2];  // normalized, for fields of codes in their places; K_CODES only
    u32 zeros[STEPS][2];  // normalized
    u32 rows[STEPS][2];   // as they are, in the order of channels; for keys in shared memory
    float scale[2];       // of the logits of rows, for the lane's queries 2 t and 2 t + 1; in powers of 2
    float norm[2];        // of normalized queries
    float slope[2];

    __device__ void load(const AttendParams& p, const Shared& s, u32 head, u32 n);
};

// Pair i of query row g, as f16 or as it is.
__device__ __forceinline__ float2 query_pair(const Shared& s, u32 g, u32 i) {
    return make_float2(to_f32(s.q[g][2 * i]), to_f32(s.q[g][2 * i + 1]));
}

__device__ void Queries::load(const AttendParams& p, const Shared& s, u32 head, u32 n) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float largest = 0.0f;
    for (u32 i = t; i < HEAD_DIM / 2; i += 4) {
        float2 x = query_pair(s, g, i);
        largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
    }
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    // The power of two in largest; queries of zeros, infinities and subnormal numbers stay as they are.
    u32 exponent = __float_as_uint(largest) >> 23;
    float power = exponent - 1 < 253 ? __uint_as_float(exponent << 23) : 1.0f;
    float inverse = exponent - 1 < 253 ? __uint_as_float((254 - exponent) << 23) : 1.0f;
    if (K_CODES) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                float2 x = query_pair(s, g, KeyWords::pair_of(i, t) + h);
                float fold = inverse * (K_FOLD / factor_of<K_CODE_BITS>(KeyWords::field_of(i) + h));
                zeros[i][h] = pack(x.x * inverse, x.y * inverse, __half());
                codes[i][h] = pack(x.x * fold, x.y * fold, __half());
            }
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            rows[i][0] = *(const u32*)&s.q[g][16 * i + 2 * t];
            rows[i][1] = *(const u32*)&s.q[g][16 * i + 2 * t + 8];
        }
    }
    for (u32 h = 0; h < 2; ++h) {
        scale[h] = p.scale * LOG2_E;
        norm[h] = scale[h] * __shfl_sync(ALL_LANES, power, 4 * (2 * t + h));
        slope[h] = KIVI_ALIBI && 2 * t + h < n ? p.alibi[head + 2 * t + h] * LOG2_E : 0.0f;
    }
}

// What a warp has of a span so far: row h of tile i, queries 2 t and 2 t + 1 in sum[i][2 h], sum[i][2 h + 1].
struct State {
    float sum[STEPS][4];
    float zero[4];       // row g: sum of p times the zeros of value group g
    float reference[2];  // log2 of what p is relative to, and 0 as long as there is none
    float total[2];      // sum of p, of this lane's tokens
    float limit;         // p may grow to 2^limit before the reference moves
    float room;          // and is then at most 2^room
    bool fresh;          // no token yet
    bool settled;        // sums are those of values, no longer those of codes in their places

    __device__ void clear() {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0f;
        }
        zero[0] = zero[1] = zero[2] = zero[3] = total[0] = total[1] = 0.0f;
        reference[0] = reference[1] = 0.0f;
        limit = 7.0f;
        room = 3.0f;
        fresh = true;
        settled = !V_CODES;
    }

    // For value scales from 512 on: p times such a scale must be an f16.
    __device__ void widen() {
        limit = -2.0f;
        room = -6.0f;
    }

    // Moves the reference for logits that are as much as best above it; by how much is left in best.
    __device__ __forceinline__ void follow(float (&best)[2]) {
        float by[2];
        for (u32 h = 0; h < 2; ++h) {
            best[h] = fresh ? best[h] - room : fmaxf(best[h] - room, 0.0f);
            by[h] = fresh ? 0.0f : exp2_fast(-best[h]);
            reference[h] += best[h];
            total[h] *= by[h];
            zero[h] *= by[h];
        }
        fresh = false;
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                sum[i][e] *= by[e % 2];
            }
        }
    }
};

// Logits y of N tiles of 16 tokens, in powers of 2 and relative to the reference, become weights: operand B of the products
// with values.
template <u32 N, class T>
__device__ __forceinline__ void softmax(State& s, float (&y)[N][4], u32 (&p)[N][2], T type) {
    float largest = y[0][0];
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            largest = fmaxf(largest, y[m][e]);
        }
    }
    if (__any_sync(ALL_LANES, largest > s.limit) || s.fresh) {
        float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (u32 m = 0; m < N; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                best[e % 2] = fmaxf(best[e % 2], y[m][e]);
            }
        }
        for (u32 h = 0; h < 2; ++h) {
            for (u32 step = 4; step < WARP; step *= 2) {
                best[h] = fmaxf(best[h], __shfl_xor_sync(ALL_LANES, best[h], step));
            }
        }
        s.follow(best);
#pragma unroll
        for (u32 m = 0; m < N; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                y[m][e] -= best[e % 2];
            }
        }
    }
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = exp2_fast(y[m][e]);
            s.total[e % 2] += y[m][e];
        }
        p[m][0] = transpose(pack(y[m][0], y[m][1], type));
        p[m][1] = transpose(pack(y[m][2], y[m][3], type));
    }
}

// Adds the slopes, and takes out tokens that are not in [low, high).
template <u32 N>
__device__ __forceinline__ void mask(float (&y)[N][4], const Queries& q, u32 token, u32 low, u32 high, u32 at) {
    u32 g = threadIdx.x % WARP / 4;
    bool cut = token < low || token + 16 * N > high;
#pragma unroll
    for (u32 m = 0; m < N; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            u32 j = token + 16 * m + 8 * (e / 2) + g;
            if (KIVI_ALIBI) {
                y[m][e] -= q.slope[e % 2] * (float)(at - j);
            }
            if (cut) {
                y[m][e] = j < low || j >= high ? -INFINITY : y[m][e];
            }
        }
    }
}

// Whether a scale among these words, those of a lane, is 512 or more: its exponent's two upper bits are set. Zeros may say so too.
__device__ __forceinline__ bool any_wide(const char* params, u32 bytes) {
    u32 both = 0;
    for (u32 i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16) {
        uint4 w = *(const uint4*)(params + i);
        both |= (w.x & w.x << 1) | (w.y & w.y << 1) | (w.z & w.z << 1) | (w.w & w.w << 1);
    }
    return __any_sync(ALL_LANES, (both & 0x40004000) != 0);
}

// Logits of a tile over codes, relative to the reference, as those below.
__device__ __forceinline__ void code_logits(const char* stage, const Queries& q, const State& s, float (&y)[M_TILES][4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const uint4* params = (const uint4*)(stage + K_PARAMS_AT);
    float zero[4] = {}, norm[2] = {q.norm[0] * (SUBNORMAL / K_FOLD), q.norm[1] * (SUBNORMAL / K_FOLD)};
    u32 folded[STEPS][2];
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        uint4 w = params[KeyWords::pair_of(i, t) / 2];  // scales, zeros, scales, zeros
        folded[i][0] = multiply_f16(q.codes[i][0], w.x);
        folded[i][1] = multiply_f16(q.codes[i][1], w.z);
        mma(zero, {w.x, w.y, w.z, w.w}, q.zeros[i][0], q.zeros[i][1], __half());  // rows g: scales, of no use; g + 8: zeros
    }
    if (any_wide(stage + K_PARAMS_AT, K_PARAM_BYTES)) {
        for (u32 i = 0; i < STEPS; ++i) {
            uint4 w = params[KeyWords::pair_of(i, t) / 2];
            u32 fold = pack(WIDE_FOLD, WIDE_FOLD, __half());
            folded[i][0] = multiply_f16(q.codes[i][0], multiply_f16(w.x, fold));
            folded[i][1] = multiply_f16(q.codes[i][1], multiply_f16(w.z, fold));
        }
        norm[0] *= 1 / WIDE_FOLD;
        norm[1] *= 1 / WIDE_FOLD;
    }
    float base[2] = {zero[2] * q.norm[0] - s.reference[0], zero[3] * q.norm[1] - s.reference[1]};
    const u32* codes = (const u32*)stage;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        KeyWords low, high;
        low.load(codes + (16 * m + g) * K_WORDS, t);
        high.load(codes + (16 * m + g + 8) * K_WORDS, t);
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            mma(c, {low.pair(i, 0), high.pair(i, 0), low.pair(i, 1), high.pair(i, 1)}, folded[i][0], folded[i][1], __half());
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = c[e] * norm[e % 2] + base[e % 2];
        }
    }
}

// Logits of a tile over rows in shared memory.
__device__ __forceinline__ void row_logits(const char* stage, const Queries& q, const State& s, float (&y)[M_TILES][4]) {
    u32 lane = threadIdx.x % WARP;
    const Act* row = (const Act*)stage + (lane % 16) * ROW_STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        float c[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 k[4];
            load_matrices(k, row + 16 * m * ROW_STRIDE + 16 * i);
            mma(c, k, q.rows[i][0], q.rows[i][1], Act());
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            y[m][e] = c[e] * q.scale[e % 2] - s.reference[e % 2];
        }
    }
}

// Adds the values of a tile of codes, weighted.
__device__ __forceinline__ void mix_codes(const char* stage, State& s, const u32 (&p)[M_TILES][2]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const u32* codes = (const u32*)(stage + V_AT);
    const u32* params = (const u32*)(stage + V_PARAMS_AT);
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
        u32 low = 8 * m + t, high = low + 4;  // pairs of tokens
        const u32 *low_params = params + low * 2 * VALUE_GROUPS, *high_params = params + high * 2 * VALUE_GROUPS;
        ValueWords low_words, high_words;
        low_words.load(codes + low * 2 * V_WORDS, g);
        high_words.load(codes + high * 2 * V_WORDS, g);
        u32 low_zero = g < VALUE_GROUPS ? low_params[VALUE_GROUPS + g] : 0;
        u32 high_zero = g < VALUE_GROUPS ? high_params[VALUE_GROUPS + g] : 0;
        mma(s.zero, {low_zero, 0, high_zero, 0}, p[m][0], p[m][1], __half());
        u32 low_p = 0, high_p = 0;
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            if (16 * i % GROUP_SIZE == 0) {
                low_p = multiply_f16(p[m][0], low_params[16 * i / GROUP_SIZE]);
                high_p = multiply_f16(p[m][1], high_params[16 * i / GROUP_SIZE]);
            }
            mma(s.sum[i], {low_words.pair(i, 0), low_words.pair(i, 1), high_words.pair(i, 0), high_words.pair(i, 1)}, low_p,
                high_p, __half());
        }
    }
}

// Adds the values of a tile of rows in shared memory, weighted.
__device__ __forceinline__ void mix_rows(const char* stage, State& s, const u32 (&p)[M_TILES][2]) {
    u32 lane = threadIdx.x % WARP;
    const Act* row = (const Act*)(stage + V_AT) + (lane % 8 + lane / 16 * 8) * ROW_STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
            u32 v[4];
            load_transposed(v, row + 16 * m * ROW_STRIDE + 16 * i);
            mma(s.sum[i], v, p[m][0], p[m][1], Act());
        }
    }
}

// The channel of row h of tile i.
__device__ __forceinline__ u32 channel_of(u32 i, u32 h, u32 g) { return V_CODES ? 16 * i + 2 * g + h : 16 * i + 8 * h + g; }

// Makes sums of codes in their places sums of values.
__device__ __forceinline__ void settle(State& s) {
    if (s.settled) {
        return;
    }
    s.settled = true;
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        float zero[2];
        for (u32 h = 0; h < 2; ++h) {
            zero[h] = __shfl_sync(ALL_LANES, s.zero[h], 16 * i / GROUP_SIZE * 4 + threadIdx.x % 4);
        }
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] = s.sum[i][e] * (SUBNORMAL / ValueWords::factor(i, e / 2)) + zero[e % 2];
        }
    }
}

// Row of a token in full precision, in the cache's type, which is that of activations; null if it is not in [low, high).
__device__ __forceinline__ const Act* row_of(const Cache& c, const Side& side, const Span& span, u32 token, u32 low, u32 high) {
    bool seen = token >= low && token < high;
    return seen ? (const Act*)find_row(c, side, span.extent.seq, span.head, token).data : nullptr;
}

__device__ __forceinline__ u32 pair_at(const Act* row, u32 channel) { return row ? *(const u32*)(row + channel) : 0; }

__device__ __forceinline__ uint4 pairs_at(const Act* row, u32 channel) {
    return row ? *(const uint4*)(row + channel) : make_uint4(0, 0, 0, 0);
}

// Logits of 16 rows that lie anywhere. A lane takes 8 channels at a time, of key and query alike.
__device__ __forceinline__ void loose_logits(const Cache& c, const Shared& sh, const Span& span, const Queries& q,
                                             const State& s, u32 token, u32 low, u32 high, float (&y)[4]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const Act* above = row_of(c, c.k, span, token + g, low, high);
    const Act* below = row_of(c, c.k, span, token + g + 8, low, high);
    float sums[4] = {};
#pragma unroll
    for (u32 i = 0; i < HEAD_DIM / 32; ++i) {
        u32 channel = (4 * i + t) * 8;
        uint4 a = pairs_at(above, channel), b = pairs_at(below, channel), x = *(const uint4*)&sh.q[g][channel];
        mma(sums, {a.x, b.x, a.y, b.y}, x.x, x.y, Act());
        mma(sums, {a.z, b.z, a.w, b.w}, x.z, x.w, Act());
    }
    if (HEAD_DIM % 32) {
        u32 channel = HEAD_DIM / 32 * 32 + 4 * t;
        mma(sums, {pair_at(above, channel), pair_at(below, channel), pair_at(above, channel + 2), pair_at(below, channel + 2)},
            *(const u32*)&sh.q[g][channel], *(const u32*)&sh.q[g][channel + 2], Act());
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
        y[e] = sums[e] * q.scale[e % 2] - s.reference[e % 2];
    }
}

// Adds the values of 16 rows that lie anywhere, weighted.
__device__ __forceinline__ void mix_loose(const Cache& c, const Span& span, State& s, u32 token, u32 low, u32 high,
                                          const u32 (&p)[2]) {
    u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const Act* rows[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        rows[i] = row_of(c, c.v, span, token + 2 * t + i % 2 + i / 2 * 8, low, high);
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        u32 v[4];  // tokens 2 t and 2 t + 1 (v[0], v[1]), then 8 more; rows h = 0, 1
#pragma unroll
        for (u32 j = 0; j < 4; j += 2) {
            u32 even = pair_at(rows[j], channel_of(i, 0, g) & ~1u), odd = pair_at(rows[j + 1], channel_of(i, 0, g) & ~1u);
            if (V_CODES) {
                v[j] = __byte_perm(even, odd, 0x5410);
                v[j + 1] = __byte_perm(even, odd, 0x7632);
            } else {
                v[j] = __byte_perm(even, odd, g % 2 ? 0x7632 : 0x5410);
                even = pair_at(rows[j], channel_of(i, 1, g) & ~1u);
                odd = pair_at(rows[j + 1], channel_of(i, 1, g) & ~1u);
                v[j + 1] = __byte_perm(even, odd, g % 2 ? 0x7632 : 0x5410);
            }
        }
        mma(s.sum[i], v, p[0], p[1], Act());
    }
}

// A tile of which both sides are packed, and lie in a stage.
__device__ __forceinline__ void use_packed(const Span& span, const char* stage, u32 token, const Queries& q, State& s) {
    float y[M_TILES][4];
    u32 p[M_TILES][2];
    if (K_CODES) {
        code_logits(stage, q, s, y);
    } else {
        row_logits(stage, q, s, y);
    }
    mask(y, q, token, span.extent.start, span.extent.end, span.extent.at);
    if (V_CODES) {
        if (any_wide(stage + V_PARAMS_AT, V_PARAM_BYTES)) {
            s.widen();
        }
        softmax(s, y, p, __half());
        mix_codes(stage, s, p);
    } else {
        softmax(s, y, p, Act());
        mix_rows(stage, s, p);
    }
}

// A tile of which one side is packed, or packed up to a token within it. Values that are not packed have scales of zero; tiles
// behind this one have no packed values.
__device__ __forceinline__ void use_mixed(const Cache& c, const Shared& sh, const Span& span, const char* stage, u32 token,
                                          const Queries& q, State& s) {
    const Extent& e = span.extent;
    float y[M_TILES][4];
    u32 p[M_TILES][2];
    if (K_CODES && token >= e.k_packed) {
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            loose_logits(c, sh, span, q, s, token + 16 * m, e.start, e.end, y[m]);
        }
    } else if (K_CODES) {
        code_logits(stage, q, s, y);
    } else {
        row_logits(stage, q, s, y);
    }
    mask(y, q, token, e.start, e.end, e.at);
    if (V_CODES && any_wide(stage + V_PARAMS_AT, V_PARAM_BYTES)) {
        s.widen();
    }
    softmax(s, y, p, Act());
    if (!V_CODES) {
        mix_rows(stage, s, p);
        return;
    }
    if (token < e.v_packed) {
        u32 halves[M_TILES][2];
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            halves[m][0] = to_f16(p[m][0]);
            halves[m][1] = to_f16(p[m][1]);
        }
        mix_codes(stage, s, halves);
    }
    if (token + TILE > e.v_packed) {
        settle(s);
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) {
            mix_loose(c, span, s, token + 16 * m, max(e.v_packed, e.start), e.end, p[m]);
        }
    }
}

// A tile of rows in full precision on both sides.
__device__ __forceinline__ void use_rows(const Cache& c, const Shared& sh, const Span& span, u32 tile, const Queries& q, State& s) {
    const Extent& e = span.extent;
    bool head = tile < e.head_tiles();
    u32 token = head ? e.first + 16 * tile : e.end + 16 * (tile - e.head_tiles());
    u32 end = head ? e.start : e.at + 1;
    float y[1][4];
    u32 p[1][2];
    loose_logits(c, sh, span, q, s, token, 0, end, y[0]);
    mask(y, q, token, 0, end, e.at);
    softmax(s, y, p, Act());
    mix_loose(c, span, s, token, 0, end, p[0]);
}

// The sum of the warps' results, relative to one reference: unscaled sums in sh.sums[0], references and totals in
// sh.largest[0], sh.total[0].
__device__ void add_warps(Shared& sh, State& s) {
    u32 warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (u32 h = 0; h < 2; ++h) {
        for (u32 step = 4; step < WARP; step *= 2) {
            s.total[h] += __shfl_xor_sync(ALL_LANES, s.total[h], step);
        }
        if (g == 0) {
            sh.largest[warp][2 * t + h] = s.fresh ? -INFINITY : s.reference[h];
            sh.total[warp][2 * t + h] = s.total[h];
        }
    }
    __syncthreads();
    float by[2], largest[2], total[2];
    for (u32 h = 0; h < 2; ++h) {
        largest[h] = -INFINITY;
        total[h] = 0.0f;
        for (u32 w = 0; w < WARPS; ++w) {
            largest[h] = fmaxf(largest[h], sh.largest[w][2 * t + h]);
        }
        float base = largest[h] == -INFINITY ? 0.0f : largest[h];
        by[h] = s.fresh ? 0.0f : exp2_fast(s.reference[h] - base);
        for (u32 w = 0; w < WARPS; ++w) {
            total[h] += sh.total[w][2 * t + h] * exp2_fast(sh.largest[w][2 * t + h] - base);
        }
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            s.sum[i][e] *= by[e % 2];
        }
    }
    for (u32 half = WARPS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (warp >= half && warp < 2 * half) {
#pragma unroll
            for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    sh.sums[warp - half][2 * t + e % 2][channel_of(i, e / 2, g)] = s.sum[i][e];
                }
            }
        }
        __syncthreads();
        if (warp < half) {
#pragma unroll
            for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    s.sum[i][e] += sh.sums[warp][2 * t + e % 2][channel_of(i, e / 2, g)];
                }
            }
        }
    }
    if (warp == 0) {
#pragma unroll
        for (u32 i = 0; i < STEPS; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                sh.sums[0][2 * t + e % 2][channel_of(i, e / 2, g)] = s.sum[i][e];
            }
        }
        for (u32 h = 0; h < 2 && g == 0; ++h) {
            sh.largest[0][2 * t + h] = largest[h];
            sh.total[0][2 * t + h] = total[h];
        }
    }
    __syncthreads();
}

constexpr u32 PARTIAL = QUERIES * (HEAD_DIM + 2);  // floats: sums, references, totals

// Leaves the block's result of a span for the others; true in the block that is the last to do so.
__device__ bool leave_partial(const DecodeParams& p, Shared& sh, const Span& span) {
    float* partial = p.partials + (u64)span.slot * PARTIAL;
    for (u32 i = threadIdx.x; i < QUERIES * HEAD_DIM; i += BLOCK) {
        __stcg(partial + i, sh.sums[0][i / HEAD_DIM][i % HEAD_DIM]);
    }
    if (threadIdx.x < QUERIES) {
        __stcg(partial + QUERIES * HEAD_DIM + threadIdx.x, sh.largest[0][threadIdx.x]);
        __stcg(partial + QUERIES * HEAD_DIM + QUERIES + threadIdx.x, sh.total[0][threadIdx.x]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        sh.last = atomicAdd(&p.arrived[span.first_block], 1u) == span.parts - 1;
        if (sh.last) {
            p.arrived[span.first_block] = 0;  // for the next launch
        }
    }
    __syncthreads();
    __threadfence();
    return sh.last;
}

// Adds up what the blocks left of a span: as add_warps leaves it.
__device__ void add_partials(const DecodeParams& p, Shared& sh, const Span& span) {
    // The first block's is in its second slot, the others' in their first.
    auto partial = [&](u32 i) { return p.partials + (u64)(2 * (span.first_block + i) + (i == 0)) * PARTIAL; };
    for (u32 i = threadIdx.x; i < QUERIES * HEAD_DIM; i += BLOCK) {
        u32 n = i / HEAD_DIM;
        float largest = -INFINITY, total = 0.0f, sum = 0.0f;
        for (u32 part = 0; part < span.parts; ++part) {
            largest = fmaxf(largest, __ldcg(partial(part) + QUERIES * HEAD_DIM + n));
        }
        float base = largest == -INFINITY ? 0.0f : largest;
        for (u32 part = 0; part < span.parts; ++part) {
            const float* x = partial(part);
            float by = exp2_fast(__ldcg(x + QUERIES * HEAD_DIM + n) - base);
            total += __ldcg(x + QUERIES * HEAD_DIM + QUERIES + n) * by;
            sum += __ldcg(x + i) * by;
        }
        sh.sums[0][n][i % HEAD_DIM] = sum;
        if (i % HEAD_DIM == 0) {
            sh.total[0][n] = total;
        }
    }
    __syncthreads();
}

__device__ void run_span(const DecodeParams& p, Shared& sh, const Span& span, Copies& copies) {
    const AttendParams& a = p.attend;
    const Cache& c = a.cache;
    u32 ratio = a.n_heads / c.n_kv_heads, first = span.unit / c.n_kv_heads * QUERIES;
    u32 n = min(QUERIES, ratio - first), head = span.head * ratio + first;
    const Act* q_rows = a.q + span.row * a.q_stride + (u64)head * HEAD_DIM;
    for (u32 i = threadIdx.x; i < QUERIES * HEAD_DIM; i += BLOCK) {
        u32 query = i / HEAD_DIM;
        store(&sh.q[query][i % HEAD_DIM], query < n ? to_f32(q_rows[i]) : 0.0f);
    }
    __syncthreads();
    Queries q;
    q.load(a, sh, head, n);
    State s;
    s.clear();
    for (u32 tile = span.tile + threadIdx.x / WARP; tile < span.tile_end; tile += WARPS) {
        u32 token = token_of(span, tile);
        const char* stage = copies.wait();
        if (token + TILE <= min(span.extent.k_packed, span.extent.v_packed)) {
            use_packed(span, stage, token, q, s);
        } else {
            use_mixed(c, sh, span, stage, token, q, s);
        }
        copies.release(c, sh);
    }
    settle(s);
    for (u32 tile = span.row_tile + threadIdx.x / WARP; tile < span.row_tile_end; tile += WARPS) {
        use_rows(c, sh, span, tile, q, s);
    }
    add_warps(sh, s);
    bool done = span.parts == 1;
    if (!done && leave_partial(p, sh, span)) {
        add_partials(p, sh, span);
        done = true;
    }
    Act* out = a.out + span.row * a.out_stride + (u64)head * HEAD_DIM;
    for (u32 i = threadIdx.x; done && i < n * HEAD_DIM; i += BLOCK) {
        float x = sh.sums[0][i / HEAD_DIM][i % HEAD_DIM] / sh.total[0][i / HEAD_DIM];
        store(&out[i], span.extent.active ? x : 0.0f);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(KIVI_BLOCK, KIVI_BLOCKS_PER_SM) decode(DecodeParams p) {
    Shared& sh = *(Shared*)dynamic_shared();
    Line line = measure(p, sh);
    if (blockIdx.x >= line.blocks) {
        return;
    }
    u64 end = line.start(blockIdx.x + 1);
    Copies copies(sh);
    while (sh.line < end) {
        __syncthreads();
        if (threadIdx.x == 0) {
            sh.n_spans = 0;
            while (sh.n_spans < MAX_SPANS && sh.line < end) {
                sh.spans[sh.n_spans] = next_span(p, sh, line, end);
                sh.n_spans += 1;
            }
        }
        __syncthreads();
        copies.restart(p.attend.cache, sh);
        for (u32 i = 0; i < sh.n_spans; ++i) {
            run_span(p, sh, sh.spans[i], copies);
        }
    }
}
