// The parts of attention on tensor cores, bf16: tiles in shared memory, their products, scores.
//
// Dao, "FlashAttention-2", 2023: a block of 4 warps owns 64 rows, each warp 16 of them, and walks over tiles of the other side,
// which are copied to shared memory one step ahead. Scores and probabilities stay in the registers of the warp that has their
// rows: what a product leaves in a lane is what the next product takes from it as its left side, so warps exchange nothing.
//
// In a lane, a result `c[n][e]` of `mma.m16n8k16` is row lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2.
#pragma once
#include "attention.cuh"
#include "matrix.cuh"

#define FLASH_WARPS 4
#define FLASH_THREADS (FLASH_WARPS * WARP)
// Rows that a block owns, and that a warp does.
#define FLASH_ROWS 64
#define WARP_ROWS 16

// Rows of the tiles that a block walks over, and bytes of shared memory, which the launchers compute as well: what fits in the 99
// KiB that every card since compute capability 8.0 has, and in the registers beside the sums.
template <int D> struct FlashSizes {
    static constexpr int FORWARD_STEP = D > 128 ? 32 : 64, BACKWARD_STEP = D > 128 ? 16 : D > 64 ? 32 : 64;
    static constexpr int FORWARD_SHARED = 2 * D * (FLASH_ROWS + 4 * FORWARD_STEP);
    static constexpr int BACKWARD_SHARED = 2 * D * (2 * FLASH_ROWS + 4 * BACKWARD_STEP) + 16 * BACKWARD_STEP;
};

struct FlashShape {
    int heads, kv_heads, window;
    float scale, cap;
};

// 64 rows of one segment (fewer at its end), as the host lists them: the segment's first row, its length, and the first place.
struct PackedTile {
    i64 start;
    int len, first;
    __device__ explicit PackedTile(const int *tile) : start(tile[0]), len(tile[1]), first(tile[2]) {}
    __device__ int count() const { return min(FLASH_ROWS, len - first); }
};

#ifdef TAPER_EMULATOR
__device__ __forceinline__ float fast_exp2(float x) { return exp2f(x); }
__device__ __forceinline__ float fast_divide(float a, float b) { return a / b; }
#else
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float fast_divide(float a, float b) { return __fdividef(a, b); }
#endif

// Where 8 columns of a row of a tile `[rows, D]` are: turned around within 8 (for D = 96 within 4) neighbours, so that the same
// columns of 8 rows that follow each other lie in different banks.
template <int D> __device__ __forceinline__ int place_in_tile(int row, int chunk) {
    int turn = D % 64 == 0 ? row % 8 : row / 2 % 4;
    return row * D + (chunk ^ turn) * 8;
}

// One head's columns of rows that follow each other.
struct PackedRows {
    const bf16 *x;
    i64 width;
    __device__ __forceinline__ const bf16 *operator()(int row) const { return x + row * width; }
};

// The same where the rows lie in pages `[page_tokens, width]`.
struct PagedRows {
    const u64 *pages;
    int page_tokens;
    i64 width, column;
    __device__ __forceinline__ const bf16 *operator()(int row) const {
        return (const bf16 *)pages[row / page_tokens] + (row % page_tokens) * width + column;
    }
};

// Starts the copy of rows first..first + COUNT to a tile; rows from `last` on are zeros.
template <int D, int COUNT, class Rows> __device__ __forceinline__ void copy_tile(bf16 *tile, const Rows &rows, int first, int last) {
    constexpr int CHUNKS = D / 8;
    static_assert(COUNT * CHUNKS % FLASH_THREADS == 0, "every thread copies as much");
#pragma unroll
    for (int n = 0; n < COUNT * CHUNKS / FLASH_THREADS; n++) {
        int i = n * FLASH_THREADS + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
        cp_async_16(tile + place_in_tile<D>(row, chunk), rows(min(first + row, last - 1)) + chunk * 8, first + row < last);
    }
}

// c0, c1 (8 columns each) += a b.
__device__ __forceinline__ void mma_pair(float (&c0)[4], float (&c1)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma_bf16(c0, a, b0);
    mma_bf16(c1, a, b1);
}

// 16 rows from `row` on and 16 columns as the left side of a product.
template <int D> __device__ __forceinline__ void load_left(u32 (&a)[4], const bf16 *tile, int row, int step) {
    int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, tile + place_in_tile<D>(row + lane % 16, 2 * step + lane / 16));
}

// c `[16, COUNT]` += left `[16, D]` right^T, with the rows of `left` from `row` on and `right` `[COUNT, D]`.
template <int D, int COUNT>
__device__ __forceinline__ void add_rows_by_rows(float (&c)[COUNT / 8][4], const bf16 *left, int row, const bf16 *right) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        u32 a[4], b[4];
        load_left<D>(a, left, row, step);
#pragma unroll
        for (int n = 0; n < COUNT / 16; n++) {
            ldmatrix_x4(b, right + place_in_tile<D>(n * 16 + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
            mma_pair(c[2 * n], c[2 * n + 1], a, b);
        }
    }
}

// c `[16, D]` += p `[16, COUNT]`, rounded to bf16, times right `[COUNT, D]`.
template <int D, int COUNT>
__device__ __forceinline__ void add_product(float (&c)[D / 8][4], const float (&p)[COUNT / 8][4], const bf16 *right) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < COUNT / 16; step++) {
        const float(&low)[4] = p[2 * step], (&high)[4] = p[2 * step + 1];
        u32 a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 b[4];
            ldmatrix_x4_trans(b, right + place_in_tile<D>(step * 16 + lane % 16, 2 * n + lane / 16));
            mma_pair(c[2 * n], c[2 * n + 1], a, b);
        }
    }
}

// q.k becomes the score times log2 e. tanh x = 1 - 2 / (e^2x + 1) is off by 1e-7, which the cap makes 1e-5 at most.
template <int N> __device__ __forceinline__ void finish_scores(float (&s)[N][4], const FlashShape &shape) {
    float factor = shape.cap > 0.0f ? 2.0f * LOG2_E * shape.scale / shape.cap : LOG2_E * shape.scale;
    float cap = LOG2_E * shape.cap;
#pragma unroll
    for (int n = 0; n < N; n++) {
        for (int e = 0; e < 4; e++) s[n][e] *= factor;
    }
    if (shape.cap > 0.0f) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            for (int e = 0; e < 4; e++) s[n][e] = cap - fast_divide(2.0f * cap, fast_exp2(s[n][e]) + 1.0f);
        }
    }
}

// Minus infinity where a query must not look. Rows of the tile are queries from `query` on and columns keys from `key` on, or the
// other way round if `KEY_ROWS`.
template <bool KEY_ROWS, int N> __device__ __forceinline__ void mask(float (&s)[N][4], int query, int key, int window) {
    int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
        for (int e = 0; e < 4; e++) {
            int r = row + e / 2 * 8, c = column + n * 8 + e % 2;
            int i = query + (KEY_ROWS ? c : r), j = key + (KEY_ROWS ? r : c);
            if (j > i || i - j >= window) s[n][e] = -INFINITY;
        }
    }
}

// Whether any of `queries` queries must not look at any of `keys` keys.
__device__ __forceinline__ bool needs_mask(int query, int queries, int key, int keys, int window) {
    return key + keys - 1 > query || query + queries - 1 - key >= window;
}

// Two f32 that are written at once.
struct alignas(8) Pair {
    float x, y;
};

// Rows of sums, 16 of them a warp's, times `factor`, to the rows of `to` below `count`.
template <int D>
__device__ __forceinline__ void write_sums(float *to, i64 width, const float (&c)[D / 8][4], float factor, int count) {
    int row = threadIdx.x / WARP * WARP_ROWS + threadIdx.x % WARP / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (row + 8 * half >= count) continue;
        float *out = to + (row + 8 * half) * width + column;
#pragma unroll
        for (int n = 0; n < D / 8; n++) *(Pair *)(out + n * 8) = {c[n][2 * half] * factor, c[n][2 * half + 1] * factor};
    }
}
