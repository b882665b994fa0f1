// How eight elements of every format of frozen weights are decoded: one struct a format, its formula beside it.
//
// A matrix is what `crates/quant` holds, byte for byte as it lies in its file. The values are those of its decoder to the bit:
// the order of products and sums is the formula's, and no product is fused with a sum (`times`, `plus`, `minus`).
//
// Sources: the block structures of GGML as its Python package `gguf` 0.19 reads them; bitsandbytes 0.50 (NF4, FP4, LLM.int8()).
#pragma once
#include "common.cuh"

// Elements that a thread decodes at once. They share a scale in every format, and their codes are eight (or four) bytes in a row.
#define RUN 8
// Floats of `Coded::tables`: what a nibble stands for, what a byte of an absolute maximum stands for, what is added to that one.
#define NIBBLES 16
#define NESTED_AT 16
#define OFFSET_AT 272

// A coded matrix. GGML's blocks have only `codes` and, when they look values up, `tables`.
struct Coded {
    const u8 *codes;
    const float *scales;   // int8: one a row. 4 bits: the absolute maximum of each block, or the nested ones.
    const u8 *scale_codes; // 4 bits, double quantisation: a byte a block; null without it.
    const float *tables;   // [273]
    int block_shift;       // 4 bits: log2 of the elements that share an absolute maximum,
    int nested_shift;      // and of the maxima that share a nested one.
    i64 columns;
};

#ifdef TAPER_EMULATOR
__device__ __forceinline__ float times(float a, float b) { return a * b; }
__device__ __forceinline__ float plus(float a, float b) { return a + b; }
__device__ __forceinline__ float minus(float a, float b) { return a - b; }
#else
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }
#endif

// Eight bytes, in the order of memory from the lowest bits of `low` up.
struct Eight {
    u32 low, high;
};

// Eight bytes at a multiple of ALIGN: what the size of a block leaves of the alignment of the first.
template <int ALIGN> __device__ __forceinline__ Eight load_eight(const u8 *p) {
    if (ALIGN >= 8) {
        u64 both = *(const u64 *)p;
        return {(u32)both, (u32)(both >> 32)};
    }
    if (ALIGN == 4) return {((const u32 *)p)[0], ((const u32 *)p)[1]};
    const u16 *q = (const u16 *)p;
    return {q[0] | (u32)q[1] << 16, q[2] | (u32)q[3] << 16};
}

// Some bits of every byte, moved down.
__device__ __forceinline__ Eight bits_of(Eight bytes, int shift, u32 mask) {
    return {bytes.low >> shift & mask, bytes.high >> shift & mask};
}

__device__ __forceinline__ Eight or_shifted(Eight bytes, Eight above, int shift) {
    return {bytes.low | above.low << shift, bytes.high | above.high << shift};
}

__device__ __forceinline__ float half_at(const u8 *p) { return to_float(*(const f16 *)p); }

// A whole number below 2^23 as f32: the bits of 2^23 + n, less 2^23. Exact, and several times the speed of a conversion.
__device__ __forceinline__ float small_number(u32 n) { return __uint_as_float(0x4b000000u | n) - 8388608.0f; }

// Byte - `zero` of every byte, in the same way: one permutation of bytes and one subtraction each.
__device__ __forceinline__ void expand(Eight bytes, int zero, float v[RUN]) {
    float base = (float)(8388608 + zero);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        v[k] = __uint_as_float(__byte_perm(bytes.low, 0x4b000000u, 0x7440 + k)) - base;
        v[k + 4] = __uint_as_float(__byte_perm(bytes.high, 0x4b000000u, 0x7440 + k)) - base;
    }
}

__device__ __forceinline__ void look_up(Eight bytes, const float *table, float v[RUN]) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        v[k] = table[bytes.low >> (8 * k) & 15];
        v[k + 4] = table[bytes.high >> (8 * k) & 15];
    }
}

__device__ __forceinline__ void scale_run(float v[RUN], float scale) {
#pragma unroll
    for (int k = 0; k < RUN; k++) v[k] = times(scale, v[k]);
}

__device__ __forceinline__ void scale_and_add(float v[RUN], float scale, float added) {
#pragma unroll
    for (int k = 0; k < RUN; k++) v[k] = plus(times(scale, v[k]), added);
}

__device__ __forceinline__ void scale_and_take(float v[RUN], float scale, float taken) {
#pragma unroll
    for (int k = 0; k < RUN; k++) v[k] = minus(times(scale, v[k]), taken);
}

// A bit in the lowest place of each of four bytes: the product has bit k of the four at 8 k, among copies that the mask drops.
__device__ __forceinline__ u32 spread(u32 four_bits) { return four_bits * 0x00204081u & 0x01010101u; }

// Eight fifth bits in the fifth place of their codes.
__device__ __forceinline__ Eight with_fifth_bits(Eight codes, u32 bits) {
    return or_shifted(codes, {spread(bits & 15), spread(bits >> 4)}, 4);
}

// Blocks of 32. `run`: elements i..i + 8 of the block at b, i a multiple of 8. Element j is in the low nibble of byte j,
// element j + 16 in its high one.

template <int ALIGN> __device__ __forceinline__ Eight nibbles_of_32(const u8 *codes, int i) {
    return bits_of(load_eight<ALIGN>(codes + i % 16), i / 16 * 4, 0x0f0f0f0fu);
}

// d (q - 8)
struct Q4_0 {
    static const int LEN = 32, BYTES = 18;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        expand(nibbles_of_32<2>(b + 2, i), 8, v);
        scale_run(v, half_at(b));
    }
};

// d q + m
struct Q4_1 {
    static const int LEN = 32, BYTES = 20;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        expand(nibbles_of_32<4>(b + 4, i), 0, v);
        scale_and_add(v, half_at(b), half_at(b + 2));
    }
};

// d (q - 16), the fifth bit of element j in bit j of a word.
struct Q5_0 {
    static const int LEN = 32, BYTES = 22;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        expand(with_fifth_bits(nibbles_of_32<2>(b + 6, i), b[2 + i / 8]), 16, v);
        scale_run(v, half_at(b));
    }
};

// d q + m, with fifth bits.
struct Q5_1 {
    static const int LEN = 32, BYTES = 24;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        expand(with_fifth_bits(nibbles_of_32<8>(b + 8, i), b[4 + i / 8]), 0, v);
        scale_and_add(v, half_at(b), half_at(b + 2));
    }
};

// d q, q a signed byte.
struct Q8_0 {
    static const int LEN = 32, BYTES = 34;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        Eight codes = load_eight<2>(b + 2 + i);
        expand({codes.low ^ 0x80808080u, codes.high ^ 0x80808080u}, 128, v);
        scale_run(v, half_at(b));
    }
};

// d table[q], with the table of IQ4.
struct IQ4_NL {
    static const int LEN = 32, BYTES = 18;
    static const bool TABLED = true;
    __device__ static void run(const u8 *b, int i, const float *table, float v[RUN]) {
        look_up(nibbles_of_32<2>(b + 2, i), table, v);
        scale_run(v, half_at(b));
    }
};

// Super-blocks of 256. Two bits: byte l of 32 has elements l, l + 32, l + 64, l + 96 of half a super-block, from its lowest
// bits up. Four bits: byte l of 32 has elements l and l + 32 of a quarter.

template <int ALIGN> __device__ __forceinline__ Eight two_bits(const u8 *codes, int i) {
    return bits_of(load_eight<ALIGN>(codes + i / 128 * 32 + i % 32), i / 32 % 4 * 2, 0x03030303u);
}

__device__ __forceinline__ Eight nibbles_of_64(const u8 *codes, int i) {
    return bits_of(load_eight<8>(codes + i / 64 * 32 + i % 32), i / 32 % 2 * 4, 0x0f0f0f0fu);
}

// d scale q - dmin min by sixteens; scale in the low nibble of a byte, min in its high one.
struct Q2_K {
    static const int LEN = 256, BYTES = 84;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        u32 scales = b[i / 16];
        expand(two_bits<4>(b + 16, i), 0, v);
        scale_and_take(v, times(half_at(b + 80), small_number(scales & 15)), times(half_at(b + 82), small_number(scales >> 4)));
    }
};

// d (scale - 32) (q - 4) by sixteens: the third bit of q is in a mask, bit i / 32 of byte i % 32. Scales: four low bits in
// eight bytes, first the low nibbles; two high bits in four bytes, from the lowest pair up.
struct Q3_K {
    static const int LEN = 256, BYTES = 110;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        int g = i / 16;
        u32 scale = (b[96 + g % 8] >> (g / 8 * 4) & 15) | (b[104 + g % 4] >> (g / 4 * 2) & 3) << 4;
        Eight third = bits_of(load_eight<2>(b + i % 32), i / 32, 0x01010101u);
        expand(or_shifted(two_bits<2>(b + 32, i), third, 2), 4, v);
        scale_run(v, times(half_at(b + 108), small_number(scale) - 32.0f));
    }
};

// Scale and minimum `g` of eight, six bits each: the first four lie in the low bits of bytes 0..4 and 4..8, the others in the
// nibbles of bytes 8..12, their high bits in what the first left free.
__device__ __forceinline__ void scale_and_min(const u8 *packed, int g, float &scale, float &min) {
    u32 first = packed[g % 4], second = packed[4 + g % 4], third = packed[8 + g % 4];
    scale = small_number(g < 4 ? first & 63 : (third & 15) | first >> 6 << 4);
    min = small_number(g < 4 ? second & 63 : third >> 4 | second >> 6 << 4);
}

// d scale q - dmin min by thirty-twos.
struct Q4_K {
    static const int LEN = 256, BYTES = 144;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        float scale, min;
        scale_and_min(b + 4, i / 32, scale, min);
        expand(nibbles_of_64(b + 16, i), 0, v);
        scale_and_take(v, times(half_at(b), scale), times(half_at(b + 2), min));
    }
};

// The same with a fifth bit: bit i / 32 of byte i % 32.
struct Q5_K {
    static const int LEN = 256, BYTES = 176;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        float scale, min;
        scale_and_min(b + 4, i / 32, scale, min);
        Eight fifth = bits_of(load_eight<8>(b + 16 + i % 32), i / 32, 0x01010101u);
        expand(or_shifted(nibbles_of_64(b + 48, i), fifth, 4), 0, v);
        scale_and_take(v, times(half_at(b), scale), times(half_at(b + 2), min));
    }
};

// d scale (q - 32) by sixteens: four low bits (of half a super-block 64 elements in low nibbles, then 64 in high ones), two
// high bits, a signed byte of scale.
struct Q6_K {
    static const int LEN = 256, BYTES = 210;
    static const bool TABLED = false;
    __device__ static void run(const u8 *b, int i, const float *, float v[RUN]) {
        Eight low = bits_of(load_eight<2>(b + i / 128 * 64 + i % 64), i / 64 % 2 * 4, 0x0f0f0f0fu);
        expand(or_shifted(low, two_bits<2>(b + 128, i), 4), 32, v);
        scale_run(v, times(half_at(b + 208), small_number(b[192 + i / 16] ^ 128u) - 128.0f));
    }
};

// d (scale - 32) table[q] by thirty-twos, codes as in blocks of 32; scales: four low bits in four bytes, two high ones in a word.
struct IQ4_XS {
    static const int LEN = 256, BYTES = 136;
    static const bool TABLED = true;
    __device__ static void run(const u8 *b, int i, const float *table, float v[RUN]) {
        int g = i / 32;
        u32 high = *(const u16 *)(b + 2) >> (2 * g) & 3, low = b[4 + g / 2] >> (g % 2 * 4) & 15;
        look_up(nibbles_of_32<8>(b + 8 + g * 16, i % 32), table, v);
        scale_run(v, times(half_at(b), small_number(low | high << 4) - 32.0f));
    }
};

// A whole matrix: `run` decodes elements at..at + 8 of the flattened matrix, `at` a multiple of 8, all eight inside and, where
// scales are by row (BY_ROW), of one row; `element` any one. `table`: shared memory that has the first 16 floats of `tables`,
// where TABLED. WHOLE: rows are whole runs.

template <class B> struct Blocks {
    static const bool TABLED = B::TABLED, WHOLE = true, BY_ROW = false;
    __device__ static void run(const Coded &w, const float *table, i64 at, i64, float v[RUN]) {
        B::run(w.codes + at / B::LEN * B::BYTES, (int)(at % B::LEN), table, v);
    }
    __device__ static float element(const Coded &, const float *, i64, i64) { return 0.0f; } // Never asked for.
};

// code[nibble] absmax[at / block], the first of two elements in the HIGH nibble of a byte. With double quantisation, the
// absolute maximum of block b is nested_code[codes[b]] nested_absmax[b / nested_block] + offset.
struct FourBit {
    static const bool TABLED = true, WHOLE = false, BY_ROW = false;
    __device__ static float absmax(const Coded &w, i64 at) {
        i64 block = at >> w.block_shift;
        if (!w.scale_codes) return w.scales[block];
        float value = w.tables[NESTED_AT + w.scale_codes[block]];
        return plus(times(value, w.scales[block >> w.nested_shift]), w.tables[OFFSET_AT]);
    }
    __device__ static void run(const Coded &w, const float *table, i64 at, i64, float v[RUN]) {
        u32 bytes = *(const u32 *)(w.codes + at / 2);
        float scale = absmax(w, at);
#pragma unroll
        for (int k = 0; k < RUN; k++) v[k] = times(table[bytes >> (k / 2 * 8 + (1 - k % 2) * 4) & 15], scale);
    }
    __device__ static float element(const Coded &w, const float *table, i64 at, i64) {
        return times(table[w.codes[at / 2] >> (at % 2 ? 0 : 4) & 15], absmax(w, at));
    }
};

// code scale[row] (1 / 127), in this order; the constant is bitsandbytes' own.
struct Int8 {
    static const bool TABLED = false, WHOLE = false, BY_ROW = true;
    __device__ static void run(const Coded &w, const float *, i64 at, i64 row, float v[RUN]) {
        Eight codes = load_eight<8>(w.codes + at);
        expand({codes.low ^ 0x80808080u, codes.high ^ 0x80808080u}, 128, v);
        float scale = w.scales[row];
#pragma unroll
        for (int k = 0; k < RUN; k++) v[k] = times(times(v[k], scale), 7.874016e-3f);
    }
    __device__ static float element(const Coded &w, const float *, i64 at, i64 row) {
        return times(times((float)(signed char)w.codes[at], w.scales[row]), 7.874016e-3f);
    }
};
