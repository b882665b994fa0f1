// Rotary position embedding in the half-split order: element i of a head is paired with i + half (Su et al., "RoFormer", 2021).
#include "common.cuh"

// y = x [T, heads head_dim] with the first 2 half elements of each head turned by the angles of cos and sin [T, half]; the rest stays. The
// gradient is the turn by the opposite angle: sign -1.
template <class X>
__device__ void rope(const X *x, X *y, const float *cos, const float *sin, i64 n, i64 width, int head_dim, int half, float sign) {
    for (i64 i = global_thread(); i < n; i += global_threads()) {
        i64 t = i / width;
        int d = (int)(i % width % head_dim);
        if (d >= 2 * half) {
            y[i] = x[i];
            continue;
        }
        int pair = d < half ? d : d - half;
        float c = cos[t * half + pair], s = sign * sin[t * half + pair];
        float own = to_float(x[i]), other = to_float(d < half ? x[i + half] : x[i - half]);
        y[i] = from_float<X>(d < half ? own * c - other * s : own * c + other * s);
    }
}

extern "C" __global__ void rope_f32(const float *x, float *y, const float *cos, const float *sin, i64 n, i64 width, int head_dim,
                                    int half, float sign) {
    rope(x, y, cos, sin, n, width, head_dim, half, sign);
}
extern "C" __global__ void rope_bf16(const bf16 *x, bf16 *y, const float *cos, const float *sin, i64 n, i64 width, int head_dim,
                                     int half, float sign) {
    rope(x, y, cos, sin, n, width, head_dim, half, sign);
}
