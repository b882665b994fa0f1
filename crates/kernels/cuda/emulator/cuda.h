// CUDA's words for a C++ compiler, so that kernels run on the CPU: for tests on machines without a GPU.
//
// The blocks of a launch run one after the other. Each thread of a block is a fiber; it runs until it waits for others (at a
// barrier, or with its warp in a shuffle or a matrix operation), so what the fibers of a block see of each other is what a
// device would allow in one of its orders. TAPER_EMULATOR_ORDER (forward, reverse, shuffle) chooses which: a barrier that is
// missing shows as a wrong result in one of them. Shared memory that is not dynamic keeps what the block before left in it, so
// a read of it before a write is not found.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#ifdef TAPER_LIST_KERNELS
#define __global__ TAPER_KERNEL
#else
#define __global__
#endif
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(name) unsigned char *name = emulator::dynamic_shared

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct __half { uint16_t bits; };
struct alignas(4) __half2 { __half x, y; };

template <class To, class From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned bits = __float_as_uint(x);
    if (std::isnan(x)) return {(uint16_t)(bits >> 16 | 0x40)};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {__bfloat162float(x.x), __bfloat162float(x.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return __floats2bfloat162_rn(x.x, x.y); }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t x) { return {x}; }
inline float __half2float(__half x) { return (float)bits_as<_Float16>(x.bits); }
inline __half __float2half_rn(float x) { return {bits_as<uint16_t>((_Float16)x)}; }
inline __half __float2half(float x) { return __float2half_rn(x); }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(uint16_t x) { return {x}; }

using std::isfinite;
using std::isinf;
using std::isnan;
template <class A, class B> inline auto min(A a, B b) { using C = decltype(a + b); return (C)a < (C)b ? (C)a : (C)b; }
template <class A, class B> inline auto max(A a, B b) { using C = decltype(a + b); return (C)a < (C)b ? (C)b : (C)a; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { volatile float product = x * y; return product; }
inline float __fadd_rn(float x, float y) { volatile float sum = x + y; return sum; }
inline float __fsub_rn(float x, float y) { volatile float difference = x - y; return difference; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
template <class T> inline T __ldg(const T *x) { return *x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> 4 * i & 0xf, byte = (unsigned)(bytes >> 8 * (nibble & 7) & 0xff);
        result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return result;
}
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

namespace emulator {

// What a thread waits for.
enum class Wait { None, Block, Warp, Done };

struct Copy { void *to; const void *from; bool valid; };

struct Fiber {
    void *stack_pointer;
    char *stack;
    uint3 thread;
    int index, lane, warp;
    Wait wait;
    const char *what;
    int parity;
    std::vector<Copy> copies;
    std::vector<size_t> groups;
};

// What the lanes of a warp give each other; two of them, since a lane can be one operation ahead of another. `alive` has the
// lanes that took part in the last operation: those which have returned, or which a block that is no whole number of warps
// never had, give nothing.
struct Exchange {
    alignas(64) unsigned char slot[2][32][64];
    unsigned alive;
};

extern Fiber *current;
extern uint3 block_index;
extern dim3 block_size, grid_size;
extern unsigned char *dynamic_shared;
extern std::vector<Exchange> exchanges;

[[noreturn]] void fault(const std::string &what);
// Stops this fiber until the others that it waits for are as far.
void wait_for(Wait wait, const char *what);
// Runs a kernel over a grid.
void launch(const char *name, void (*body)(void **), void **params, dim3 grid, dim3 block, size_t shared);

// The kernels name whole warps only, so that a mask which a device would take for a part of one is an error.
inline void check_mask(unsigned mask, const char *what) {
    if (mask != 0xffffffffu) fault(std::string(what) + " with a mask that is not FULL_MASK");
}

// Gives `bytes` to the other lanes of the warp, and tells where theirs lie.
inline unsigned char (*exchange(const void *value, size_t bytes, const char *what))[64] {
    auto &slots = exchanges[current->warp].slot[current->parity];
    memcpy(slots[current->lane], value, bytes);
    current->parity ^= 1;
    wait_for(Wait::Warp, what);
    return slots;
}

template <class T> inline T from_lane(T value, int lane, const char *what) {
    auto slots = exchange(&value, sizeof value, what);
    T other;
    // A device leaves open what a lane that is not there gives.
    if (exchanges[current->warp].alive >> (lane & 31) & 1) memcpy(&other, slots[lane & 31], sizeof other);
    else memset(&other, 0xff, sizeof other);
    return other;
}

void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void ldmatrix(unsigned *r, int count, const void *row, bool transposed);
void cp_async_16(void *shared, const void *global, bool valid);
void cp_async_commit();
void cp_async_wait(int groups);

// A kernel with its parameters taken from the driver's array of pointers.
template <auto Kernel> struct Launcher;
template <class... A, void (*Kernel)(A...)> struct Launcher<Kernel> {
    template <size_t... I> static void call(void **params, std::index_sequence<I...>) { Kernel(*(A *)params[I]...); }
    static void run(void **params) { call(params, std::index_sequence_for<A...>{}); }
};

struct Kernel { const char *name; void (*run)(void **); };
std::vector<Kernel> &kernels();
struct Register {
    Register(const char *name, void (*run)(void **)) { kernels().push_back({name, run}); }
};

} // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
inline void __syncthreads() { emulator::wait_for(emulator::Wait::Block, "__syncthreads"); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::check_mask(mask, "__syncwarp");
    emulator::wait_for(emulator::Wait::Warp, "__syncwarp");
}
inline void __threadfence_block() {}
inline void __threadfence() {}
template <class T> inline T __shfl_sync(unsigned mask, T x, int lane) {
    emulator::check_mask(mask, "__shfl_sync");
    return emulator::from_lane(x, lane, "__shfl_sync");
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T x, int by) {
    emulator::check_mask(mask, "__shfl_xor_sync");
    return emulator::from_lane(x, emulator::current->lane ^ by, "__shfl_xor_sync");
}
template <class T> inline T __shfl_down_sync(unsigned mask, T x, int by) {
    emulator::check_mask(mask, "__shfl_down_sync");
    int lane = emulator::current->lane;
    return emulator::from_lane(x, lane + by < 32 ? lane + by : lane, "__shfl_down_sync");
}
template <class T> inline T __shfl_up_sync(unsigned mask, T x, int by) {
    emulator::check_mask(mask, "__shfl_up_sync");
    int lane = emulator::current->lane;
    return emulator::from_lane(x, lane >= by ? lane - by : lane, "__shfl_up_sync");
}
namespace emulator {
// The lanes that took part, and those of them whose predicate holds.
struct Votes { unsigned alive, yes; };
inline Votes votes(unsigned mask, int predicate, const char *what) {
    check_mask(mask, what);
    auto slots = exchange(&predicate, sizeof predicate, what);
    Votes votes = {exchanges[current->warp].alive, 0};
    for (int lane = 0; lane < 32; lane++) votes.yes |= (*(int *)slots[lane] != 0 ? 1u : 0u) << lane;
    votes.yes &= votes.alive;
    return votes;
}
} // namespace emulator
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::votes(mask, predicate, "__ballot_sync").yes; }
inline int __any_sync(unsigned mask, int predicate) { return emulator::votes(mask, predicate, "__any_sync").yes != 0; }
inline int __all_sync(unsigned mask, int predicate) {
    auto votes = emulator::votes(mask, predicate, "__all_sync");
    return votes.yes == votes.alive;
}
