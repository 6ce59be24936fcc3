// attention.cu: attention of the step's rows over the cache before the step and over themselves, exact and causal.
//   out = sum_j p_j v_j    p = softmax_j(scale q . k_j - slope (i - j))    first <= j <= i
// grid (rows, n_kv_heads): a block has one row and up to HEADS query heads of a KV head at a time, and goes over the
// tokens in tiles with an online softmax. Everything is f32 until the output. This is the plain kernel, right for every
// layout at run time; it reads codes one by one.
#include "row.cuh"

KIVI_CHECK_SIZE(AttendParams);

constexpr u32 HEADS = 8;           // with MAX_HEAD_DIM, q and the sums take 32 KiB of shared memory: no opt-in for more
constexpr u32 TILE = WARP;         // tokens of a tile: one a lane in the softmax

// The query heads that a block works on at a time; f32.
struct Work {
    float q[HEADS][MAX_HEAD_DIM];    // scaled
    float sum[HEADS][MAX_HEAD_DIM];  // sum_j p_j v_j so far
    float p[HEADS][TILE];            // logits of the tile, then weights
    float largest[HEADS];            // logit so far
    float total[HEADS];              // sum_j p_j so far
    float rescale[HEADS];            // what the tile makes of earlier sums
};

// Logits of the tile [start, end): a warp a token, all heads of the block at once.
__device__ void logits(const AttendParams& p, Work& w, u32 seq, u32 head, u32 n, u32 start, u32 end, u32 at) {
    const Cache& c = p.cache;
    u32 lane = threadIdx.x % WARP, query_head = blockIdx.y * (p.n_heads / c.n_kv_heads) + head;
    for (u32 token = start + threadIdx.x / WARP; token < end; token += WARPS) {
        Row key = find_row(c, c.k, seq, blockIdx.y, token);
        float dot[HEADS] = {};
        for (u32 channel = lane; channel < c.head_dim; channel += WARP) {
            float k = key_element(c, key, channel);
#pragma unroll
            for (u32 h = 0; h < HEADS; ++h) {
                dot[h] += w.q[h][channel] * k;
            }
        }
#pragma unroll
        for (u32 h = 0; h < HEADS; ++h) {
            float logit = warp_sum(dot[h]);
            if (lane == 0 && h < n) {
                float slope = p.alibi ? p.alibi[query_head + h] : 0.0f;
                w.p[h][token - start] = logit - slope * (float)(at - token);
            }
        }
    }
}

// Logits of the tile become weights relative to the largest logit so far: a warp a head, a lane a token.
__device__ void softmax(Work& w, u32 n, u32 tokens) {
    u32 lane = threadIdx.x % WARP;
    for (u32 h = threadIdx.x / WARP; h < n; h += WARPS) {
        float logit = lane < tokens ? w.p[h][lane] : -INFINITY;
        float before = w.largest[h], largest = fmaxf(before, warp_max(logit));
        float base = largest == -INFINITY ? 0.0f : largest;  // -inf - -inf is no number
        float weight = lane < tokens ? expf(logit - base) : 0.0f;
        float total = warp_sum(weight);
        w.p[h][lane] = weight;
        __syncwarp();  // every lane has read what lane 0 writes
        if (lane == 0) {
            w.rescale[h] = expf(before - base);
            w.total[h] = w.total[h] * w.rescale[h] + total;
            w.largest[h] = largest;
        }
    }
}

// Adds the values of the tile [start, end), weighted: a thread a channel.
__device__ void mix(const Cache& c, Work& w, u32 seq, u32 start, u32 end) {
    for (u32 channel = threadIdx.x; channel < c.head_dim; channel += BLOCK) {
        float sum[HEADS];
#pragma unroll
        for (u32 h = 0; h < HEADS; ++h) {
            sum[h] = w.sum[h][channel] * w.rescale[h];
        }
        for (u32 token = start; token < end; ++token) {
            float v = value_element(c, find_row(c, c.v, seq, blockIdx.y, token), channel);
#pragma unroll
            for (u32 h = 0; h < HEADS; ++h) {
                sum[h] += w.p[h][token - start] * v;
            }
        }
#pragma unroll
        for (u32 h = 0; h < HEADS; ++h) {
            w.sum[h][channel] = sum[h];
        }
    }
}

// Queries head .. head + n of the block's row and KV head; what is beyond n is 0.
__device__ void begin(const AttendParams& p, Work& w, const Act* q, u32 n) {
    u32 head_dim = p.cache.head_dim;
    for (u32 i = threadIdx.x; i < HEADS * head_dim; i += BLOCK) {
        u32 h = i / head_dim, channel = i % head_dim;
        w.q[h][channel] = h < n ? p.scale * to_f32(q[i]) : 0.0f;
        w.sum[h][channel] = 0.0f;
    }
    if (threadIdx.x < HEADS * TILE) {
        w.p[threadIdx.x / TILE][threadIdx.x % TILE] = 0.0f;
    }
    if (threadIdx.x < HEADS) {
        w.largest[threadIdx.x] = -INFINITY;
        w.total[threadIdx.x] = w.rescale[threadIdx.x] = 0.0f;
    }
    __syncthreads();
}

extern "C" __global__ void attend(AttendParams p) {
    wait_for_launch_before();
    __shared__ Work w;
    const Cache& c = p.cache;
    u32 row = blockIdx.x, seq = c.seq_of_row[row], ratio = p.n_heads / c.n_kv_heads;
    u32 at = c.len[seq] + (row - c.row_start[seq]);
    u32 first = p.window && at + 1 > p.window ? at + 1 - p.window : 0;
    for (u32 head = 0; head < ratio; head += HEADS) {
        u32 n = min(HEADS, ratio - head);
        u64 columns = ((u64)blockIdx.y * ratio + head) * c.head_dim;
        begin(p, w, p.q + row * p.q_stride + columns, n);
        for (u32 start = first; start <= at && c.active[seq]; start += TILE) {
            u32 end = min(start + TILE, at + 1);
            logits(p, w, seq, head, n, start, end, at);
            __syncthreads();
            softmax(w, n, end - start);
            __syncthreads();
            mix(c, w, seq, start, end);
            __syncthreads();
        }
        for (u32 i = threadIdx.x; i < n * c.head_dim; i += BLOCK) {
            u32 h = i / c.head_dim;
            float x = c.active[seq] ? w.sum[h][i % c.head_dim] / w.total[h] : 0.0f;
            store(&p.out[row * p.out_stride + columns + i], x);
        }
        __syncthreads();
    }
}
