// What the plain and the tensor-core kernels of attention share.
//
// Packed sequences: q `[T, N*D]`, k and v `[T, K*D]`; the rows of a segment see each other alone. The query in place i of its
// segment sees the keys in places j with j <= i and i - j < window (INT_MAX: no window). Head h reads key/value head h / (N/K). s
// = cap * tanh(scale * q.k / cap), or scale * q.k where cap is 0; out = softmax(s) v; lse = ln of the softmax's denominator.
#pragma once
#include "common.cuh"

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// The first place that the query in place `i` sees.
__device__ __forceinline__ int first_visible(int i, int window) { return max(0, i - window + 1); }

// As many elements as are read or written at once.
template <class T> struct alignas(16) Chunk {
    T x[16 / sizeof(T)];
};
