// Attention in plain arithmetic: any width of a head up to 256, f32 and bf16. The twin of the tensor-core kernels in `flash.cu`,
// and what serves f32, odd widths and decoding over a cache in pages.
//
// A warp works on one row (a query, or in the backward pass of keys a key) and takes its partners 32 at a time: first each lane
// forms the score of one partner, then the lanes share out the columns of the sums. Formulas: `attention.cuh`. The online softmax
// is that of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
#include "attention.cuh"

#define MAX_D 256
#define PER_LANE (MAX_D / WARP)
// Warps of a block, which has as many rows of one head.
#define ROWS 4
// Warps of a block over a cache, which share the keys of one query.
#define SPLITS 8

// a . b, from left to right; a is in shared memory.
template <class T> __device__ float dot(const float *a, const T *b, int d) {
    constexpr int WIDE = 16 / sizeof(T);
    float sum = 0.0f;
    int c = 0;
    if ((u64)b % 16 == 0) {
        for (; c + WIDE <= d; c += WIDE) {
            Chunk<T> chunk = *(const Chunk<T> *)(b + c);
#pragma unroll
            for (int i = 0; i < WIDE; i++) sum += a[c + i] * to_float(chunk.x[i]);
        }
    }
    for (; c < d; c++) sum += a[c] * to_float(b[c]);
    return sum;
}

// A row as f32 in shared memory, for one warp.
template <class T> __device__ void copy_row(float *to, const T *from, int d) {
    for (int c = threadIdx.x % WARP; c < d; c += WARP) to[c] = to_float(from[c]);
    __syncwarp();
}

// sums[c] += weight x[c], in the columns of this lane.
template <class T> __device__ __forceinline__ void add_row(float (&sums)[PER_LANE], float weight, const T *x, int d) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = i * WARP + threadIdx.x % WARP;
        if (c < d) sums[i] += weight * to_float(x[c]);
    }
}

template <class T> __device__ __forceinline__ void write_row(T *to, const float (&sums)[PER_LANE], float factor, int d) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int c = i * WARP + threadIdx.x % WARP;
        if (c < d) to[c] = from_float<T>(sums[i] * factor);
    }
}

__device__ __forceinline__ float capped(float s, float cap) { return cap > 0.0f ? cap * tanhf(s / cap) : s; }

// Keys and values of one head, in rows that follow each other.
template <class T> struct Packed {
    const T *k, *v;
    i64 width;
    __device__ const T *key(int j) const { return k + j * width; }
    __device__ const T *value(int j) const { return v + j * width; }
};

// The same in pages `[page_tokens, width]`.
template <class T> struct Paged {
    const u64 *k_pages, *v_pages;
    int page_tokens;
    i64 width, column;
    __device__ const T *at(const u64 *pages, int j) const {
        return (const T *)pages[j / page_tokens] + (j % page_tokens) * width + column;
    }
    __device__ const T *key(int j) const { return at(k_pages, j); }
    __device__ const T *value(int j) const { return at(v_pages, j); }
};

// A softmax under way: the highest score, the sum of e^(s - highest), and the values times these.
struct Online {
    float highest, sum, values[PER_LANE];
};

__device__ __forceinline__ void start(Online &online) {
    online.highest = -INFINITY;
    online.sum = 0.0f;
    for (int i = 0; i < PER_LANE; i++) online.values[i] = 0.0f;
}

// Takes the keys first..first + 32, then those `step` further, and so on below `last`.
template <class Keys>
__device__ void attend(Online &online, const float *q, const Keys &keys, int first, int last, int step, int d, float scale, float cap) {
    int lane = threadIdx.x % WARP;
    for (int base = first; base < last; base += step) {
        bool here = base + lane < last;
        float s = here ? capped(scale * dot(q, keys.key(base + lane), d), cap) : -INFINITY;
        float highest = fmaxf(online.highest, warp_max(s));
        // Where no score is above minus infinity, 0 keeps e^(-inf - from) = 0.
        float from = highest == -INFINITY ? 0.0f : highest;
        float keep = expf(online.highest - from), p = expf(s - from);
        online.sum = online.sum * keep + warp_sum(p);
        online.highest = highest;
        for (int i = 0; i < PER_LANE; i++) online.values[i] *= keep;
        for (int i = 0; i < WARP && base + i < last; i++) add_row(online.values, __shfl_sync(FULL_MASK, p, i), keys.value(base + i), d);
    }
}

// The shape of an attention layer and the place of this warp in it. `rows` has for each token the first row of its segment and
// the row after its last.
struct Place {
    i64 row, start;
    int i, len;
    bool inside;
};

__device__ __forceinline__ Place place_of(const int *rows, i64 t) {
    Place place;
    place.row = (i64)blockIdx.x * ROWS + threadIdx.x / WARP;
    place.inside = place.row < t;
    if (!place.inside) return place;
    place.start = rows[2 * place.row];
    place.i = (int)(place.row - place.start);
    place.len = (int)(rows[2 * place.row + 1] - place.start);
    return place;
}

// A block to `ROWS` queries of head blockIdx.y.
template <class T>
__device__ void forward(const T *q, const T *k, const T *v, const int *rows, T *out, float *lse, i64 t, int heads, int kv_heads, int d,
                        int window, float scale, float cap) {
    __shared__ float queries[ROWS][MAX_D];
    Place at = place_of(rows, t);
    if (!at.inside) return;
    int head = blockIdx.y, warp = threadIdx.x / WARP;
    i64 width = (i64)kv_heads * d, first_key = at.start * width + (head / (heads / kv_heads)) * d, query = (at.row * heads + head) * d;
    copy_row(queries[warp], q + query, d);
    Packed<T> keys = {k + first_key, v + first_key, width};
    Online online;
    start(online);
    attend(online, queries[warp], keys, first_visible(at.i, window), at.i + 1, WARP, d, scale, cap);
    write_row(out + query, online.values, 1.0f / online.sum, d);
    if (threadIdx.x % WARP == 0) lse[at.row * heads + head] = online.highest + logf(online.sum);
}

// delta[t, n] = g . out: a warp to a row of a head.
template <class T> __device__ void row_dots(const float *g, const T *out, float *delta, i64 rows, int d) {
    i64 row = global_thread() / WARP;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int c = threadIdx.x % WARP; c < d; c += WARP) sum += g[row * d + c] * to_float(out[row * d + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[row] = sum;
}

// A probability, and d/d(scale * q.k), from the score's two sides: `raw` = scale * q.k and `dp` = g . v.
__device__ __forceinline__ void probability(float raw, float dp, float lse, float delta, float cap, float &p, float &ds) {
    float s = capped(raw, cap);
    p = expf(s - lse);
    float slope = cap > 0.0f ? 1.0f - (s / cap) * (s / cap) : 1.0f;
    ds = p * (dp - delta) * slope;
}

// dq = scale * sum over the keys of ds k: a block to `ROWS` queries of head blockIdx.y.
template <class T>
__device__ void backward_q(const float *g, const T *q, const T *k, const T *v, const float *lse, const float *delta, const int *rows,
                           float *dq, i64 t, int heads, int kv_heads, int d, int window, float scale, float cap) {
    __shared__ float queries[ROWS][MAX_D], gradients[ROWS][MAX_D];
    Place at = place_of(rows, t);
    if (!at.inside) return;
    int head = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    i64 width = (i64)kv_heads * d, first_key = at.start * width + (head / (heads / kv_heads)) * d, query = at.row * heads + head;
    copy_row(queries[warp], q + query * d, d);
    copy_row(gradients[warp], g + query * d, d);
    Packed<T> keys = {k + first_key, v + first_key, width};
    float sums[PER_LANE] = {};
    for (int base = first_visible(at.i, window); base <= at.i; base += WARP) {
        int j = base + lane;
        float p, ds = 0.0f;
        if (j <= at.i) {
            float raw = scale * dot(queries[warp], keys.key(j), d), dp = dot(gradients[warp], keys.value(j), d);
            probability(raw, dp, lse[query], delta[query], cap, p, ds);
        }
        __syncwarp();
        for (int n = 0; n < WARP && base + n <= at.i; n++) add_row(sums, __shfl_sync(FULL_MASK, ds, n), keys.key(base + n), d);
    }
    write_row(dq + query * d, sums, scale, d);
}

// dk = scale * sum of ds q and dv = sum of p g, over the heads of the group and the queries that see the key: a block to `ROWS`
// keys of key/value head blockIdx.y.
template <class T>
__device__ void backward_kv(const float *g, const T *q, const T *k, const T *v, const float *lse, const float *delta, const int *rows,
                            float *dk, float *dv, i64 t, int heads, int kv_heads, int d, int window, float scale, float cap) {
    __shared__ float keys[ROWS][MAX_D], values[ROWS][MAX_D];
    Place at = place_of(rows, t);
    if (!at.inside) return;
    int group = heads / kv_heads, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    i64 key = (at.row * kv_heads + blockIdx.y) * d;
    copy_row(keys[warp], k + key, d);
    copy_row(values[warp], v + key, d);
    float dk_sums[PER_LANE] = {}, dv_sums[PER_LANE] = {};
    // Queries at.i..last see the key.
    int last = window < at.len - at.i ? at.i + window : at.len;
    for (int head = blockIdx.y * group; head < (int)(blockIdx.y + 1) * group; head++) {
        for (int base = at.i; base < last; base += WARP) {
            i64 query = (at.start + base + lane) * heads + head;
            float p = 0.0f, ds = 0.0f;
            if (base + lane < last) {
                float raw = scale * dot(keys[warp], q + query * d, d), dp = dot(values[warp], g + query * d, d);
                probability(raw, dp, lse[query], delta[query], cap, p, ds);
            }
            __syncwarp();
            for (int n = 0; n < WARP && base + n < last; n++) {
                i64 row = ((at.start + base + n) * heads + head) * d;
                add_row(dk_sums, __shfl_sync(FULL_MASK, ds, n), q + row, d);
                add_row(dv_sums, __shfl_sync(FULL_MASK, p, n), g + row, d);
            }
        }
    }
    write_row(dk + key, dk_sums, scale, d);
    write_row(dv + key, dv_sums, 1.0f, d);
}

// Rows of out `[T, N*D]`, of queries over caches in pages `[page_tokens, K*D]`: a block to one query of head blockIdx.y, whose
// warps share the keys. `queries` has for each block 4 numbers: the query's row, how many positions there are up to its own,
// where the pages of its sequence begin in the lists, and nothing.
template <class T>
__device__ void cached(const T *q, const u64 *k_pages, const u64 *v_pages, const int *queries, T *out, int page_tokens, int heads,
                       int kv_heads, int d, int window, float scale, float cap) {
    __shared__ float query[MAX_D], values[SPLITS][MAX_D], highest[SPLITS], sums[SPLITS];
    int head = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int *own = queries + 4 * (i64)blockIdx.x;
    int last = own[1], first_page = own[2];
    i64 at = ((i64)own[0] * heads + head) * d;
    for (int c = threadIdx.x; c < d; c += blockDim.x) query[c] = to_float(q[at + c]);
    __syncthreads();
    Paged<T> keys = {k_pages + first_page, v_pages + first_page, page_tokens, (i64)kv_heads * d, (head / (heads / kv_heads)) * d};
    Online online;
    start(online);
    int first = first_visible(last - 1, window) + warp * WARP;
    attend(online, query, keys, first, last, SPLITS * WARP, d, scale, cap);
    write_row(values[warp], online.values, 1.0f, d);
    if (lane == 0) {
        highest[warp] = online.highest;
        sums[warp] = online.sum;
    }
    __syncthreads();
    float most = -INFINITY, sum = 0.0f;
    for (int i = 0; i < SPLITS; i++) most = fmaxf(most, highest[i]);
    if (most == -INFINITY) most = 0.0f;
    for (int i = 0; i < SPLITS; i++) sum += expf(highest[i] - most) * sums[i];
    for (int c = threadIdx.x; c < d; c += blockDim.x) {
        float value = 0.0f;
        for (int i = 0; i < SPLITS; i++) value += expf(highest[i] - most) * values[i][c];
        out[at + c] = from_float<T>(value / sum);
    }
}

#define INSTANCES(T, name)                                                                                                       \
    extern "C" __global__ void attention_forward_##name(const T *q, const T *k, const T *v, const int *rows, T *out, float *lse, \
                                                        i64 t, int heads, int kv_heads, int d, int window, float scale,          \
                                                        float cap) {                                                             \
        forward(q, k, v, rows, out, lse, t, heads, kv_heads, d, window, scale, cap);                                             \
    }                                                                                                                            \
    extern "C" __global__ void attention_delta_##name(const float *g, const T *out, float *delta, i64 rows, int d) {             \
        row_dots(g, out, delta, rows, d);                                                                                        \
    }                                                                                                                            \
    extern "C" __global__ void attention_backward_q_##name(                                                                      \
        const float *g, const T *q, const T *k, const T *v, const float *lse, const float *delta, const int *rows, float *dq,    \
        i64 t, int heads, int kv_heads, int d, int window, float scale, float cap) {                                             \
        backward_q(g, q, k, v, lse, delta, rows, dq, t, heads, kv_heads, d, window, scale, cap);                                 \
    }                                                                                                                            \
    extern "C" __global__ void attention_backward_kv_##name(                                                                     \
        const float *g, const T *q, const T *k, const T *v, const float *lse, const float *delta, const int *rows, float *dk,    \
        float *dv, i64 t, int heads, int kv_heads, int d, int window, float scale, float cap) {                                  \
        backward_kv(g, q, k, v, lse, delta, rows, dk, dv, t, heads, kv_heads, d, window, scale, cap);                            \
    }                                                                                                                            \
    extern "C" __global__ void attention_cached_##name(const T *q, const u64 *k_pages, const u64 *v_pages, const int *list, T *out, \
                                                       int page_tokens, int heads, int kv_heads, int d, int window, float scale, \
                                                       float cap) {                                                              \
        cached(q, k_pages, v_pages, list, out, page_tokens, heads, kv_heads, d, window, scale, cap);                             \
    }
INSTANCES(float, f32)
INSTANCES(bf16, bf16)
