// Attention's forward pass on tensor cores: 64 queries of one head against tiles of keys and values.
#pragma once
#include "flash.cuh"

// Queries q and their outputs, the first of them in place `place` of its sequence.
struct FlashQueries {
    const bf16 *q;
    bf16 *out;
    i64 width;
    int count, place;
};

// The highest score (times log2 e) of this lane's two rows, and this lane's part of the sum of 2^(score - highest).
struct RowSums {
    float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
};

// Scores become 2^(score - highest so far); what was summed under a lower maximum is scaled down.
template <int N, int M> __device__ __forceinline__ void softmax_step(RowSums &rows, float (&s)[N][4], float (&acc)[M][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float highest = rows.highest[half], sum = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++) highest = fmaxf(highest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        // The row's other columns are in the 3 neighbouring lanes.
        highest = fmaxf(highest, __shfl_xor_sync(FULL_MASK, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(FULL_MASK, highest, 2));
        // A row that has seen no key yet: 0 keeps 2^(-inf - from) = 0.
        float from = highest == -INFINITY ? 0.0f : highest, keep = fast_exp2(rows.highest[half] - from);
#pragma unroll
        for (int n = 0; n < N; n++) {
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n][e] = fast_exp2(s[n][e] - from);
                sum += s[n][e];
            }
        }
        rows.highest[half] = highest;
        rows.sum[half] = rows.sum[half] * keep + sum;
#pragma unroll
        for (int m = 0; m < M; m++) {
            acc[m][2 * half] *= keep;
            acc[m][2 * half + 1] *= keep;
        }
    }
}

// Writes out = acc / sum by way of this warp's rows of `tile`, so that a row goes out in pieces of 16 bytes that follow each
// other.
template <int D>
__device__ __forceinline__ void write_outputs(const FlashQueries &queries, const float (&acc)[D / 8][4], const float (&inverse)[2],
                                              bf16 *tile) {
    int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * WARP_ROWS;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        for (int half = 0; half < 2; half++) {
            u32 two = pack_bf16(acc[n][2 * half] * inverse[half], acc[n][2 * half + 1] * inverse[half]);
            *(u32 *)(tile + place_in_tile<D>(first + lane / 4 + 8 * half, n) + lane % 4 * 2) = two;
        }
    }
    __syncwarp();
    for (int i = lane; i < WARP_ROWS * D / 8; i += WARP) {
        int row = first + i / (D / 8), chunk = i % (D / 8);
        if (row >= queries.count) break;
        *(Chunk<bf16> *)(queries.out + row * queries.width + chunk * 8) = *(const Chunk<bf16> *)(tile + place_in_tile<D>(row, chunk));
    }
}

// `lse` of the first query, `[., N]`, or null.
template <int D, class Rows>
__device__ void flash_forward(const FlashQueries &queries, const Rows &k, const Rows &v, const FlashShape &shape, float *lse) {
    constexpr int STEP = FlashSizes<D>::FORWARD_STEP;
    DYNAMIC_SHARED(memory);
    bf16 *q_tile = (bf16 *)memory, *stages = q_tile + FLASH_ROWS * D;
    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * WARP_ROWS, query = queries.place + row;
    int begin = first_visible(queries.place, shape.window) / STEP * STEP, end = queries.place + queries.count;
    copy_tile<D, FLASH_ROWS>(q_tile, PackedRows{queries.q, queries.width}, 0, queries.count);
    copy_tile<D, STEP>(stages, k, begin, end);
    copy_tile<D, STEP>(stages + STEP * D, v, begin, end);
    cp_async_commit();
    float acc[D / 8][4] = {};
    RowSums sums;
    for (int key = begin, stage = 0; key < end; key += STEP, stage ^= 1) {
        const bf16 *k_tile = stages + stage * 2 * STEP * D;
        cp_async_wait<0>();
        __syncthreads();
        if (key + STEP < end) {
            bf16 *next = stages + (stage ^ 1) * 2 * STEP * D;
            copy_tile<D, STEP>(next, k, key + STEP, end);
            copy_tile<D, STEP>(next + STEP * D, v, key + STEP, end);
            cp_async_commit();
        }
        float s[STEP / 8][4] = {};
        add_rows_by_rows<D, STEP>(s, q_tile, row, k_tile);
        finish_scores(s, shape);
        if (needs_mask(query, WARP_ROWS, key, STEP, shape.window)) mask<false>(s, query, key, shape.window);
        softmax_step(sums, s, acc);
        add_product<D, STEP>(acc, s, k_tile + STEP * D);
    }
    float inverse[2];
    for (int half = 0; half < 2; half++) {
        float sum = sums.sum[half];
        sum += __shfl_xor_sync(FULL_MASK, sum, 1);
        sum += __shfl_xor_sync(FULL_MASK, sum, 2);
        inverse[half] = 1.0f / sum;
        int own = row + lane / 4 + 8 * half;
        if (lse && lane % 4 == 0 && own < queries.count) lse[(i64)own * shape.heads] = sums.highest[half] * LN_2 + logf(sum);
    }
    write_outputs<D>(queries, acc, inverse, q_tile);
}

// A block to the tile blockIdx.x of head blockIdx.y.
template <int D>
__device__ __forceinline__ void forward_packed(const bf16 *q, const bf16 *k, const bf16 *v, const int *tiles, bf16 *out, float *lse,
                                               const FlashShape &shape) {
    PackedTile tile(tiles + 3 * (i64)blockIdx.x);
    int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    i64 width = (i64)shape.heads * D, kv_width = (i64)shape.kv_heads * D, row = tile.start + tile.first;
    FlashQueries queries = {q + row * width + head * D, out + row * width + head * D, width, tile.count(), tile.first};
    i64 first_key = tile.start * kv_width + kv_head * D;
    flash_forward<D>(queries, PackedRows{k + first_key, kv_width}, PackedRows{v + first_key, kv_width}, shape,
                     lse + row * shape.heads + head);
}

// Over caches in pages. A tile has the first row of its queries, how many there are, the place of the first, and where the pages
// of its sequence begin in the lists.
template <int D>
__device__ __forceinline__ void forward_cached(const bf16 *q, const u64 *k_pages, const u64 *v_pages, const int *tiles, bf16 *out,
                                               int page_tokens, const FlashShape &shape) {
    const int *tile = tiles + 4 * (i64)blockIdx.x;
    int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    i64 width = (i64)shape.heads * D, kv_width = (i64)shape.kv_heads * D, at = tile[0] * width + head * D;
    FlashQueries queries = {q + at, out + at, width, tile[1], tile[2]};
    flash_forward<D>(queries, PagedRows{k_pages + tile[3], page_tokens, kv_width, kv_head * D},
                     PagedRows{v_pages + tile[3], page_tokens, kv_width, kv_head * D}, shape, nullptr);
}
