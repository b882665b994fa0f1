// What all kernels share: types, conversions, sums over a warp and a block.
//
// Conventions of every kernel here:
// - `extern "C"`, named after what it computes and the types it reads and writes: `rms_norm_forward_f32_bf16`.
// - Sizes and indices are `long long` where a tensor can have 2^31 elements or more.
// - No atomics: a sum has one order, which depends on the shapes alone. The same inputs give the same bits.
// - Everything is summed in f32.
// - Outputs are written, never read, unless the name or a parameter `accumulate` says that they are added to.
//
// The same sources are compiled by a C++ compiler against `emulator/cuda.h`, which runs them on the CPU.
#pragma once

#ifdef TAPER_EMULATOR
#include "emulator/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// Shared memory whose size the launch says.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARP 32
#define FULL_MASK 0xffffffffu

// An `f32`, `bf16` or `f16` as f32, and back (to the nearest, ties to even).
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }

// The sum over a warp, in all its lanes; every lane must call it.
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, step));
    return x;
}

// The sum over a block of whole warps, in all its threads; every thread must call it. `scratch`: 32 floats of shared memory, free again
// when it returns.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x, float *scratch) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_max(lane < warps ? scratch[lane] : -INFINITY);
    __syncthreads();
    return x;
}

// This thread among all of a one-dimensional grid, and how many there are.
__device__ __forceinline__ i64 global_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 global_threads() { return (i64)gridDim.x * blockDim.x; }
