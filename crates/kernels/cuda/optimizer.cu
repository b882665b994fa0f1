// AdamW over all tensors of a model in one launch, with moments in f32 or in 8 bits, and what a step asks of the gradients: their norm, and
// whether they are finite.
#include "common.cuh"

// The gradients of all tensors lie end to end in one buffer, and so do their moments. A chunk is a run of one tensor: where its gradients start
// and where its moments do; its group says how it learns.
struct Chunk {
    i64 start;
    i64 state;
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
    float *m = first + chunk.state, *v = second + chunk.state;
    for (int i = threadIdx.x; i < chunk.len; i += blockDim.x) {
        float g = grad[i] * grad_scale;
        float kept = p[i] * group.keep;
        m[i] += one_less_beta1 * (g - m[i]);
        v[i] = v[i] * beta2 + one_less_beta2 * g * g;
        p[i] = kept - group.step_size * m[i] / (sqrtf(v[i]) / root_correction2 + eps);
    }
}

// Elements that share an absolute maximum, and how many of them each lane of a warp has.
#define CODED 256
#define PER_LANE (CODED / WARP)

// What the codes of a moment stand for, ascending, and where two neighbours part.
struct CodeMap {
    float values[256];
    float bounds[256];
};

// The code nearest to x: how many bounds lie below it, found by halving. 0 for NaN.
__device__ __forceinline__ u8 nearest_code(const float *bounds, float x) {
    int code = 0;
#pragma unroll
    for (int width = 128; width > 0; width /= 2) code += x > bounds[code + width - 1] ? width : 0;
    return (u8)code;
}

// The larger of two absolute values; NaN where one is.
__device__ __forceinline__ float larger(float a, float b) { return b <= a || isnan(a) ? a : b; }

// Codes of `len` elements, of which lane l has x[j] = element 32 j + l, and their absolute maximum.
__device__ __forceinline__ void encode(const float (&x)[PER_LANE], int len, const float *bounds, u8 *codes, float *absmax) {
    int lane = threadIdx.x % WARP;
    float most = 0.0f;
    for (int j = 0; j < PER_LANE; j++) most = larger(most, fabsf(x[j]));
    for (int step = WARP / 2; step > 0; step /= 2) most = larger(most, __shfl_xor_sync(FULL_MASK, most, step));
    for (int j = 0; j < PER_LANE; j++) {
        int i = j * WARP + lane;
        if (i < len) codes[i] = nearest_code(bounds, most == 0.0f ? 0.0f : __fdiv_rn(x[j], most));
    }
    if (lane == 0) *absmax = most;
}

// `adamw` with moments in 8 bits (Dettmers et al., "8-bit optimizers via block-wise quantization", 2022): element i of a moment is
// maps[].values[codes[i]] * absmax[i / 256]. A warp takes 256 elements: decodes them, steps, and codes them again by their new maximum. A
// chunk's moments start at a multiple of 256. Products and sums are rounded one by one, as the CPU does, so that the codes are its codes.
extern "C" __global__ void adamw_8bit(const u64 *params, const float *grads, u8 *first, u8 *second, float *first_absmax,
                                      float *second_absmax, const CodeMap *maps, const Chunk *chunks, const i64 *offsets,
                                      const Group *groups, float grad_scale, float one_less_beta1, float beta2, float one_less_beta2,
                                      float root_correction2, float eps) {
    __shared__ CodeMap shared[2];
    for (int i = threadIdx.x; i < 2 * 2 * 256; i += blockDim.x) ((float *)shared)[i] = ((const float *)maps)[i];
    __syncthreads();
    Chunk chunk = chunks[blockIdx.x];
    Group group = groups[chunk.group];
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int at = threadIdx.x / WARP * CODED; at < chunk.len; at += warps * CODED) {
        int len = min(CODED, chunk.len - at);
        float *p = (float *)params[chunk.group] + (chunk.start - offsets[chunk.group]) + at;
        const float *grad = grads + chunk.start + at;
        u8 *m_codes = first + chunk.state + at, *v_codes = second + chunk.state + at;
        i64 block = (chunk.state + at) / CODED;
        float m_absmax = first_absmax[block], v_absmax = second_absmax[block];
        float m[PER_LANE], v[PER_LANE];
#pragma unroll
        for (int j = 0; j < PER_LANE; j++) {
            int i = j * WARP + lane;
            m[j] = v[j] = 0.0f;
            if (i >= len) continue;
            float g = __fmul_rn(grad[i], grad_scale), kept = __fmul_rn(p[i], group.keep);
            m[j] = __fmul_rn(shared[0].values[m_codes[i]], m_absmax);
            v[j] = __fmul_rn(shared[1].values[v_codes[i]], v_absmax);
            m[j] = __fadd_rn(m[j], __fmul_rn(one_less_beta1, __fsub_rn(g, m[j])));
            v[j] = __fadd_rn(__fmul_rn(v[j], beta2), __fmul_rn(__fmul_rn(one_less_beta2, g), g));
            float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v[j]), root_correction2), eps);
            p[i] = __fsub_rn(kept, __fdiv_rn(__fmul_rn(group.step_size, m[j]), denominator));
        }
        encode(m, len, shared[0].bounds, m_codes, first_absmax + block);
        encode(v, len, shared[1].bounds, v_codes, second_absmax + block);
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
