// packs.cuh: elements that a thread takes 16 bytes of activations at a time.
#pragma once
#include "kivi.cuh"

constexpr u32 PACK = 8;

// PACK elements as they are read.
template <class T>
struct Pack {
    uint4 quads[PACK * sizeof(T) / sizeof(uint4)];
    __device__ __forceinline__ float operator[](u32 i) const { return to_f32(((const T*)quads)[i]); }
    __device__ __forceinline__ void set(u32 i, float x) { store((T*)quads + i, x); }
};

// Of what is read once.
template <class T>
__device__ __forceinline__ Pack<T> stream(const T* from) {
    Pack<T> pack;
#pragma unroll
    for (u32 i = 0; i < sizeof(pack) / sizeof(uint4); ++i) {
        pack.quads[i] = __ldcs((const uint4*)from + i);
    }
    return pack;
}

template <class T>
__device__ __forceinline__ Pack<T> read(const T* from) {
    return *(const Pack<T>*)from;
}

template <class T>
__device__ __forceinline__ void write(T* to, const Pack<T>& pack) {
    *(Pack<T>*)to = pack;
}
