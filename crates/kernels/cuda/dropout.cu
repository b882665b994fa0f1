// Dropout whose mask is made from positions: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), so that
// the mask has the bits of the one on the CPU, and is made again rather than kept.
#include "common.cuh"

__device__ __forceinline__ u32 high_product(u32 a, u32 b) { return (u32)(((u64)a * b) >> 32); }

// The four words of block `counter` of the stream under the seed.
__device__ void philox(u64 seed, u64 stream, u64 counter, u32 (&c)[4]) {
    u32 key0 = (u32)seed, key1 = (u32)(seed >> 32);
    c[0] = (u32)counter;
    c[1] = (u32)(counter >> 32);
    c[2] = (u32)stream;
    c[3] = (u32)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        u32 high0 = high_product(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
        u32 high1 = high_product(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
        c[0] = high1 ^ c[1] ^ key0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ key1;
        c[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// y[i] = 0 where word i is below the threshold, else scale x[i]; a thread makes four words.
template <class X> __device__ void dropout(const X *x, X *y, u32 threshold, float scale, u64 seed, u64 stream, i64 n) {
    for (i64 quad = global_thread(); 4 * quad < n; quad += global_threads()) {
        u32 words[4];
        philox(seed, stream, (u64)quad, words);
        for (int j = 0; j < 4; j++) {
            i64 i = 4 * quad + j;
            if (i < n) y[i] = words[j] < threshold ? from_float<X>(0.0f) : from_float<X>(to_float(x[i]) * scale);
        }
    }
}

extern "C" __global__ void dropout_f32(const float *x, float *y, u32 threshold, float scale, u64 seed, u64 stream, i64 n) {
    dropout(x, y, threshold, scale, seed, stream, n);
}
extern "C" __global__ void dropout_bf16(const bf16 *x, bf16 *y, u32 threshold, float scale, u64 seed, u64 stream, i64 n) {
    dropout(x, y, threshold, scale, seed, stream, n);
}
