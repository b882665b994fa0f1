// Rotary position embedding in the half-split order: element i of a head is paired with i + half (Su et al., "RoFormer", 2021).
#include "common.cuh"

// y = x [T, width] of heads of head_dim with the first 2 half elements of each head turned by the angles of cos and sin [T, half]; the rest
// stays. The gradient is the turn by the opposite angle: sign -1. A thread has a column, in some of the rows.
template <class X>
__device__ void rope(const X *x, X *y, const float *cos, const float *sin, i64 rows, int width, int head_dim, int half, float sign) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int d = column % head_dim, pair = d < half ? d : d - half;
    bool stays = d >= 2 * half;
    // Where the other of the pair stands, and the sign of its part.
    int other = d < half ? half : -half;
    float turn = d < half ? -sign : sign;
    for (i64 t = blockIdx.y; t < rows; t += gridDim.y) {
        i64 at = t * width + column;
        if (stays) {
            y[at] = x[at];
            continue;
        }
        float c = cos[t * half + pair], s = turn * sin[t * half + pair];
        y[at] = from_float<X>(to_float(x[at]) * c + to_float(x[at + other]) * s);
    }
}

extern "C" __global__ void rope_f32(const float *x, float *y, const float *cos, const float *sin, i64 rows, int width, int head_dim,
                                    int half, float sign) {
    rope(x, y, cos, sin, rows, width, head_dim, half, sign);
}
extern "C" __global__ void rope_bf16(const bf16 *x, bf16 *y, const float *cos, const float *sin, i64 rows, int width, int head_dim,
                                     int half, float sign) {
    rope(x, y, cos, sin, rows, width, head_dim, half, sign);
}
