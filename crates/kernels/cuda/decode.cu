// Frozen weights in their coded form: decoded to bf16 or f32, single rows of them (an embedding table), and products of few
// rows with them.
#include "decode_blocks.cuh"

// The table of the nibbles in shared memory; all threads of a block must call it. (Its sixteen floats lie in as many banks, so
// that threads that look up different ones do not wait for each other.)
template <class D> __device__ __forceinline__ void load_table(const Coded &w, float *table) {
    if (!D::TABLED) return;
    if (threadIdx.x < NIBBLES) table[threadIdx.x] = w.tables[threadIdx.x];
    __syncthreads();
}

template <class T, int N> struct alignas(N * sizeof(T)) Pack {
    T v[N];
};

// Eight elements at p, in loads and stores of 16 bytes when p is ALIGNED to them.
template <bool ALIGNED, class T> __device__ __forceinline__ void load_run(const T *p, float v[RUN]) {
    const int N = ALIGNED ? 16 / sizeof(T) : 1;
#pragma unroll
    for (int part = 0; part < RUN / N; part++) {
        Pack<T, N> pack = ((const Pack<T, N> *)p)[part];
#pragma unroll
        for (int k = 0; k < N; k++) v[part * N + k] = to_float(pack.v[k]);
    }
}

template <bool ALIGNED, class T> __device__ __forceinline__ void store_run(T *p, const float v[RUN]) {
    const int N = ALIGNED ? 16 / sizeof(T) : 1;
#pragma unroll
    for (int part = 0; part < RUN / N; part++) {
        Pack<T, N> pack;
#pragma unroll
        for (int k = 0; k < N; k++) pack.v[k] = from_float<T>(v[part * N + k]);
        ((Pack<T, N> *)p)[part] = pack;
    }
}

// The row of an element. A division of 64 bits takes several times one of 32.
__device__ __forceinline__ i64 row_of(i64 at, i64 columns) {
    if ((at | columns) >> 32) return at / columns;
    return (u32)at / (u32)columns;
}

// Elements first..first + count of the flattened matrix, a thread to a run. Where rows are whole runs, `first` and `count` are
// multiples of 8; else the first and the last run may be wanted in part.
template <class D, class Y> __device__ void decode(const Coded &w, i64 first, i64 count, Y *y) {
    __shared__ float table[NIBBLES];
    load_table<D>(w, table);
    i64 end = first + count, runs = (end + RUN - 1) / RUN;
    bool aligned = (u64)y % 16 == 0 && first % RUN == 0;
    bool straight = !D::BY_ROW || w.columns % RUN == 0;
    for (i64 run = first / RUN + global_thread(); run < runs; run += global_threads()) {
        i64 at = run * RUN;
        if (D::WHOLE || (straight && at >= first && at + RUN <= end)) {
            float v[RUN];
            D::run(w, table, at, D::BY_ROW ? row_of(at, w.columns) : 0, v);
            if (aligned) store_run<true>(y + (at - first), v);
            else store_run<false>(y + (at - first), v);
        } else {
            for (i64 i = max(at, first); i < min(at + RUN, end); i++) {
                y[i - first] = from_float<Y>(D::element(w, table, i, D::BY_ROW ? row_of(i, w.columns) : 0));
            }
        }
    }
}

// y[n, columns] from rows `ids` of the matrix, a block to a row. A row that is not there becomes NaN: nothing outside is read,
// and it is seen.
template <class D> __device__ void gather(const Coded &w, const u32 *ids, i64 rows, float *y) {
    __shared__ float table[NIBBLES];
    load_table<D>(w, table);
    i64 id = ids[blockIdx.x];
    y += (i64)blockIdx.x * w.columns;
    bool aligned = (u64)y % 16 == 0;
    if (id >= rows) {
        for (i64 i = threadIdx.x; i < w.columns; i += blockDim.x) y[i] = NAN;
    } else if (D::WHOLE || w.columns % RUN == 0) {
        for (i64 i = (i64)threadIdx.x * RUN; i < w.columns; i += (i64)blockDim.x * RUN) {
            float v[RUN];
            D::run(w, table, id * w.columns + i, id, v);
            if (aligned) store_run<true>(y + i, v);
            else store_run<false>(y + i, v);
        }
    } else {
        for (i64 i = threadIdx.x; i < w.columns; i += blockDim.x) y[i] = D::element(w, table, id * w.columns + i, id);
    }
}

// The same two of floats: nothing to decode, but perhaps to convert. They are read one by one, since a table may begin anywhere.
template <class X, class Y> __device__ void convert(const X *x, i64 first, i64 count, Y *y) {
    for (i64 i = global_thread(); i < count; i += global_threads()) y[i] = from_float<Y>(to_float(x[first + i]));
}

template <class X> __device__ void gather_floats(const X *x, const u32 *ids, i64 rows, i64 columns, float *y) {
    i64 id = ids[blockIdx.x];
    y += (i64)blockIdx.x * columns;
    for (i64 i = threadIdx.x; i < columns; i += blockDim.x) y[i] = id < rows ? to_float(x[id * columns + i]) : NAN;
}

// Warps of a block of `thin`.
#define THIN_WARPS 8

// The matrix, `x` and the rows of W of one warp.
template <class X, int R> struct Thin {
    const Coded &w;
    const float *table;
    const X *x;
    i64 m, row[R];
};

// What columns k..k + 8 add: sums[r, j] += W[row[r]] x[j]. A row of x that is not there is the last one again.
template <class D, bool ALIGNED, int M, class X, int R>
__device__ __forceinline__ void add_run(const Thin<X, R> &t, i64 k, float sums[R * M]) {
    float weights[R][RUN];
#pragma unroll
    for (int r = 0; r < R; r++) D::run(t.w, t.table, t.row[r] * t.w.columns + k, t.row[r], weights[r]);
#pragma unroll
    for (int j = 0; j < M; j++) {
        float values[RUN];
        load_run<ALIGNED>(t.x + min((i64)j, t.m - 1) * t.w.columns + k, values);
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int i = 0; i < RUN; i++) sums[r * M + j] += weights[r][i] * values[i];
        }
    }
}

// Every step-th run from `start` on. Several at once, so that enough loads are under way: a run is but four or eight bytes of W.
template <class D, bool ALIGNED, int M, class X, int R>
__device__ __forceinline__ void add_runs(const Thin<X, R> &t, i64 start, i64 step, float sums[R * M]) {
    const int AHEAD = !ALIGNED || M > 2 ? 1 : M == 2 ? 2 : 4;
    i64 k = start * RUN, columns = t.w.columns;
    step *= RUN;
#pragma unroll 1
    for (; k + (AHEAD - 1) * step < columns; k += AHEAD * step) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) add_run<D, ALIGNED, M>(t, k + a * step, sums);
    }
    if constexpr (AHEAD > 1) {
#pragma unroll 1
        for (; k < columns; k += step) add_run<D, ALIGNED, M>(t, k, sums);
    }
}

// The same where rows are no whole runs: every step-th column.
template <class D, int M, class X, int R>
__device__ __forceinline__ void add_columns(const Thin<X, R> &t, i64 start, i64 step, float sums[R * M]) {
    i64 columns = t.w.columns;
#pragma unroll 1
    for (i64 k = start; k < columns; k += step) {
        float weights[R];
#pragma unroll
        for (int r = 0; r < R; r++) weights[r] = D::element(t.w, t.table, t.row[r] * columns + k, t.row[r]);
#pragma unroll
        for (int j = 0; j < M; j++) {
            float value = to_float(t.x[min((i64)j, t.m - 1) * columns + k]);
#pragma unroll
            for (int r = 0; r < R; r++) sums[r * M + j] += weights[r] * value;
        }
    }
}

// y[m, rows] = x[m, columns] W^T + bias for few rows m <= M; a weight is read and decoded once.
//
// `split` warps (a power of two up to 8) share R rows of W, each with every split-th stretch of 256 columns; their sums are
// added in order at the end. A sum is so in one order that depends on `columns` and `split` alone: a row of x has the same
// result among others as by itself. `bias` [rows] may be null; y is bf16 or f32.
template <class D, class X, int M>
__device__ void thin(const Coded &w, const X *x, i64 m, const float *bias, void *y, int y_is_bf16, i64 rows, int split) {
    // Rows that share what is loaded of x, which is the most of all loads when there are many.
    const int R = M >= 4 ? 2 : 1;
    __shared__ float table[NIBBLES], parts[THIN_WARPS][R * M];
    load_table<D>(w, table);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, groups = THIN_WARPS / split;
    i64 first_row = ((i64)blockIdx.x * groups + warp / split) * R;
    Thin<X, R> t{w, table, x, m, {}};
    // A row of W that is not there is the last one again, and not written.
    for (int r = 0; r < R; r++) t.row[r] = min(first_row + r, rows - 1);
    float sums[R * M];
    for (int i = 0; i < R * M; i++) sums[i] = 0.0f;

    i64 start = warp % split * WARP + lane, step = split * WARP;
    if (!D::WHOLE && w.columns % RUN != 0) add_columns<D, M>(t, start, step, sums);
    else if ((u64)x % 16 == 0) add_runs<D, true, M>(t, start, step, sums);
    else add_runs<D, false, M>(t, start, step, sums);

#pragma unroll
    for (int i = 0; i < R * M; i++) {
        float sum = warp_sum(sums[i]);
        if (lane == 0) parts[warp][i] = sum;
    }
    __syncthreads();
    // A thread to a result: x's row changes slowest within a block, so that neighbours in y are neighbours here.
    for (int i = threadIdx.x; i < groups * R * M; i += blockDim.x) {
        int j = i / (groups * R), r = i % (groups * R);
        i64 to = (i64)blockIdx.x * groups * R + r;
        if (j >= m || to >= rows) continue;
        float sum = 0.0f;
        for (int part = 0; part < split; part++) sum += parts[r / R * split + part][r % R * M + j];
        if (bias) sum += bias[to];
        if (y_is_bf16) ((bf16 *)y)[j * rows + to] = from_float<bf16>(sum);
        else ((float *)y)[j * rows + to] = sum;
    }
}

// All kernels take the matrix in the same way; what a format does not have is null.
#define CODED                                                                                                                 \
    const u8 *codes, const float *scales, const u8 *scale_codes, const float *tables, int block_shift, int nested_shift,      \
        i64 columns
#define GIVEN                                                                                                                 \
    Coded { codes, scales, scale_codes, tables, block_shift, nested_shift, columns }

#define DECODE(D, name)                                                                                                       \
    extern "C" __global__ void decode_##name##_f32(CODED, i64 first, i64 count, float *y) {                                   \
        decode<D>(GIVEN, first, count, y);                                                                                    \
    }                                                                                                                         \
    extern "C" __global__ void decode_##name##_bf16(CODED, i64 first, i64 count, bf16 *y) {                                   \
        decode<D>(GIVEN, first, count, y);                                                                                    \
    }                                                                                                                         \
    extern "C" __global__ void rows_##name(CODED, const u32 *ids, i64 rows, float *y) { gather<D>(GIVEN, ids, rows, y); }
DECODE(FourBit, four_bit)
DECODE(Int8, int8)
DECODE(Blocks<Q4_0>, q4_0)
DECODE(Blocks<Q4_1>, q4_1)
DECODE(Blocks<Q5_0>, q5_0)
DECODE(Blocks<Q5_1>, q5_1)
DECODE(Blocks<Q8_0>, q8_0)
DECODE(Blocks<Q2_K>, q2_k)
DECODE(Blocks<Q3_K>, q3_k)
DECODE(Blocks<Q4_K>, q4_k)
DECODE(Blocks<Q5_K>, q5_k)
DECODE(Blocks<Q6_K>, q6_k)
DECODE(Blocks<IQ4_NL>, iq4_nl)
DECODE(Blocks<IQ4_XS>, iq4_xs)

#define FLOATS(X, name)                                                                                                       \
    extern "C" __global__ void decode_##name##_f32(CODED, i64 first, i64 count, float *y) {                                   \
        convert((const X *)codes, first, count, y);                                                                           \
    }                                                                                                                         \
    extern "C" __global__ void decode_##name##_bf16(CODED, i64 first, i64 count, bf16 *y) {                                   \
        convert((const X *)codes, first, count, y);                                                                           \
    }                                                                                                                         \
    extern "C" __global__ void rows_##name(CODED, const u32 *ids, i64 rows, float *y) {                                       \
        gather_floats((const X *)codes, ids, rows, columns, y);                                                               \
    }
FLOATS(float, f32)
FLOATS(bf16, bf16)
FLOATS(f16, f16)

#define THIN_M(D, name, X, x_name, M)                                                                                         \
    extern "C" __global__ void __launch_bounds__(THIN_WARPS *WARP) thin_##name##_##x_name##_##M(                              \
        CODED, const X *x, i64 m, const float *bias, void *y, int y_is_bf16, i64 rows, int split) {                           \
        thin<D, X, M>(GIVEN, x, m, bias, y, y_is_bf16, rows, split);                                                          \
    }
#define THIN_X(D, name, X, x_name)                                                                                            \
    THIN_M(D, name, X, x_name, 1)                                                                                             \
    THIN_M(D, name, X, x_name, 2) THIN_M(D, name, X, x_name, 4) THIN_M(D, name, X, x_name, 8)
#define THIN(D, name) THIN_X(D, name, float, f32) THIN_X(D, name, bf16, bf16)
THIN(FourBit, four_bit)
THIN(Int8, int8)
THIN(Blocks<Q8_0>, q8_0)
THIN(Blocks<Q4_0>, q4_0)
THIN(Blocks<Q4_K>, q4_k)
THIN(Blocks<Q5_K>, q5_k)
THIN(Blocks<Q6_K>, q6_k)
