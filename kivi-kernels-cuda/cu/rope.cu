// rope.cu: rotary position embedding in place, one thread a pair of channels.
//   a = position * inv_freq[j]    x'[j] = x[j] c - x[j + d] s    x'[j + d] = x[j + d] c + x[j] s    j < d
#include "kivi.cuh"

struct RopeParams {
    Act* x;                   // [rows, heads * head_dim]
    const u32* positions;     // [rows]
    const float* inv_freq;    // [tables, d]
    const u32* table_of_row;  // [rows], or null: table 0
    u64 stride;
    u64 rows;
    u32 heads;
    u32 head_dim;
    u32 d;  // half of the channels that turn
    float scaling;
};
KIVI_CHECK_SIZE(RopeParams);

extern "C" __global__ void rope(RopeParams p) {
    wait_for_launch_before();
    u64 of_row = (u64)p.heads * p.d;
    for (u64 i = grid_thread(); i < p.rows * of_row; i += grid_threads()) {
        u64 row = i / of_row;
        u32 head = i % of_row / p.d, j = i % p.d;
        u64 table = p.table_of_row ? p.table_of_row[row] : 0;
        float angle = (float)p.positions[row] * p.inv_freq[table * p.d + j];
        float sine, cosine;
        sincosf(angle, &sine, &cosine);
        float s = p.scaling * sine, c = p.scaling * cosine;
        Act* x = p.x + row * p.stride + (u64)head * p.head_dim;
        float a = to_f32(x[j]), b = to_f32(x[j + p.d]);
        store(&x[j], a * c - b * s);
        store(&x[j + p.d], b * c + a * s);
    }
}
