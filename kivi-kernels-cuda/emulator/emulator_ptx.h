// The functions of ptx.cuh on the CPU. Copies that are asynchronous are made when they are waited for, and until then
// the memory that they write is filled with ones: what does not wait reads those.
#pragma once
#include <deque>
#include <map>
#include <vector>

#include "kivi.cuh"

inline char* dynamic_shared() { return emulator_shared; }
inline u32 shared_address(const void* shared) { return (u32)((const char*)shared - emulator_shared); }
inline u32 keep(u32 x) { return x; }
inline void sync_threads(u32, u32 threads) { emulator_team_barrier(threads); }
inline u32 add_in_order(u32* word, u32 x) { return atomicAdd(word, x); }
inline void ask(const void*) {}
inline u32 lane_id() { return threadIdx.x % 32; }
template <unsigned long N>
void read_shared(u32 (&x)[N], u32 at) {
    if (at % sizeof x) {
        emulator_fail("words of shared memory are not aligned");
    }
    memcpy(x, emulator_shared + at, sizeof x);
}
inline void read_shared(u32 (&x)[4], u32 at, bool needed) {
    if (needed) {
        read_shared(x, at);
    }
}
inline void write_shared(u32 at, const u32 (&x)[4]) { memcpy(emulator_shared + at, x, sizeof x); }

inline float emulator_element(u32 pair, u32 half, bool bf16) {
    u16 bits = (u16)(pair >> 16 * half);
    return bf16 ? __bfloat162float({bits}) : __half2float({bits});
}

struct EmulatorMma {
    float* c;
    const u32* a;
    u32 b[2];
    bool bf16;
};

// Fragments as in the PTX manual: lane 4 g + t.
inline void emulator_mma(void** lanes) {
    static float a[16][16], b[16][8];
    for (u32 lane = 0; lane < 32; ++lane) {
        const EmulatorMma& x = *(EmulatorMma*)lanes[lane];
        u32 g = lane / 4, t = lane % 4;
        for (u32 h = 0; h < 2; ++h) {
            for (u32 r = 0; r < 4; ++r) {
                a[g + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = emulator_element(x.a[r], h, x.bf16);
            }
            for (u32 r = 0; r < 2; ++r) {
                b[2 * t + h + 8 * r][g] = emulator_element(x.b[r], h, x.bf16);
            }
        }
    }
    for (u32 lane = 0; lane < 32; ++lane) {
        for (u32 r = 0; r < 4; ++r) {
            u32 m = lane / 4 + 8 * (r / 2), n = 2 * (lane % 4) + r % 2;
            float sum = 0.0f;
            for (u32 k = 0; k < 16; ++k) {
                sum += a[m][k] * b[k][n];
            }
            ((EmulatorMma*)lanes[lane])->c[r] += sum;
        }
    }
}

inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bool bf16) {
    EmulatorMma x = {c, a, {b0, b1}, bf16};
    emulator_warp(emulator_mma, &x);
}
inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, __half) { mma(c, a, b0, b1, false); }
inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, __nv_bfloat16) { mma(c, a, b0, b1, true); }

struct EmulatorMatrices {
    u32* x;
    const u16* row;
    bool transposed;
};

inline void emulator_load_matrices(void** lanes) {
    for (u32 lane = 0; lane < 32; ++lane) {
        EmulatorMatrices& to = *(EmulatorMatrices*)lanes[lane];
        u32 g = lane / 4, t = lane % 4;
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            to.x[matrix] = 0;
            for (u32 h = 0; h < 2; ++h) {
                u32 row = to.transposed ? 2 * t + h : g, column = to.transposed ? g : 2 * t + h;
                const u16* from = ((EmulatorMatrices*)lanes[8 * matrix + row])->row;
                if ((uintptr_t)from % 16) {
                    emulator_fail("a row of a matrix is not aligned");
                }
                to.x[matrix] |= (u32)from[column] << 16 * h;
            }
        }
    }
}

inline void load_matrices(u32 (&x)[4], const void* row) {
    EmulatorMatrices given = {x, (const u16*)row, false};
    emulator_warp(emulator_load_matrices, &given);
}
inline void load_matrices(u32 (&x)[4], u32 row) { load_matrices(x, emulator_shared + row); }
inline void load_transposed(u32 (&x)[4], const void* row) {
    EmulatorMatrices given = {x, (const u16*)row, true};
    emulator_warp(emulator_load_matrices, &given);
}
inline void load_transposed(u32 (&x)[4], u32 row) { load_transposed(x, emulator_shared + row); }

inline u32 transpose(u32 x) {
    u32 pair[2] = {x, 0};
    auto work = [](void** lanes) {
        for (u32 lane = 0; lane < 32; ++lane) {
            for (u32 h = 0; h < 2; ++h) {
                u32 row = 2 * (lane % 4) + h, column = lane / 4;
                u32 from = ((u32*)lanes[row * 4 + column / 2])[0];
                ((u32*)lanes[lane])[1] |= (from >> 16 * (column % 2) & 0xffff) << 16 * h;
            }
        }
    };
    emulator_warp(work, pair);
    return pair[1];
}

inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
inline u32 pack(float low, float high, __half) {
    return __float2half_rn(low).bits | (u32)__float2half_rn(high).bits << 16;
}
inline u32 pack(float low, float high, __nv_bfloat16) {
    return __float2bfloat16_rn(low).bits | (u32)__float2bfloat16_rn(high).bits << 16;
}
inline u32 multiply_f16(u32 a, u32 b) {
    return pack(emulator_element(a, 0, false) * emulator_element(b, 0, false),
                emulator_element(a, 1, false) * emulator_element(b, 1, false), __half());
}
inline u32 multiply_add_f16(u32 a, u32 b, u32 c) {
    return pack(emulator_element(a, 0, false) * emulator_element(b, 0, false) + emulator_element(c, 0, false),
                emulator_element(a, 1, false) * emulator_element(b, 1, false) + emulator_element(c, 1, false), __half());
}

inline u32 max_f16(u32 a, u32 b) {
    return pack(fmaxf(emulator_element(a, 0, false), emulator_element(b, 0, false)),
                fmaxf(emulator_element(a, 1, false), emulator_element(b, 1, false)), __half());
}

struct EmulatorCopy {
    void* to;
    const void* from;
    u32 bytes;

    void queue() const {
        if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16 || !bytes) {
            emulator_fail("an asynchronous copy is not aligned");
        }
        memset(to, 0xff, bytes);
    }
    void make() const { from ? memcpy(to, from, bytes) : memset(to, 0, bytes); }
};

// The copies of a thread.
struct EmulatorGroups {
    std::deque<std::vector<EmulatorCopy>> committed;
    std::vector<EmulatorCopy> open;
};

inline EmulatorGroups emulator_groups[1024];
inline struct EmulatorReset {
    EmulatorReset() {
        emulator_at_block_start([] {
            for (EmulatorGroups& groups : emulator_groups) {
                groups = {};
            }
        });
    }
} emulator_reset;

inline void copy_async(void* shared, const void* global, bool valid = true) {
    EmulatorCopy copy = {shared, valid ? global : nullptr, 16};
    copy.queue();
    emulator_groups[threadIdx.x].open.push_back(copy);
}
inline void copy_async(u32 shared, const void* global, bool valid = true) {
    copy_async(emulator_shared + shared, global, valid);
}
inline void commit_async() {
    EmulatorGroups& groups = emulator_groups[threadIdx.x];
    groups.committed.push_back(std::move(groups.open));
    groups.open.clear();
}
template <u32 PENDING>
void wait_async() {
    auto& committed = emulator_groups[threadIdx.x].committed;
    for (; committed.size() > PENDING; committed.pop_front()) {
        for (const EmulatorCopy& copy : committed.front()) {
            copy.make();
        }
    }
}
