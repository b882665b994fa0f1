// RMSNorm: y = x / sqrt(mean(x^2) + eps) * (offset + w), forward and backward. A block to a row.
#include "common.cuh"

template <class X, class Y>
__device__ void forward(const X *x, const float *w, float offset, float eps, Y *y, float *inv_rms, i64 h) {
    __shared__ float scratch[WARP];
    i64 row = blockIdx.x;
    x += row * h;
    y += row * h;
    float sum = 0.0f;
    for (i64 i = threadIdx.x; i < h; i += blockDim.x) {
        float value = to_float(x[i]);
        sum += value * value;
    }
    float inverse = 1.0f / sqrtf(block_sum(sum, scratch) / (float)h + eps);
    for (i64 i = threadIdx.x; i < h; i += blockDim.x) {
        y[i] = from_float<Y>(to_float(x[i]) * inverse * (offset + w[i]));
    }
    if (threadIdx.x == 0) inv_rms[row] = inverse;
}

// dx = r (g (offset + w) - xhat mean(g (offset + w) xhat)), with xhat = x r.
template <class X>
__device__ void backward(const float *g, const X *x, const float *w, float offset, const float *inv_rms, float *dx, i64 h,
                         int accumulate) {
    __shared__ float scratch[WARP];
    i64 row = blockIdx.x;
    g += row * h;
    x += row * h;
    dx += row * h;
    float inverse = inv_rms[row], dot = 0.0f;
    for (i64 i = threadIdx.x; i < h; i += blockDim.x) dot += g[i] * (offset + w[i]) * to_float(x[i]) * inverse;
    float mean = block_sum(dot, scratch) / (float)h;
    for (i64 i = threadIdx.x; i < h; i += blockDim.x) {
        float value = inverse * (g[i] * (offset + w[i]) - to_float(x[i]) * inverse * mean);
        dx[i] = accumulate ? dx[i] + value : value;
    }
}

// dw[i] = sum over the rows of g xhat: a thread to a column, in blocks of rows, whose partial sums `[blocks, h]` are then added up by
// `sum_rows`.
template <class X>
__device__ void backward_weight(const float *g, const X *x, const float *inv_rms, float *partial, i64 rows, i64 h,
                                i64 rows_per_block) {
    i64 column = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= h) return;
    i64 first = (i64)blockIdx.y * rows_per_block, last = min(first + rows_per_block, rows);
    float sum = 0.0f;
    for (i64 row = first; row < last; row++) sum += g[row * h + column] * to_float(x[row * h + column]) * inv_rms[row];
    partial[(i64)blockIdx.y * h + column] = sum;
}

#define INSTANCES(X, x_name)                                                                                                  \
    extern "C" __global__ void rms_norm_forward_##x_name##_f32(const X *x, const float *w, float offset, float eps, float *y, \
                                                               float *inv_rms, i64 h) {                                       \
        forward(x, w, offset, eps, y, inv_rms, h);                                                                            \
    }                                                                                                                         \
    extern "C" __global__ void rms_norm_forward_##x_name##_bf16(const X *x, const float *w, float offset, float eps, bf16 *y, \
                                                                float *inv_rms, i64 h) {                                      \
        forward(x, w, offset, eps, y, inv_rms, h);                                                                            \
    }                                                                                                                         \
    extern "C" __global__ void rms_norm_backward_##x_name(const float *g, const X *x, const float *w, float offset,           \
                                                          const float *inv_rms, float *dx, i64 h, int accumulate) {           \
        backward(g, x, w, offset, inv_rms, dx, h, accumulate);                                                                \
    }                                                                                                                         \
    extern "C" __global__ void rms_norm_backward_weight_##x_name(const float *g, const X *x, const float *inv_rms,            \
                                                                 float *partial, i64 rows, i64 h, i64 rows_per_block) {       \
        backward_weight(g, x, inv_rms, partial, rows, h, rows_per_block);                                                     \
    }
INSTANCES(float, f32)
INSTANCES(bf16, bf16)
