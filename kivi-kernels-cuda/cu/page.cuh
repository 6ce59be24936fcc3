// page.cuh: the cache of a layer and the sequences of a step, as append and attend read them. A page (docs/format.md):
//   record  | key codes | key scales, zeros | value codes | value scales, zeros |
//     keys    code of channel c of token t: word t * words + c / (32 / b), bits 16 (c' % 2) + b (c' / 2), c' = c % (32 / b)
//             scale: word (t / g) * head_dim + c / 2 * 2, half c % 2; zero: one word on
//     values  code at place p of token t: word (t / 2) * 2 words + p / (16 / b), bits 16 (t % 2) + b (p % (16 / b))
//             scale: word (t / 2) * 2 groups + c / g, half t % 2; zero: groups words on
//   ring    [slot][kv_head][residual][row]   token t in row t % residual        sinks [slot][kv_head][sinks][row]
#pragma once
#include "kivi.cuh"

constexpr u32 MAX_HEAD_DIM = 512;  // PageLayout::new accepts no more

enum KvDtype : u32 { KV_F16, KV_BF16, KV_F32 };  // as in ops/cache.rs

// Keys or values of a layer: its arrays, the rows of the step, and the place of its parts in a page.
struct Side {
    u32* ring;
    u32* sink;
    const Act* rows;         // [rows, n_kv_heads * head_dim]: the new ones
    const u32* packed;       // [n_seqs]: tokens packed before the step
    const u32* packed_next;  // [n_seqs]: and after it
    u64 row_stride;
    u32 bits;  // 16: not quantized
    u32 token_words;
    u32 codes_start;
    u32 params_start;
};

struct Cache {
    u32* pool;  // [n_pages][n_kv_heads][page_words]
    Side k;
    Side v;
    const u32* row_start;   // [n_seqs + 1]
    const u32* seq_of_row;  // [rows]
    const u32* len;         // [n_seqs]: tokens before the step
    const u32* active;      // [n_seqs]
    const u32* slots;       // [n_seqs]
    const u32* page_table;  // [n_seqs][max_pages]
    u32 max_pages;
    u32 n_kv_heads;
    u32 head_dim;
    u32 group_size;
    u32 residual;
    u32 page_tokens;
    u32 sinks;
    u32 kv_dtype;
    u32 row_words;
    u32 page_words;
    u32 value_groups;
    u32 n_seqs;
};

__device__ inline bool is_quantized(const Side& side) { return side.bits < 16; }

// The words of the pool that hold a head's part of the page of token.
__device__ inline u32* page_of(const Cache& c, u32 seq, u32 head, u32 token) {
    u64 page = c.page_table[(u64)seq * c.max_pages + token / c.page_tokens];
    return c.pool + (page * c.n_kv_heads + head) * c.page_words;
}

// A head's row of an array [slot][kv_head][rows][row_words].
__device__ inline u32* slot_row(const Cache& c, u32* array, u32 rows, u32 seq, u32 head, u32 row) {
    return array + (((u64)c.slots[seq] * c.n_kv_heads + head) * rows + row) * c.row_words;
}

__device__ inline u32* ring_row(const Cache& c, const Side& side, u32 seq, u32 head, u32 token) {
    return slot_row(c, side.ring, c.residual, seq, head, token % c.residual);
}

__device__ inline u32* sink_row(const Cache& c, const Side& side, u32 seq, u32 head, u32 token) {
    return slot_row(c, side.sink, c.sinks, seq, head, token);
}

// The new row of token, which is not below len.
__device__ inline const Act* new_row(const Cache& c, const Side& side, u32 seq, u32 head, u32 token) {
    u64 row = c.row_start[seq] + (token - c.len[seq]);
    return side.rows + row * side.row_stride + (u64)head * c.head_dim;
}

// Element i of a row in kv_dtype.
__device__ inline float load_kv(u32 dtype, const u32* row, u32 i) {
    switch (dtype) {
        case KV_F16:
            return to_f32(((const __half*)row)[i]);
        case KV_BF16:
            return to_f32(((const __nv_bfloat16*)row)[i]);
        default:
            return ((const float*)row)[i];
    }
}

// Element i of a row := x, rounded to kv_dtype.
__device__ inline void store_kv(u32 dtype, u32* row, u32 i, float x) {
    switch (dtype) {
        case KV_F16:
            return store((__half*)row + i, x);
        case KV_BF16:
            return store((__nv_bfloat16*)row + i, x);
        default:
            return store((float*)row + i, x);
    }
}

// x rounded to kv_dtype: what everything reads of a new row.
__device__ inline float round_kv(u32 dtype, float x) {
    u32 word;
    store_kv(dtype, &word, 0, x);
    return load_kv(dtype, &word, 0);
}

// The place of a value's channel among the codes of its token (PageLayout::position).
__device__ inline u32 place_of(u32 head_dim, u32 channel) {
    u32 blocks = head_dim / 64, block = channel / 64, within = channel % 64;
    u32 tile = within / 16, lane = within % 16 / 2, half = within % 2;
    if (block < blocks) {
        return (lane * blocks + block) * 8 + 2 * tile + half;
    }
    return 64 * blocks + lane * (head_dim % 64 / 8) + 2 * tile + half;
}

// The channel at a place: the reverse of place_of.
__device__ inline u32 channel_at(u32 head_dim, u32 place) {
    u32 blocks = head_dim / 64;
    if (place < 64 * blocks) {
        u32 lane = place / 8 / blocks, block = place / 8 % blocks;
        return 64 * block + 16 * (place % 8 / 2) + 2 * lane + place % 2;
    }
    u32 of_lane = head_dim % 64 / 8, rest = place - 64 * blocks;
    return 64 * blocks + 16 * (rest % of_lane / 2) + 2 * (rest / of_lane) + rest % 2;
}

// Scale or zero in the half of a word that starts with bit shift.
__device__ inline float half_at(u32 word, u32 shift) { return to_f32(__ushort_as_half((u16)(word >> shift))); }

constexpr float F16_MAX = 65504.0f;

__device__ inline float max_code(u32 bits) { return (float)((1u << bits) - 1); }

// Scale and zero of a group, in the low and the high half (GroupParams::from_range).
__device__ inline u32 params_of(float min, float max, u32 bits) {
    if (min > max) {
        return 0;  // no number in the group
    }
    float scale = fminf(__fdiv_rn(__fsub_rn(max, min), max_code(bits)), F16_MAX);
    scale = scale > 0.0f ? scale : 0.0f;
    float zero = __fadd_rn(fminf(fmaxf(min, -F16_MAX), F16_MAX), 0.0f);  // -0 becomes 0
    return __half_as_ushort(__float2half_rn(scale)) | (u32)__half_as_ushort(__float2half_rn(zero)) << 16;
}
