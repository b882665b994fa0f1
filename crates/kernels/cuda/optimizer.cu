// AdamW over all tensors of a model in one launch, and what a step asks of the gradients: their norm, and whether they are finite.
#include "common.cuh"

// The tensors lie end to end in four buffers. A chunk is a run of one tensor; its group says how it learns.
struct Chunk {
    i64 start;
    int len;
    int group;
};

// What is formed in f64 on the host and rounded once, as torch does.
struct Group {
    float keep;      // 1 - lr weight_decay
    float step_size; // lr / (1 - beta1^step)
};

// p -= lr wd p; m = lerp(m, g, 1 - beta1); v = beta2 v + (1 - beta2) g^2; p -= step_size m / (sqrt(v) / root_correction2 + eps), with g
// multiplied by grad_scale first (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; the order is torch.optim.AdamW's).
extern "C" __global__ void adamw(const u64 *params, const float *grads, float *first, float *second, const Chunk *chunks,
                                 const i64 *offsets, const Group *groups, float grad_scale, float one_less_beta1, float beta2,
                                 float one_less_beta2, float root_correction2, float eps) {
    Chunk chunk = chunks[blockIdx.x];
    Group group = groups[chunk.group];
    float *p = (float *)params[chunk.group] + (chunk.start - offsets[chunk.group]);
    const float *grad = grads + chunk.start;
    float *m = first + chunk.start, *v = second + chunk.start;
    for (int i = threadIdx.x; i < chunk.len; i += blockDim.x) {
        float g = grad[i] * grad_scale;
        float kept = p[i] * group.keep;
        m[i] += one_less_beta1 * (g - m[i]);
        v[i] = v[i] * beta2 + one_less_beta2 * g * g;
        p[i] = kept - group.step_size * m[i] / (sqrtf(v[i]) / root_correction2 + eps);
    }
}

// partial[b] = sum of the squares of block b's elements, in f64; NaN and infinity stay what they are.
extern "C" __global__ void sum_of_squares(const float *x, double *partial, i64 n, i64 per_block) {
    __shared__ double sums[256];
    i64 first = (i64)blockIdx.x * per_block, last = min(first + per_block, n);
    double sum = 0.0;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) sum += (double)x[i] * (double)x[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int step = 128; step > 0; step /= 2) {
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}
