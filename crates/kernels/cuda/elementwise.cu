// Sums, multiples and conversions, element by element; columns of a matrix and sums over its rows.
#include "common.cuh"

#define EACH(i, n) for (i64 i = global_thread(); i < (n); i += global_threads())

// out = x + y.
#define ADD(X, x_name, Y, y_name, O, o_name)                                                                                  \
    extern "C" __global__ void add_##x_name##_##y_name##_##o_name(const X *x, const Y *y, O *out, i64 n) {                    \
        EACH(i, n) out[i] = from_float<O>(to_float(x[i]) + to_float(y[i]));                                                   \
    }
ADD(float, f32, float, f32, float, f32)
ADD(float, f32, bf16, bf16, float, f32)
ADD(bf16, bf16, float, f32, float, f32)
ADD(bf16, bf16, bf16, bf16, bf16, bf16)

// out = factor x: also what changes a type.
#define SCALE(X, x_name, O, o_name)                                                                                           \
    extern "C" __global__ void scale_##x_name##_##o_name(const X *x, float factor, O *out, i64 n) {                           \
        EACH(i, n) out[i] = from_float<O>(factor * to_float(x[i]));                                                           \
    }
SCALE(float, f32, float, f32)
SCALE(float, f32, bf16, bf16)
SCALE(bf16, bf16, float, f32)
SCALE(bf16, bf16, bf16, bf16)
SCALE(f16, f16, float, f32)
SCALE(f16, f16, bf16, bf16)

// y += alpha x.
extern "C" __global__ void axpy_f32(float alpha, const float *x, float *y, i64 n) { EACH(i, n) y[i] += alpha * x[i]; }

// out = x y.
extern "C" __global__ void multiply_f32(const float *x, const float *y, float *out, i64 n) { EACH(i, n) out[i] = x[i] * y[i]; }

// A thread has a column, in some of the rows: no index is divided.
#define EACH_ROW(t, rows) for (i64 t = blockIdx.y; t < (rows); t += gridDim.y)
#define COLUMN(j, width)                                                                                                      \
    i64 j = (i64)blockIdx.x * blockDim.x + threadIdx.x;                                                                       \
    if (j >= (width)) return

// y[t, j] = x[t, j] + bias[j].
#define ADD_BIAS(X, x_name)                                                                                                   \
    extern "C" __global__ void add_bias_##x_name(const X *x, const float *bias, X *y, i64 rows, i64 width) {                  \
        COLUMN(j, width);                                                                                                     \
        EACH_ROW(t, rows) y[t * width + j] = from_float<X>(to_float(x[t * width + j]) + bias[j]);                             \
    }
ADD_BIAS(float, f32)
ADD_BIAS(bf16, bf16)

// y[t, j] = x[t, j] factors[j].
#define SCALE_COLUMNS(X, x_name)                                                                                              \
    extern "C" __global__ void scale_columns_##x_name(const X *x, const float *factors, X *y, i64 rows, i64 width) {          \
        COLUMN(j, width);                                                                                                     \
        EACH_ROW(t, rows) y[t * width + j] = from_float<X>(to_float(x[t * width + j]) * factors[j]);                          \
    }
SCALE_COLUMNS(float, f32)
SCALE_COLUMNS(bf16, bf16)

// y [T, count] = columns first.. of x [T, width]; and the way back, which adds.
#define COLUMNS(X, x_name)                                                                                                    \
    extern "C" __global__ void columns_##x_name(const X *x, X *y, i64 rows, i64 width, i64 first, i64 count) {                \
        COLUMN(j, count);                                                                                                     \
        EACH_ROW(t, rows) y[t * count + j] = x[t * width + first + j];                                                        \
    }
COLUMNS(float, f32)
COLUMNS(bf16, bf16)
extern "C" __global__ void add_columns_f32(const float *g, float *dx, i64 rows, i64 width, i64 first, i64 count) {
    COLUMN(j, count);
    EACH_ROW(t, rows) dx[t * width + first + j] += g[t * count + j];
}

// partial[b, j] = sum over rows b rows_per_block.. of x[t, j]; a thread to a column. With one block of rows it is the sum itself.
extern "C" __global__ void sum_rows_f32(const float *x, float *out, i64 rows, i64 width, i64 rows_per_block, int accumulate) {
    i64 column = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    i64 first = (i64)blockIdx.y * rows_per_block, last = min(first + rows_per_block, rows);
    float sum = 0.0f;
    for (i64 row = first; row < last; row++) sum += x[row * width + column];
    float *to = out + (i64)blockIdx.y * width + column;
    *to = accumulate ? *to + sum : sum;
}

// y = c tanh(x / c), and its gradient g (1 - (y / c)^2).
extern "C" __global__ void soft_cap_forward_f32(const float *x, float cap, float *y, i64 n) {
    EACH(i, n) y[i] = cap * tanhf(x[i] / cap);
}
extern "C" __global__ void soft_cap_backward_f32(const float *g, const float *y, float cap, float *dx, i64 n) {
    EACH(i, n) {
        float part = y[i] / cap;
        dx[i] = g[i] * (1.0f - part * part);
    }
}

// y [n, width] = rows ids of x, and rows of x to places of y, of which no two are one.
extern "C" __global__ void take_rows_f32(const float *x, const u32 *ids, float *y, i64 rows, i64 width) {
    COLUMN(j, width);
    EACH_ROW(t, rows) y[t * width + j] = x[ids[t] * width + j];
}
extern "C" __global__ void put_rows_f32(const float *x, const u32 *ids, float *y, i64 rows, i64 width) {
    COLUMN(j, width);
    EACH_ROW(t, rows) y[ids[t] * width + j] = x[t * width + j];
}

// Adds the rows of g [T, width] to rows of a table: entry e of `rows` is a row of the table, to which the rows of g that stand at
// order[starts[e]..starts[e + 1]] are added in that order.
extern "C" __global__ void scatter_add_f32(const float *g, const u32 *rows, const u32 *starts, const u32 *order, float *table,
                                           i64 width) {
    i64 entry = blockIdx.y;
    i64 column = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = table[rows[entry] * width + column];
    for (u32 at = starts[entry]; at < starts[entry + 1]; at++) sum += g[order[at] * width + column];
    table[rows[entry] * width + column] = sum;
}
