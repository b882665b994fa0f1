// Attention's backward pass on tensor cores.
//
// With p = e^(s - lse), delta = g . out and ds = p (g . v - delta) (and the slope of the cap): dv = p^T g, dk = scale ds^T q, dq
// = scale ds k. Scores are formed twice, by the blocks that own keys and by those that own queries, so that every sum has one
// owner. The gradient g is rounded to bf16 first, and delta formed from what is left.
#pragma once
#include "flash.cuh"

// What every kernel of the backward pass reads: g, q `[T, N*D]`, k, v `[T, K*D]`, lse, delta `[T, N]`.
struct FlashSaved {
    const bf16 *g, *q, *k, *v;
    const float *lse, *delta;
};

// A score (times log2 e) becomes the probability, and `dp` = g . v becomes d/d(scale q.k). `lse` is times log2 e as well, and
// `inverse_cap` divided by it (0: no cap).
__device__ __forceinline__ void to_gradient(float &s, float &dp, float lse, float delta, float inverse_cap) {
    float tanh = s * inverse_cap, p = fast_exp2(s - lse);
    // A masked score is minus infinity, whose slope must not meet p = 0.
    dp = p == 0.0f ? 0.0f : p * (dp - delta) * (1.0f - tanh * tanh);
    s = p;
}

__device__ __forceinline__ float inverse_cap_of(const FlashShape &shape) { return shape.cap > 0.0f ? 1.0f / (LOG2_E * shape.cap) : 0.0f; }

// The part of a block's work that keys share: the tiles of queries of one head, one step ahead of the work.
template <int D> struct QueryStage {
    static constexpr int STEP = FlashSizes<D>::BACKWARD_STEP;
    bf16 *tiles;
    float *sides;

    // Starts the copy of queries and their gradients, rows first..first + STEP of the segment, to one of two stages.
    __device__ __forceinline__ void copy(int stage, const FlashSaved &saved, const FlashShape &shape, i64 start, int len, int head,
                                         int first) const {
        i64 width = (i64)shape.heads * D, at = start * width + head * D;
        copy_tile<D, STEP>(q(stage), PackedRows{saved.q + at, width}, first, len);
        copy_tile<D, STEP>(g(stage), PackedRows{saved.g + at, width}, first, len);
        cp_async_commit();
    }
    // This thread's lse or delta of these rows. An infinite lse makes the probability 0 where there is no query.
    __device__ __forceinline__ float read_side(const FlashSaved &saved, const FlashShape &shape, i64 start, int len, int head,
                                               int first) const {
        int row = first + threadIdx.x % STEP;
        bool is_lse = threadIdx.x < STEP;
        if (threadIdx.x >= 2 * STEP || row >= len) return is_lse ? INFINITY : 0.0f;
        i64 at = (start + row) * shape.heads + head;
        return is_lse ? saved.lse[at] * LOG2_E : saved.delta[at];
    }
    __device__ __forceinline__ void write_side(int stage, float side) const {
        if (threadIdx.x < 2 * STEP) sides[stage * 2 * STEP + threadIdx.x] = side;
    }
    __device__ __forceinline__ bf16 *q(int stage) const { return tiles + stage * 2 * STEP * D; }
    __device__ __forceinline__ bf16 *g(int stage) const { return q(stage) + STEP * D; }
    __device__ __forceinline__ const float *lse(int stage) const { return sides + stage * 2 * STEP; }
    __device__ __forceinline__ const float *delta(int stage) const { return lse(stage) + STEP; }
};

// One tile of queries from `query` on against this warp's keys from `key` on, which are rows of the scores.
template <int D, bool DK, bool DV>
__device__ __forceinline__ void kv_step(float (&dk)[DK ? D / 8 : 1][4], float (&dv)[DV ? D / 8 : 1][4], const bf16 *k_tile,
                                        const bf16 *v_tile, const QueryStage<D> &stages, int stage, int query, int key,
                                        const FlashShape &shape) {
    constexpr int STEP = FlashSizes<D>::BACKWARD_STEP;
    int row = threadIdx.x / WARP * WARP_ROWS, column = threadIdx.x % 4 * 2;
    float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
    add_rows_by_rows<D, STEP>(s, k_tile, row, stages.q(stage));
    finish_scores(s, shape);
    if (needs_mask(query, STEP, key, WARP_ROWS, shape.window)) mask<true>(s, query, key, shape.window);
    if (DK) add_rows_by_rows<D, STEP>(dp, v_tile, row, stages.g(stage));
    float inverse_cap = inverse_cap_of(shape);
    const float *lse = stages.lse(stage), *delta = stages.delta(stage);
#pragma unroll
    for (int n = 0; n < STEP / 8; n++) {
        for (int e = 0; e < 4; e++) {
            int c = n * 8 + column + e % 2;
            to_gradient(s[n][e], dp[n][e], lse[c], delta[c], inverse_cap);
        }
    }
    if constexpr (DV) add_product<D, STEP>(dv, s, stages.g(stage));
    if constexpr (DK) add_product<D, STEP>(dk, dp, stages.q(stage));
}

// dk and dv `[T, K*D]`, or one of them: a block to the tile of keys blockIdx.x of key/value head blockIdx.y. Tiles are taken from
// the last on: the host lists those of late places first, and early keys are seen by more queries.
template <int D, bool DK, bool DV>
__device__ void flash_backward_kv(const FlashSaved &saved, const int *tiles, float *dk_to, float *dv_to, const FlashShape &shape) {
    constexpr int STEP = FlashSizes<D>::BACKWARD_STEP;
    DYNAMIC_SHARED(memory);
    bf16 *k_tile = (bf16 *)memory, *v_tile = k_tile + FLASH_ROWS * D, *rest = v_tile + FLASH_ROWS * D;
    QueryStage<D> stages = {rest, (float *)(rest + 4 * STEP * D)};
    PackedTile tile(tiles + 3 * (i64)(gridDim.x - 1 - blockIdx.x));
    int group = shape.heads / shape.kv_heads, head = blockIdx.y * group, last_head = head + group;
    i64 width = (i64)shape.kv_heads * D, at = tile.start * width + blockIdx.y * D;
    int own = tile.first + threadIdx.x / WARP * WARP_ROWS;
    // Queries first..end see any of these keys; first is the tile's own.
    int end = (int)min((i64)tile.len, (i64)tile.first + FLASH_ROWS - 1 + shape.window);
    copy_tile<D, FLASH_ROWS>(k_tile, PackedRows{saved.k + at, width}, tile.first, tile.len);
    if (DK) copy_tile<D, FLASH_ROWS>(v_tile, PackedRows{saved.v + at, width}, tile.first, tile.len);
    stages.copy(0, saved, shape, tile.start, tile.len, head, tile.first);
    stages.write_side(0, stages.read_side(saved, shape, tile.start, tile.len, head, tile.first));
    float dk[DK ? D / 8 : 1][4] = {}, dv[DV ? D / 8 : 1][4] = {};
    for (int query = tile.first, stage = 0; head < last_head; stage ^= 1) {
        bool wraps = query + STEP >= end;
        int next_head = wraps ? head + 1 : head, next_query = wraps ? tile.first : query + STEP;
        float side = 0.0f;
        cp_async_wait<0>();
        __syncthreads();
        if (next_head < last_head) {
            stages.copy(stage ^ 1, saved, shape, tile.start, tile.len, next_head, next_query);
            side = stages.read_side(saved, shape, tile.start, tile.len, next_head, next_query);
        }
        kv_step<D, DK, DV>(dk, dv, k_tile, v_tile, stages, stage, query, own, shape);
        stages.write_side(stage ^ 1, side);
        head = next_head;
        query = next_query;
    }
    at += tile.first * width;
    if constexpr (DK) write_sums<D>(dk_to + at, width, dk, shape.scale, tile.count());
    if constexpr (DV) write_sums<D>(dv_to + at, width, dv, 1.0f, tile.count());
}

// One tile of keys from `key` on against this warp's queries from `query` on.
template <int D>
__device__ __forceinline__ void q_step(float (&dq)[D / 8][4], const bf16 *q_tile, const bf16 *g_tile, const bf16 *k_tile,
                                       const float (&lse)[2], const float (&delta)[2], int query, int key, const FlashShape &shape) {
    constexpr int STEP = FlashSizes<D>::BACKWARD_STEP;
    int row = threadIdx.x / WARP * WARP_ROWS;
    float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
    add_rows_by_rows<D, STEP>(s, q_tile, row, k_tile);
    finish_scores(s, shape);
    if (needs_mask(query, WARP_ROWS, key, STEP, shape.window)) mask<false>(s, query, key, shape.window);
    add_rows_by_rows<D, STEP>(dp, g_tile, row, k_tile + STEP * D);
    float inverse_cap = inverse_cap_of(shape);
#pragma unroll
    for (int n = 0; n < STEP / 8; n++) {
        for (int e = 0; e < 4; e++) to_gradient(s[n][e], dp[n][e], lse[e / 2], delta[e / 2], inverse_cap);
    }
    add_product<D, STEP>(dq, dp, k_tile);
}

// dq `[T, N*D]`: a block to the tile of queries blockIdx.x of head blockIdx.y.
template <int D>
__device__ void flash_backward_q(const FlashSaved &saved, const int *tiles, float *dq_to, const FlashShape &shape) {
    constexpr int STEP = FlashSizes<D>::BACKWARD_STEP;
    DYNAMIC_SHARED(memory);
    bf16 *q_tile = (bf16 *)memory, *g_tile = q_tile + FLASH_ROWS * D, *stages = g_tile + FLASH_ROWS * D;
    PackedTile tile(tiles + 3 * (i64)blockIdx.x);
    int head = blockIdx.y, row = threadIdx.x / WARP * WARP_ROWS;
    i64 width = (i64)shape.heads * D, kv_width = (i64)shape.kv_heads * D, at = tile.start * width + head * D;
    i64 first_key = tile.start * kv_width + head / (shape.heads / shape.kv_heads) * D;
    PackedRows k = {saved.k + first_key, kv_width}, v = {saved.v + first_key, kv_width};
    int begin = first_visible(tile.first, shape.window) / STEP * STEP, end = tile.first + tile.count();
    copy_tile<D, FLASH_ROWS>(q_tile, PackedRows{saved.q + at, width}, tile.first, end);
    copy_tile<D, FLASH_ROWS>(g_tile, PackedRows{saved.g + at, width}, tile.first, end);
    copy_tile<D, STEP>(stages, k, begin, end);
    copy_tile<D, STEP>(stages + STEP * D, v, begin, end);
    cp_async_commit();
    float lse[2], delta[2], dq[D / 8][4] = {};
    for (int half = 0; half < 2; half++) {
        int place = tile.first + row + threadIdx.x % WARP / 4 + 8 * half;
        i64 side = (tile.start + min(place, end - 1)) * shape.heads + head;
        lse[half] = saved.lse[side] * LOG2_E;
        delta[half] = saved.delta[side];
    }
    for (int key = begin, stage = 0; key < end; key += STEP, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + STEP < end) {
            bf16 *next = stages + (stage ^ 1) * 2 * STEP * D;
            copy_tile<D, STEP>(next, k, key + STEP, end);
            copy_tile<D, STEP>(next + STEP * D, v, key + STEP, end);
            cp_async_commit();
        }
        q_step<D>(dq, q_tile, g_tile, stages + stage * 2 * STEP * D, lse, delta, tile.first + row, key, shape);
    }
    write_sums<D>(dq_to + at + tile.first * width, width, dq, shape.scale, tile.count());
}

// g in bf16, and delta = g . out of what is left: a warp to a row `[D]` of a head.
__device__ __forceinline__ void prepare_backward(const float *g, const bf16 *out, bf16 *g_rounded, float *delta, i64 rows, int d) {
    i64 row = global_thread() / WARP;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int c = threadIdx.x % WARP * 2; c < d; c += 2 * WARP) {
        i64 at = row * d + c;
        Pair two = *(const Pair *)(g + at);
        bf16 x = from_float<bf16>(two.x), y = from_float<bf16>(two.y);
        *(u32 *)(g_rounded + at) = pack_bf16(two.x, two.y);
        sum += to_float(x) * to_float(out[at]) + to_float(y) * to_float(out[at + 1]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[row] = sum;
}
