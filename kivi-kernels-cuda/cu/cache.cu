// cache.cu: writing the cache.
//   append_pack   quantizes what is due, from the ring or the new rows, into pages     grid (parts, n_kv_heads, n_seqs)
//   append_store  puts the other new rows into ring, sinks and 16-bit pages            grid (rows, n_kv_heads)
//   clear_pages   zeroes pages                                                         grid (pages)
// append.cu appends to the usual layouts, the first two here to any. append_pack runs first: a row leaves the ring
// before a new one takes its place. Codes are those of kivi_quant::group, bit for bit: every operation is rounded as
// IEEE says, nothing is contracted.
#include "page.cuh"

KIVI_CHECK_SIZE(Cache);

struct ClearParams {
    u32* pool;         // [n_pages][of_page]
    const u32* pages;  // [n]
    u64 of_page;       // words of a page, all heads
};
KIVI_CHECK_SIZE(ClearParams);

constexpr u32 MAX_GROUPS = MAX_HEAD_DIM / 32;

// The code of x (GroupParams::quantize).
__device__ u32 code_of(float x, u32 params, u32 bits) {
    float scale = half_at(params, 0);
    if (scale == 0.0f) {
        return 0;
    }
    float steps = __fdiv_rn(__fsub_rn(x, half_at(params, 16)), scale);
    return (u32)rintf(fminf(fmaxf(steps, 0.0f), max_code(bits)));  // a NaN becomes 0 here
}

// Channel of token's row, which is not packed.
__device__ float element(const Cache& c, const Side& side, u32 seq, u32 head, u32 token, u32 channel) {
    if (token < c.len[seq]) {
        return load_kv(c.kv_dtype, ring_row(c, side, seq, head, token), channel);
    }
    return round_kv(c.kv_dtype, to_f32(new_row(c, side, seq, head, token)[channel]));
}

// Packs the keys of group_size tokens from token on: scales with a thread a channel, then codes with a thread a word.
__device__ void pack_keys(const Cache& c, u32 seq, u32 head, u32 token) {
    __shared__ u32 params[MAX_HEAD_DIM];
    u32* page = page_of(c, seq, head, token);
    u32 first = token % c.page_tokens;
    u32 skip = token < c.sinks ? min(c.sinks - token, c.group_size) : 0;
    u16* stored = (u16*)(page + c.k.params_start + first / c.group_size * c.head_dim);
    for (u32 channel = threadIdx.x; channel < c.head_dim; channel += BLOCK) {
        float smallest = INFINITY, largest = -INFINITY;
        for (u32 i = skip; i < c.group_size; ++i) {
            float x = element(c, c.k, seq, head, token + i, channel);
            smallest = fminf(smallest, x);
            largest = fmaxf(largest, x);
        }
        u32 both = params[channel] = params_of(smallest, largest, c.k.bits);
        stored[channel / 2 * 4 + channel % 2] = (u16)both;
        stored[channel / 2 * 4 + 2 + channel % 2] = (u16)(both >> 16);
    }
    __syncthreads();
    u32* codes = page + c.k.codes_start + (u64)first * c.k.token_words;
    u32 per_word = 32 / c.k.bits;
    for (u32 at = threadIdx.x; at < c.group_size * c.k.token_words; at += BLOCK) {
        u32 i = at / c.k.token_words, channel = at % c.k.token_words * per_word;
        u32 word = 0;
        for (u32 within = 0; within < per_word && i >= skip; ++within) {
            float x = element(c, c.k, seq, head, token + i, channel + within);
            u32 code = code_of(x, params[channel + within], c.k.bits);
            word |= code << (16 * (within % 2) + within / 2 * c.k.bits);
        }
        codes[at] = word;
    }
    __syncthreads();  // params are free again
}

// Packs the value of token: scales with a warp a group, then codes with a thread a 16-bit unit.
__device__ void pack_value(const Cache& c, u32 seq, u32 head, u32 token) {
    __shared__ u32 params[MAX_GROUPS];
    u32* page = page_of(c, seq, head, token);
    u32 at_page = token % c.page_tokens, lane = threadIdx.x % WARP;
    u16* stored = (u16*)(page + c.v.params_start + at_page / 2 * 2 * c.value_groups);
    for (u32 group = threadIdx.x / WARP; group < c.value_groups; group += WARPS) {
        u32 end = min((group + 1) * c.group_size, c.head_dim);
        float smallest = INFINITY, largest = -INFINITY;
        for (u32 channel = group * c.group_size + lane; channel < end; channel += WARP) {
            float x = element(c, c.v, seq, head, token, channel);
            smallest = fminf(smallest, x);
            largest = fmaxf(largest, x);
        }
        smallest = warp_min(smallest);
        largest = warp_max(largest);
        if (lane == 0) {
            u32 both = params[group] = params_of(smallest, largest, c.v.bits);
            stored[2 * group + at_page % 2] = (u16)both;
            stored[2 * (c.value_groups + group) + at_page % 2] = (u16)(both >> 16);
        }
    }
    __syncthreads();
    // Units of two tokens share a word: the even token's is the low half.
    u16* units = (u16*)(page + c.v.codes_start + (u64)(at_page / 2) * 2 * c.v.token_words);
    u32 per_unit = 16 / c.v.bits;
    for (u32 unit = threadIdx.x; unit < 2 * c.v.token_words; unit += BLOCK) {
        u32 codes = 0;
        for (u32 i = 0; i < per_unit; ++i) {
            u32 channel = channel_at(c.head_dim, unit * per_unit + i);
            float x = element(c, c.v, seq, head, token, channel);
            codes |= code_of(x, params[channel / c.group_size], c.v.bits) << (i * c.v.bits);
        }
        units[2 * unit + at_page % 2] = (u16)codes;
    }
    __syncthreads();
}

extern "C" __global__ void append_pack(Cache c) {
    wait_for_launch_before();
    u32 head = blockIdx.y, seq = blockIdx.z;
    if (!c.active[seq]) {
        return;
    }
    if (is_quantized(c.k)) {
        u32 first = c.k.packed[seq] + blockIdx.x * c.group_size, step = gridDim.x * c.group_size;
        for (u32 token = first; token < c.k.packed_next[seq]; token += step) {
            pack_keys(c, seq, head, token);
        }
    }
    if (is_quantized(c.v)) {
        u32 first = max(c.v.packed[seq], c.sinks) + blockIdx.x;
        for (u32 token = first; token < c.v.packed_next[seq]; token += gridDim.x) {
            pack_value(c, seq, head, token);
        }
    }
}

// row := the new row of token, in kv_dtype.
__device__ void store_row(const Cache& c, const Act* x, u32* row) {
    for (u32 channel = threadIdx.x; channel < c.head_dim; channel += BLOCK) {
        store_kv(c.kv_dtype, row, channel, to_f32(x[channel]));
    }
}

__device__ void store_side(const Cache& c, const Side& side, u32 seq, u32 head, u32 token) {
    const Act* x = new_row(c, side, seq, head, token);
    if (!is_quantized(side)) {
        u64 row = token % c.page_tokens * (u64)c.row_words;
        return store_row(c, x, page_of(c, seq, head, token) + side.codes_start + row);
    }
    if (token >= side.packed_next[seq]) {
        store_row(c, x, ring_row(c, side, seq, head, token));
    }
    if (token < c.sinks) {
        store_row(c, x, sink_row(c, side, seq, head, token));
    }
}

extern "C" __global__ void append_store(Cache c) {
    wait_for_launch_before();
    u32 head = blockIdx.y, seq = c.seq_of_row[blockIdx.x];
    if (c.active[seq]) {
        u32 token = c.len[seq] + (blockIdx.x - c.row_start[seq]);
        store_side(c, c.k, seq, head, token);
        store_side(c, c.v, seq, head, token);
    }
}

extern "C" __global__ void clear_pages(ClearParams p) {
    wait_for_launch_before();
    u32* page = p.pool + p.pages[blockIdx.x] * p.of_page;
    for (u64 i = threadIdx.x; i < p.of_page; i += BLOCK) {
        page[i] = 0;
    }
}
