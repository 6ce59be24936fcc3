// row.cuh: attention's parameters, and where the row of a token lies, in which form: for kernels that read one row at a
// time.
#pragma once
#include "page.cuh"

struct AttendParams {
    Cache cache;
    Act* out;            // [rows, n_heads * head_dim]
    const Act* q;        // [rows, n_heads * head_dim]
    const float* alibi;  // [n_heads], or null
    u64 out_stride;
    u64 q_stride;
    u32 n_heads;
    u32 window;  // tokens that a token sees, itself included; 0: all
    float scale;
    u32 rows;
};

// Where the row of a token lies, and in which form.
struct Row {
    enum { NEW, FULL, CODES } form;
    const void* data;
    const u32* params;
    u32 shift;  // CODES: 16 for the odd token of a pair of values
};

__device__ inline Row find_row(const Cache& c, const Side& side, u32 seq, u32 head, u32 token) {
    if (token >= c.len[seq]) {
        return {Row::NEW, new_row(c, side, seq, head, token), nullptr, 0};
    }
    if (is_quantized(side) && token < c.sinks) {
        return {Row::FULL, sink_row(c, side, seq, head, token), nullptr, 0};
    }
    if (token >= side.packed[seq]) {
        return {Row::FULL, ring_row(c, side, seq, head, token), nullptr, 0};
    }
    const u32* page = page_of(c, seq, head, token);
    const u32* codes = page + side.codes_start;
    const u32* params = page + side.params_start;
    u32 t = token % c.page_tokens;
    if (!is_quantized(side)) {
        return {Row::FULL, codes + (u64)t * c.row_words, nullptr, 0};
    }
    if (&side == &c.k) {
        return {Row::CODES, codes + (u64)t * side.token_words, params + t / c.group_size * c.head_dim, 0};
    }
    return {Row::CODES, codes + (u64)(t / 2) * 2 * side.token_words, params + t / 2 * 2 * c.value_groups, 16 * (t % 2)};
}

__device__ inline float full_element(const Cache& c, const Row& row, u32 channel) {
    if (row.form == Row::NEW) {
        return round_kv(c.kv_dtype, to_f32(((const Act*)row.data)[channel]));
    }
    return load_kv(c.kv_dtype, (const u32*)row.data, channel);
}

__device__ inline float key_element(const Cache& c, const Row& row, u32 channel) {
    if (row.form != Row::CODES) {
        return full_element(c, row, channel);
    }
    u32 per_word = 32 / c.k.bits, within = channel % per_word;
    u32 word = ((const u32*)row.data)[channel / per_word];
    u32 code = word >> (16 * (within % 2) + within / 2 * c.k.bits) & ((1u << c.k.bits) - 1);
    const u32* params = row.params + channel / 2 * 2;
    return (float)code * half_at(params[0], 16 * (channel % 2)) + half_at(params[1], 16 * (channel % 2));
}

__device__ inline float value_element(const Cache& c, const Row& row, u32 channel) {
    if (row.form != Row::CODES) {
        return full_element(c, row, channel);
    }
    u32 per_unit = 16 / c.v.bits, place = place_of(c.head_dim, channel);
    u32 word = ((const u32*)row.data)[place / per_unit];
    u32 code = word >> (row.shift + place % per_unit * c.v.bits) & ((1u << c.v.bits) - 1);
    const u32* params = row.params + channel / c.group_size;
    return (float)code * half_at(params[0], row.shift) + half_at(params[c.value_groups], row.shift);
}
