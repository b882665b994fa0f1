// Cross-entropy of logits [n, V] against a target per row: ln(sum over v of e^(l_v)) - l_target, made stable by the row's largest logit.
// A block to a row. The sums of a thread are f32, of at most V / threads terms.
#include "common.cuh"

__device__ float log_sum(const float *logits, i64 v, float *scratch, float &highest) {
    float most = -INFINITY;
    int is_nan = 0;
    for (i64 i = threadIdx.x; i < v; i += blockDim.x) {
        is_nan |= isnan(logits[i]) ? 1 : 0;
        most = fmaxf(most, logits[i]);
    }
    // fmaxf passes over a NaN; here it is kept, so that a loss of NaN is one.
    most = block_max(most, scratch);
    highest = block_sum((float)is_nan, scratch) > 0.0f ? NAN : most;
    float sum = 0.0f;
    for (i64 i = threadIdx.x; i < v; i += blockDim.x) sum += expf(logits[i] - highest);
    return block_sum(sum, scratch);
}

extern "C" __global__ void cross_entropy_forward(const float *logits, const u32 *targets, float *losses, i64 v) {
    __shared__ float scratch[WARP];
    i64 row = blockIdx.x;
    logits += row * v;
    float highest, sum = log_sum(logits, v, scratch, highest);
    if (threadIdx.x == 0) losses[row] = logf(sum) - (logits[targets[row]] - highest);
}

// Also replaces the logits by d(sum of the losses)/d(logits) = softmax - one-hot.
extern "C" __global__ void cross_entropy_forward_backward(float *logits, const u32 *targets, float *losses, i64 v) {
    __shared__ float scratch[WARP];
    i64 row = blockIdx.x, target = targets[row];
    logits += row * v;
    float highest, sum = log_sum(logits, v, scratch, highest);
    if (threadIdx.x == 0) losses[row] = logf(sum) - (logits[target] - highest);
    __syncthreads();
    for (i64 i = threadIdx.x; i < v; i += blockDim.x) {
        logits[i] = expf(logits[i] - highest) / sum - (i == target ? 1.0f : 0.0f);
    }
}
