// ptx.cuh: instructions that CUDA C++ has no name for, one function each, and nothing else. Fragments are those of the
// PTX manual: lane 4 g + t holds row (A, C) or column (B) g, and the pairs t and t + 4 along the other side.
#pragma once
#include "kivi.cuh"

// The block's dynamic shared memory.
__device__ __forceinline__ char* dynamic_shared() {
    extern __shared__ __align__(128) char dynamic_shared_memory[];
    return dynamic_shared_memory;
}

// Where something in shared memory lies, for the functions below.
__device__ __forceinline__ u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// The lane of a thread, which the compiler keeps: it does not see that this is one.
__device__ __forceinline__ u32 lane_id() { return __shfl_sync(ALL_LANES, threadIdx.x % WARP, threadIdx.x % WARP); }

// x, which the compiler keeps instead of computing it again.
__device__ __forceinline__ u32 keep(u32 x) {
    asm volatile("mov.u32 %0, %0;" : "+r"(x));
    return x;
}

// Waits for so many threads, whole warps, which have a barrier (1 to 15) to themselves.
__device__ __forceinline__ void sync_threads(u32 barrier, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Adds to a word of global memory and returns what it was. What this thread, or others before a barrier, wrote before can be read
// by whoever finds the sum, and what those wrote who added before can be read behind it.
__device__ __forceinline__ u32 add_in_order(u32* word, u32 x) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(x) : "memory");
    return before;
}

// 1, 2 or 4 words of shared memory.
__device__ __forceinline__ void read_shared(u32 (&x)[1], u32 at) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x[0]) : "r"(at));
}
__device__ __forceinline__ void read_shared(u32 (&x)[2], u32 at) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(at));
}
// By lanes that need them; others keep what they have.
__device__ __forceinline__ void read_shared(u32 (&x)[4], u32 at, bool needed) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(x[0]), "+r"(x[1]), "+r"(x[2]), "+r"(x[3])
                 : "r"(at), "r"((u32)needed));
}
__device__ __forceinline__ void write_shared(u32 at, const u32 (&x)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}
__device__ __forceinline__ void read_shared(u32 (&x)[4], u32 at) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}

// c += a b for a of 16 x 16 and b of 16 x 8 elements.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(u32 (&x)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
}
__device__ __forceinline__ void load_matrices(u32 (&x)[4], const void* row) { load_matrices(x, shared_address(row)); }

// The same, each matrix transposed.
__device__ __forceinline__ void load_transposed(u32 (&x)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
}
__device__ __forceinline__ void load_transposed(u32 (&x)[4], const void* row) { load_transposed(x, shared_address(row)); }

// An 8 x 8 matrix of 16-bit elements, a pair a lane, transposed across the warp.
__device__ __forceinline__ u32 transpose(u32 x) {
    u32 y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// 2^x, to about 2 ulp.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers rounded to a pair, low first.
__device__ __forceinline__ u32 pack(float low, float high, __half) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ u32 pack(float low, float high, __nv_bfloat16) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// Products of two pairs of f16.
__device__ __forceinline__ u32 multiply_f16(u32 a, u32 b) {
    u32 c;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

// The larger ones of two pairs of f16.
__device__ __forceinline__ u32 max_f16(u32 a, u32 b) {
    u32 c;
    asm("max.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

// Products of two pairs of f16, plus a third pair, rounded once.
__device__ __forceinline__ u32 multiply_add_f16(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Has the line of 128 bytes at an address come to the second-level cache.
__device__ __forceinline__ void ask(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// cp.async (sm_80): 16 bytes to shared memory; zeros instead if not valid. A group is what was queued since the last
// commit.
__device__ __forceinline__ void copy_async(u32 shared, const void* global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
    copy_async(shared_address(shared), global, valid);
}

__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until no more than PENDING groups of this thread are under way.
template <u32 PENDING>
__device__ __forceinline__ void wait_async() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
