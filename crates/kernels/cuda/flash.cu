// Attention on tensor cores, bf16, heads of 64, 96, 128 and 256 columns. Blocks of 128 threads; see `flash.cuh`.
//
// Pointers are multiples of 16 bytes. `tiles`: 3 numbers each, see `PackedTile`; for `flash_cached` 4, see `forward_cached`. A
// `window` of INT_MAX and a `cap` of 0 are none. The blocks of `flash_backward_kv_256` with blockIdx.z = 0 make dk, those with 1
// dv: a lane has no registers for both.
#include "flash_backward.cuh"
#include "flash_forward.cuh"

extern "C" __global__ void flash_prepare(const float *g, const bf16 *out, bf16 *g_rounded, float *delta, i64 rows, int d) {
    prepare_backward(g, out, g_rounded, delta, rows, d);
}

template <int D>
__device__ __forceinline__ void backward_kv_of(const FlashSaved &saved, const int *tiles, float *dk, float *dv, const FlashShape &shape) {
    if constexpr (D <= 128) {
        flash_backward_kv<D, true, true>(saved, tiles, dk, dv, shape);
    } else if (blockIdx.z == 0) {
        flash_backward_kv<D, true, false>(saved, tiles, dk, dv, shape);
    } else {
        flash_backward_kv<D, false, true>(saved, tiles, dk, dv, shape);
    }
}

#define INSTANCES(D)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                                  \
        flash_forward_##D(const bf16 *q, const bf16 *k, const bf16 *v, const int *tiles, bf16 *out, float *lse, int heads,       \
                          int kv_heads, int window, float scale, float cap) {                                                    \
        forward_packed<D>(q, k, v, tiles, out, lse, {heads, kv_heads, window, scale, cap});                                      \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                                  \
        flash_cached_##D(const bf16 *q, const u64 *k_pages, const u64 *v_pages, const int *tiles, bf16 *out, int page_tokens,    \
                         int heads, int kv_heads, int window, float scale, float cap) {                                          \
        forward_cached<D>(q, k_pages, v_pages, tiles, out, page_tokens, {heads, kv_heads, window, scale, cap});                  \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                                  \
        flash_backward_kv_##D(const bf16 *g, const bf16 *q, const bf16 *k, const bf16 *v, const float *lse, const float *delta,  \
                              const int *tiles, float *dk, float *dv, int heads, int kv_heads, int window, float scale,          \
                              float cap) {                                                                                       \
        backward_kv_of<D>({g, q, k, v, lse, delta}, tiles, dk, dv, {heads, kv_heads, window, scale, cap});                       \
    }                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                                  \
        flash_backward_q_##D(const bf16 *g, const bf16 *q, const bf16 *k, const bf16 *v, const float *lse, const float *delta,   \
                             const int *tiles, float *dq, int heads, int kv_heads, int window, float scale, float cap) {         \
        flash_backward_q<D>({g, q, k, v, lse, delta}, tiles, dq, {heads, kv_heads, window, scale, cap});                         \
    }
INSTANCES(64)
INSTANCES(96)
INSTANCES(128)
INSTANCES(256)
