// Whether the emulated device does what a device does, and stops at what a device would not forgive: `scripts/cuda-emulator.sh
// --test`.
//
//   self_test DIR    the folder with the libraries
#include "matrix.cuh"
#include "memory.h"
#include <dlfcn.h>
#include <functional>
#include <csignal>
#include <random>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

static void expect(bool holds, const char *what) {
    if (!holds) fprintf(stderr, "self_test: FAILED: %s\n", what);
    failures += !holds;
}

static std::mt19937 generator(1);
static float random_bf16() { return to_float(from_float<bf16>(std::uniform_real_distribution<float>(-1.0f, 1.0f)(generator))); }

template <auto Kernel, class... A> static void launch(unsigned threads, size_t shared, A... arguments) {
    void *params[] = {&arguments...};
    emulator::launch("self_test", emulator::Launcher<Kernel>::run, params, {1, 1, 1}, {threads, 1, 1}, shared);
}

// Whether `body` ends in abort(), and says `message` before.
static bool aborts(const char *message, const std::function<void()> &body) {
    int ends[2];
    if (pipe(ends)) return false;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        body();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char text[512];
    for (ssize_t n; (n = read(ends[0], text, sizeof text)) > 0;) said.append(text, (size_t)n);
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool right = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && said.find(message) != std::string::npos;
    if (!right) fprintf(stderr, "self_test: ended with status %d and said `%s`\n", status, said.c_str());
    return right;
}

// ---- matrices

// d [16, 8] = c + a [16, 16] b [16, 8] in a row each, in the layout that the PTX ISA gives for m16n8k16.
__global__ void product(const float *a, const float *b, const float *c, float *d) {
    int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
    auto left = [&](int i, int k) { return pack_bf16(a[i * 16 + k], a[i * 16 + k + 1]); };
    auto right = [&](int k, int j) { return pack_bf16(b[k * 8 + j], b[(k + 1) * 8 + j]); };
    u32 x[4] = {left(group, pair), left(group + 8, pair), left(group, pair + 8), left(group + 8, pair + 8)};
    u32 y[2] = {right(pair, group), right(pair + 8, group)};
    int at[4] = {group * 8 + pair, group * 8 + pair + 1, (group + 8) * 8 + pair, (group + 8) * 8 + pair + 1};
    float sums[4];
    for (int i = 0; i < 4; i++) sums[i] = c[at[i]];
    mma_bf16(sums, x, y);
    for (int i = 0; i < 4; i++) d[at[i]] = sums[i];
}

// The same with both from shared memory by ldmatrix: a by rows, b [16, 8] by rows and thus transposed on the way.
template <bool Halves> __global__ void product_of_shared(const float *a, const float *b, const float *c, float *d) {
    __shared__ __align__(16) bf16 left[16 * 16], right[16 * 8], right_columns[8 * 16];
    int lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
    for (int i = lane; i < 256; i += 32) left[i] = from_float<bf16>(a[i]);
    for (int i = lane; i < 128; i += 32) right[i] = right_columns[i % 8 * 16 + i / 8] = from_float<bf16>(b[i]);
    __syncwarp();
    u32 x[4], y[2];
    // Matrices of 8 rows: above left, below left, above right, below right.
    const bf16 *row = left + lane % 16 * 16 + lane / 16 * 8;
    if (Halves) {
        u32 sides[2][2];
        for (int side = 0; side < 2; side++) ldmatrix_x2(sides[side], left + lane % 16 * 16 + side * 8);
        for (int i = 0; i < 4; i++) x[i] = sides[i / 2][i % 2];
        // Lanes 16..32 name the same rows of b again.
        u32 twice[4];
        ldmatrix_x4_trans(twice, right + lane % 16 * 8);
        expect(twice[0] == twice[2] && twice[1] == twice[3], "ldmatrix.x4.trans gives the same for the same");
        y[0] = twice[0], y[1] = twice[1];
    } else {
        ldmatrix_x4(x, row);
        ldmatrix_x2_trans(y, right + lane % 16 * 8);
        u32 again[2];
        ldmatrix_x2(again, right_columns + lane % 8 * 16 + lane / 8 % 2 * 8);
        expect(y[0] == again[0] && y[1] == again[1], "ldmatrix.x2.trans is ldmatrix.x2 of the transpose");
    }
    float sums[4];
    for (int i = 0; i < 4; i++) sums[i] = c[(group + i / 2 * 8) * 8 + pair + i % 2];
    mma_bf16(sums, x, y);
    for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sums[i];
}

static void test_matrices() {
    float a[256], b[128], c[128], wanted[128];
    for (float &x : a) x = random_bf16();
    for (float &x : b) x = random_bf16();
    for (float &x : c) x = random_bf16();
    for (int i = 0; i < 128; i++) {
        double sum = c[i];
        for (int k = 0; k < 16; k++) sum += (double)a[i / 8 * 16 + k] * b[k * 8 + i % 8];
        wanted[i] = (float)sum;
    }
    auto close = [&](const float *d, const char *what) {
        float most = 0.0f;
        for (int i = 0; i < 128; i++) most = std::isnan(d[i]) ? INFINITY : fmaxf(most, fabsf(d[i] - wanted[i]));
        expect(most < 2e-6f, what);
    };
    float d[128];
    launch<product>(32, 0, (const float *)a, (const float *)b, (const float *)c, (float *)d);
    close(d, "mma of fragments");
    launch<product_of_shared<false>>(32, 0, (const float *)a, (const float *)b, (const float *)c, (float *)d);
    close(d, "mma of ldmatrix.x4 and x2.trans");
    launch<product_of_shared<true>>(32, 0, (const float *)a, (const float *)b, (const float *)c, (float *)d);
    close(d, "mma of ldmatrix.x2 and x4.trans");
}

// ---- threads

__global__ void shuffles(int *wrong) {
    int lane = threadIdx.x % WARP, value = 100 + (int)threadIdx.x, base = 100 + (int)threadIdx.x - lane;
    bool right = __shfl_sync(FULL_MASK, value, 5) == base + 5 && __shfl_xor_sync(FULL_MASK, value, 6) == base + (lane ^ 6) &&
                 __shfl_down_sync(FULL_MASK, value, 3) == base + (lane < 29 ? lane + 3 : lane) &&
                 __shfl_up_sync(FULL_MASK, value, 3) == base + (lane >= 3 ? lane - 3 : lane) &&
                 __ballot_sync(FULL_MASK, lane % 2) == 0xaaaaaaaau && __any_sync(FULL_MASK, lane == 9) &&
                 !__all_sync(FULL_MASK, lane != 9);
    wrong[threadIdx.x] = !right;
}

// A warp whose lanes from 20 on have left: they vote for nothing and give NaN.
__global__ void leavers(int *wrong) {
    int lane = threadIdx.x;
    wrong[lane] = 0;
    if (lane >= 20) return;
    float other = __shfl_sync(FULL_MASK, (float)lane, 25);
    wrong[lane] = !std::isnan(other) || __ballot_sync(FULL_MASK, 1) != 0xfffffu || !__all_sync(FULL_MASK, 1);
}

__global__ void block_sums(const float *x, float *out) {
    __shared__ float scratch[WARP];
    float sum = block_sum(x[threadIdx.x], scratch), most = block_max(x[threadIdx.x], scratch);
    out[2 * threadIdx.x] = sum;
    out[2 * threadIdx.x + 1] = most;
}

// Without the barrier, which value arrives depends on who is first.
template <bool Barrier> __global__ void neighbours(int *out) {
    DYNAMIC_SHARED(memory);
    int *values = (int *)memory, next = (threadIdx.x + 1) % blockDim.x;
    values[threadIdx.x] = (int)threadIdx.x;
    if (Barrier) __syncthreads();
    out[threadIdx.x] = values[next];
}

template <bool Wait> __global__ void copies(const u32 *from, u32 *out) {
    DYNAMIC_SHARED(memory);
    u32 *to = (u32 *)memory + 4 * threadIdx.x;
    cp_async_16(to, from + 4 * threadIdx.x, threadIdx.x % 3 != 0);
    cp_async_commit();
    if (Wait) cp_async_wait<0>();
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = to[i];
}

static void test_threads() {
    std::vector<int> wrong(256, 1);
    launch<shuffles>(256, 0, wrong.data());
    expect(wrong == std::vector<int>(256, 0), "shuffles and votes");
    launch<leavers>(32, 0, wrong.data());
    expect(wrong == std::vector<int>(256, 0), "lanes that have left");
    float x[256], out[512], sum = 0.0f;
    for (int i = 0; i < 256; i++) sum += x[i] = (float)(i * 37 % 101);
    launch<block_sums>(256, 0, (const float *)x, (float *)out);
    bool right = true;
    for (int i = 0; i < 256; i++) right = right && out[2 * i] == sum && out[2 * i + 1] == 100.0f;
    expect(right, "sums and maxima over a block");
    bool seen = true;
    for (const char *order : {"forward", "reverse", "shuffle"}) {
        setenv("TAPER_EMULATOR_ORDER", order, 1);
        std::vector<int> with(256), without(256);
        launch<neighbours<true>>(256, 1024, with.data());
        launch<neighbours<false>>(256, 1024, without.data());
        for (int i = 0; i < 256; i++) expect(with[i] == (i + 1) % 256, "a barrier");
        seen = seen && with == without;
    }
    unsetenv("TAPER_EMULATOR_ORDER");
    expect(!seen, "a barrier that is missing shows in one of the orders");
    alignas(16) u32 from[128], copied[128];
    for (int i = 0; i < 128; i++) from[i] = 7u + (u32)i;
    launch<copies<true>>(32, 512, (const u32 *)from, (u32 *)copied);
    for (int i = 0; i < 128; i++) expect(copied[i] == (i / 4 % 3 ? 7u + (u32)i : 0u), "cp.async, zeros where it is not valid");
    launch<copies<false>>(32, 512, (const u32 *)from, (u32 *)copied);
    for (u32 value : copied) expect(value == 0xffffffffu, "cp.async that is not waited for has not arrived");
}

static void test_conversions() {
    float nan = NAN, odd = __uint_as_float(0x7f800001u);
    auto rounded = [](float x) { return to_float(from_float<bf16>(x)); };
    auto rounded_half = [](float x) { return to_float(from_float<f16>(x)); };
    for (float x : {nan, odd}) expect(std::isnan(rounded(x)) && std::isnan(rounded_half(x)), "NaN stays");
    expect(rounded(1.00390625f) == 1.0f && rounded(1.01171875f) == 1.015625f, "ties to even");
    expect(std::isinf(rounded(3.4e38f)) && rounded_half(65519.0f) == 65504.0f, "rounding at the top");
    expect(pack_bf16(1.0f, -2.0f) == 0xc0003f80u, "pack_bf16");
    bool halves = __umul64hi(1ull << 40, 1ull << 40) == 1ull << 16 && __umulhi(1u << 20, 1u << 20) == 1u << 8;
    expect(halves, "upper halves of products");
}

// ---- what must not be

__global__ void half_at_barrier() {
    if (threadIdx.x < 16) __syncthreads();
    else __syncwarp();
}
__global__ void two_shuffles(int *out) {
    out[threadIdx.x] = threadIdx.x % 2 ? __shfl_sync(FULL_MASK, 1, 0) : __shfl_xor_sync(FULL_MASK, 1, 1);
}
__global__ void behind_shared() {
    DYNAMIC_SHARED(memory);
    memory[100 + threadIdx.x] = 0;
}
__global__ void part_of_a_warp(int *out) { out[threadIdx.x] = (int)__ballot_sync(0xffffu, 1); }
__global__ void mma_of_half_a_warp(float *out) {
    float d[4] = {};
    u32 a[4] = {}, b[2] = {};
    mma_bf16(d, a, b);
    out[threadIdx.x] = d[0];
}

static void test_misuse() {
    int out[64];
    float sums[64];
    expect(aborts("waits at __sync", [&] { launch<half_at_barrier>(32, 0); }), "a barrier for half a warp");
    expect(aborts("waits at __shfl", [&] { launch<two_shuffles>(32, 0, (int *)out); }), "two kinds of shuffle at once");
    expect(aborts("behind its shared memory", [&] { launch<behind_shared>(32, 128); }), "a write behind shared memory");
    expect(aborts("not FULL_MASK", [&] { launch<part_of_a_warp>(32, 0, (int *)out); }), "a mask of a part");
    expect(aborts("not whole", [&] { launch<mma_of_half_a_warp>(16, 0, (float *)sums); }), "mma by half a warp");
}

// ---- the libraries, opened as a program opens them

template <class T> static T *function(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fprintf(stderr, "self_test: there is no %s: %s\n", name, dlerror()), exit(1);
    return (T *)found;
}

using Gemm = int(void *, int, int, int, int, int, const void *, const void *, int, int, long long, const void *, int, int,
                 long long, const void *, void *, int, int, long long, int, int, int);

// Every transpose, bf16 into f32, three in a row, columns further apart than need be, beta 0 over NaN and beta 1.
static void test_products(Gemm *gemm, uint64_t memory) {
    enum { M = 5, N = 7, K = 19, LD = 23, STEP = LD * LD, BATCHES = 3 };
    auto *a = (bf16 *)memory, *b = a + BATCHES * STEP;
    auto *c = (float *)(b + BATCHES * STEP + 2);
    for (int i = 0; i < 2 * BATCHES * STEP; i++) a[i] = from_float<bf16>(random_bf16());
    for (int mode = 0; mode < 8; mode++) {
        int op_a = mode & 1, op_b = mode >> 1 & 1;
        float alpha = 0.5f, beta = mode >= 4 ? 1.0f : 0.0f, before = beta == 0.0f ? NAN : 3.0f;
        std::fill_n(c, BATCHES * STEP, before);
        bool right = 0 == gemm(nullptr, op_a, op_b, M, N, K, &alpha, a, 14, LD, STEP, b, 14, LD, STEP, &beta, c, 0, LD, STEP,
                               BATCHES, 68, -1);
        for (int at = 0; at < BATCHES * STEP; at++) {
            int batch = at / STEP, j = at % STEP / LD, i = at % LD;
            bool inside = j < N && i < M;
            double sum = 0.0;
            for (int k = 0; k < K && inside; k++) {
                float x = to_float(a[batch * STEP + (op_a ? i * LD + k : k * LD + i)]);
                sum += x * (double)to_float(b[batch * STEP + (op_b ? k * LD + j : j * LD + k)]);
            }
            float wanted = inside ? (float)(0.5 * sum) + (beta == 0.0f ? 0.0f : 3.0f) : before;
            right = right && (std::isnan(wanted) ? std::isnan(c[at]) : fabsf(c[at] - wanted) < 1e-5f);
        }
        expect(right, "cublasGemmStridedBatchedEx");
    }
}

static void test_libraries(const std::string &folder) {
    void *driver = dlopen((folder + "/libcuda.so.1").c_str(), RTLD_NOW | RTLD_LOCAL);
    void *blas = dlopen((folder + "/libcublas.so.13").c_str(), RTLD_NOW | RTLD_LOCAL);
    void *random = dlopen((folder + "/libcurand.so.10").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!driver || !blas || !random) fprintf(stderr, "self_test: %s\n", dlerror()), exit(1);
    auto *allocate = function<int(uint64_t *, size_t)>(driver, "cuMemAlloc_v2");
    auto *release = function<int(uint64_t)>(driver, "cuMemFree_v2");
    auto *synchronise = function<int()>(driver, "cuCtxSynchronize");
    auto *to_host = function<int(void *, uint64_t, size_t)>(driver, "cuMemcpyDtoH_v2");
    auto *gemm = function<Gemm>(blas, "cublasGemmStridedBatchedEx");
    uint64_t memory, odd, ignored;
    expect(allocate(&memory, 1 << 20) == 0 && allocate(&odd, 13) == 0 && memory % 256 == 0 && odd % 256 == 0, "allocations");
    expect(allocate(&ignored, ~(size_t)0) == 2, "more memory than there is");
    for (int at : {0, 1 << 18, -1}) expect(std::isnan(((float *)memory)[at]), "NaN in fresh memory and around it");
    expect(synchronise() == 0, "guards that nobody touched");
    test_products(gemm, memory);
    auto *find = function<int(void **, void *, const char *)>(driver, "cuModuleGetFunction");
    auto *set = function<int(void *, int, int)>(driver, "cuFuncSetAttribute");
    using Launch = int(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
    auto *run = function<Launch>(driver, "cuLaunchKernel");
    void *kernel;
    expect(find(&kernel, nullptr, "no such kernel") == 500, "a kernel that there is not");
    expect(find(&kernel, nullptr, "rms_norm_forward_f32_f32") == 0, "a kernel by its name");
    expect(run(kernel, 1, 1, 1, 1025, 1, 1, 0, nullptr, nullptr, nullptr) == 1, "too many threads");
    expect(run(kernel, 0, 1, 1, 32, 1, 1, 0, nullptr, nullptr, nullptr) == 1, "no blocks");
    expect(run(kernel, 1, 1, 1, 32, 1, 1, 49153, nullptr, nullptr, nullptr) == 1, "more than 48 KiB without asking");
    expect(set(kernel, 8, (163 << 10) + 1) == 1 && set(kernel, 8, 163 << 10) == 0, "163 KiB at most");

    char text[64];
    float one = 1.0f;
    uint64_t host = (uint64_t)text;
    expect(aborts("freed", [&] { release(host); }), "a free of what was never allocated");
    expect(aborts("outside", [&] { to_host(text, odd, 14); }), "a copy beyond an allocation");
    expect(aborts("behind", [&] { ((char *)odd)[13] = 0, synchronise(); }), "a write behind an allocation");
    expect(aborts("before", [&] { ((char *)odd)[-1] = 0, release(odd); }), "a write before an allocation");
    auto product_on_host = [&] {
        gemm(nullptr, 0, 0, 4, 4, 1, &one, text, 0, 4, 0, text, 0, 1, 0, &one, text, 0, 4, 0, 1, 68, -1);
    };
    expect(aborts("lies outside", product_on_host), "a product of what is not on the device");
    auto *uniform = function<int(void *, float *, size_t)>(random, "curandGenerateUniform");
    expect(uniform(nullptr, nullptr, 0) != 0, "no random numbers");
    expect(release(memory) == 0 && release(odd) == 0 && synchronise() == 0, "frees");
}

int main(int, char **arguments) {
    test_conversions();
    test_matrices();
    test_threads();
    test_misuse();
    test_libraries(arguments[1]);
    fprintf(stderr, failures ? "self_test: %d failed\n" : "self_test: passed\n", failures);
    return failures ? 1 : 0;
}
