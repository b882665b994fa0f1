// The gated activations: y = act(gate) up, with act SiLU or the tanh form of GELU, and their gradients.
// Sources: Shazeer, "GLU variants improve transformer", 2020; Hendrycks and Gimpel, "Gaussian error linear units", 2016.
#include "common.cuh"

#define GELU_SCALE 0.7978845608f // sqrt(2 / pi)
#define GELU_CUBIC 0.044715f

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The value of the activation at x, and its slope.
struct Silu {
    __device__ static void at(float x, float &value, float &slope) {
        float s = sigmoid(x);
        value = x * s;
        slope = s * (1.0f + x * (1.0f - s));
    }
};

struct GeluTanh {
    __device__ static void at(float x, float &value, float &slope) {
        float t = tanhf(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
        value = 0.5f * x * (1.0f + t);
        slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * x * x);
    }
};

template <class Act, class X> __device__ void forward(const X *gate, const X *up, X *y, i64 n) {
    for (i64 i = global_thread(); i < n; i += global_threads()) {
        float value, slope;
        Act::at(to_float(gate[i]), value, slope);
        y[i] = from_float<X>(value * to_float(up[i]));
    }
}

// dgate = g up act'(gate), dup = g act(gate).
template <class Act, class X>
__device__ void backward(const float *g, const X *gate, const X *up, float *dgate, float *dup, i64 n) {
    for (i64 i = global_thread(); i < n; i += global_threads()) {
        float value, slope;
        Act::at(to_float(gate[i]), value, slope);
        dgate[i] = g[i] * to_float(up[i]) * slope;
        dup[i] = g[i] * value;
    }
}

#define INSTANCES(Act, act_name, X, x_name)                                                                                   \
    extern "C" __global__ void act_name##_forward_##x_name(const X *gate, const X *up, X *y, i64 n) {                         \
        forward<Act>(gate, up, y, n);                                                                                         \
    }                                                                                                                         \
    extern "C" __global__ void act_name##_backward_##x_name(const float *g, const X *gate, const X *up, float *dgate,         \
                                                            float *dup, i64 n) {                                              \
        backward<Act>(g, gate, up, dgate, dup, n);                                                                            \
    }
INSTANCES(Silu, silu, float, f32)
INSTANCES(Silu, silu, bf16, bf16)
INSTANCES(GeluTanh, gelu_tanh, float, f32)
INSTANCES(GeluTanh, gelu_tanh, bf16, bf16)
