// The matrix units in bf16 and what feeds them, for compute capability 8.0 and up (PTX ISA: mma, ldmatrix, cp.async).
//
// A warp multiplies a [16, 16] by b [16, 8] and adds to d [16, 8]. With group = lane / 4 and pair = 2 (lane % 4), a lane holds
//   a[0] (group, pair..), a[1] (group + 8, pair..), a[2] (group, pair + 8..), a[3] (group + 8, pair + 8..): two neighbours of a
//   row each;
//   b[0] (pair.., group), b[1] (pair + 8.., group): two neighbours of a column each;
//   d[0], d[1] (group, pair..), d[2], d[3] (group + 8, pair..).
#pragma once

#include "common.cuh"

// Two floats rounded to bf16, the first in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    return (u32)__bfloat16_as_ushort(__float2bfloat16_rn(low)) | (u32)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}

#ifdef TAPER_EMULATOR

__device__ inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulator::mma_bf16(d, a, b); }
__device__ inline void ldmatrix_x4(u32 (&r)[4], const void *row) { emulator::ldmatrix(r, 4, row, false); }
__device__ inline void ldmatrix_x4_trans(u32 (&r)[4], const void *row) { emulator::ldmatrix(r, 4, row, true); }
__device__ inline void ldmatrix_x2(u32 (&r)[2], const void *row) { emulator::ldmatrix(r, 2, row, false); }
__device__ inline void ldmatrix_x2_trans(u32 (&r)[2], const void *row) { emulator::ldmatrix(r, 2, row, true); }
__device__ inline void cp_async_16(void *shared, const void *global, bool valid) { emulator::cp_async_16(shared, global, valid); }
__device__ inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int N> __device__ inline void cp_async_wait() { emulator::cp_async_wait(N); }

#else

__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Matrices [8, 8] of b16 from shared memory: lane 8 i + j gives the address of row j of matrix i (16 bytes, aligned). r[i] of a
// lane is the pair (group, pair..) of matrix i, or of its transpose.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from global to shared memory on their way while the thread goes on; zeros where not `valid`.
__device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid) {
    int bytes = valid ? 16 : 0;
    u32 to = shared_address(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N of the groups that were committed last are on their way.
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#endif
