// cuBLAS's products (libcublas.so.13) on the CPU: plain loops, summed in f64.
#include "cuda.h"
#include "memory.h"
#include <algorithm>
#include <dlfcn.h>

namespace {

enum Status { Success = 0, NotInitialized = 1, InvalidValue = 7, NotSupported = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };
enum Compute { In16F = 64, In32F = 68, In32F16F = 74, In32F16BF = 75, In32FTF32 = 77 };

size_t bytes_of(int type) { return type == F32 ? 4 : 2; }

float load(const void *values, int type, size_t i) {
    if (type == F32) return ((const float *)values)[i];
    if (type == BF16) return __bfloat162float(((const __nv_bfloat16 *)values)[i]);
    return __half2float(((const __half *)values)[i]);
}

void store(void *values, int type, size_t i, float x) {
    if (type == F32) ((float *)values)[i] = x;
    else if (type == BF16) ((__nv_bfloat16 *)values)[i] = __float2bfloat16_rn(x);
    else ((__half *)values)[i] = __float2half_rn(x);
}

// The driver, which the program has opened before; its names need not be visible to all.
const emulator::Device &device() {
    static auto found = [] {
        void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        return driver ? (const emulator::Device *)dlsym(driver, "emulator_device") : nullptr;
    }();
    if (!found) fprintf(stderr, "emulator: cuBLAS without the emulated libcuda.so.1\n"), abort();
    return *found;
}

struct Locked {
    Locked() { device().lock(); }
    ~Locked() { device().unlock(); }
};

// Column-major matrices, whose columns begin `stride` apart, one behind the other after `step`.
struct Matrix {
    const void *values;
    int type, stride;
    long long step;
    const void *of(int i) const { return (const char *)values + (long long)i * step * (long long)bytes_of(type); }
};

// Stops unless a matrix of [rows, columns] lies within an allocation.
void check(const Matrix &matrix, int i, int rows, int columns) {
    if (rows == 0 || columns == 0) return;
    size_t bytes = ((size_t)(columns - 1) * (size_t)matrix.stride + (size_t)rows) * bytes_of(matrix.type);
    if (device().is_allocated((uint64_t)matrix.of(i), bytes)) return;
    fprintf(stderr, "emulator: a matrix [%d, %d], columns %d apart, lies outside an allocation\n", rows, columns, matrix.stride);
    abort();
}

// A matrix as rows of f32 that lie close: [m, k] of what `op` makes of it.
std::vector<float> rows_of(const void *values, int type, int op, int m, int k, int stride) {
    std::vector<float> rows((size_t)m * k);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < k; j++) {
            size_t at = op == 0 ? (size_t)j * stride + i : (size_t)i * stride + j;
            rows[(size_t)i * k + j] = load(values, type, at);
        }
    }
    return rows;
}

double dot(const float *x, const float *y, int k) {
    double lanes[8] = {}, sum = 0.0;
    int l = 0;
    for (; l + 8 <= k; l += 8)
        for (int s = 0; s < 8; s++) lanes[s] += (double)x[l + s] * y[l + s];
    for (; l < k; l++) sum += (double)x[l] * y[l];
    for (double lane : lanes) sum += lane;
    return sum;
}

struct Product {
    int op_a, op_b, m, n, k;
    float alpha, beta;
    Matrix a, b, c;
};

void multiply_one(const Product &p, int batch) {
    check(p.a, batch, p.op_a ? p.k : p.m, p.op_a ? p.m : p.k);
    check(p.b, batch, p.op_b ? p.n : p.k, p.op_b ? p.k : p.n);
    check(p.c, batch, p.m, p.n);
    auto left = rows_of(p.a.of(batch), p.a.type, p.op_a, p.m, p.k, p.a.stride);
    auto right = rows_of(p.b.of(batch), p.b.type, !p.op_b, p.n, p.k, p.b.stride);
    void *c = (void *)p.c.of(batch);
    for (int j = 0; j < p.n; j++) {
        for (int i = 0; i < p.m; i++) {
            size_t at = (size_t)j * p.c.stride + i;
            // With a beta of 0 what was in c does not count, be it NaN.
            float before = p.beta == 0.0f ? 0.0f : p.beta * load(c, p.c.type, at);
            store(c, p.c.type, at, (float)(p.alpha * dot(&left[(size_t)i * p.k], &right[(size_t)j * p.k], p.k)) + before);
        }
    }
}

int multiply(const Product &p, int batches) {
    Locked locked;
    int type = p.a.type;
    bool known = type == p.b.type && (type == F32 || type == F16 || type == BF16) && (p.c.type == F32 || p.c.type == type);
    if (!known) {
        fprintf(stderr, "emulator: no product of types %d and %d into %d\n", type, p.b.type, p.c.type);
        return NotSupported;
    }
    if (p.op_a < 0 || p.op_a > 1 || p.op_b < 0 || p.op_b > 1 || p.m < 0 || p.n < 0 || p.k < 0 || batches < 0) return InvalidValue;
    bool strides = p.a.stride >= std::max(1, p.op_a ? p.k : p.m) && p.b.stride >= std::max(1, p.op_b ? p.n : p.k);
    if (!strides || p.c.stride < std::max(1, p.m)) return InvalidValue;
    for (int i = 0; i < batches; i++) multiply_one(p, i);
    return Success;
}

// alpha or beta, which is of the type that is computed in.
bool factor_of(const void *factor, int compute, float &value) {
    if (compute == In16F) return value = __half2float(*(const __half *)factor), true;
    bool known = compute == In32F || compute == In32F16F || compute == In32F16BF || compute == In32FTF32;
    if (!known) fprintf(stderr, "emulator: no product computed in type %d\n", compute);
    return known && (value = *(const float *)factor, true);
}

int handle_of_all, stream_of_all;
void *stream = &stream_of_all;

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define TEXT extern "C" __attribute__((visibility("default"))) const char *

API cublasCreate_v2(void **handle) { return *handle = &handle_of_all, Success; }
API cublasDestroy_v2(void *) { return Success; }
API cublasSetStream_v2(void *, void *wanted) { return stream = wanted, Success; }
API cublasGetStream_v2(void *, void **out) { return *out = stream, Success; }
API cublasSetPointerMode_v2(void *, int) { return Success; }
API cublasSetMathMode(void *, int) { return Success; }
API cublasSetAtomicsMode(void *, int) { return Success; }
API cublasSetWorkspace_v2(void *, void *, size_t) { return Success; }
API cublasGetVersion_v2(void *, int *version) { return *version = 130000, Success; }

API cublasGetPointerMode_v2(void *, int *mode) { return *mode = 0, Success; }
API cublasGetMathMode(void *, int *mode) { return *mode = 0, Success; }
API cublasGetAtomicsMode(void *, int *mode) { return *mode = 0, Success; }

TEXT cublasGetStatusName(int status) {
    return status == Success          ? "CUBLAS_STATUS_SUCCESS"
           : status == NotInitialized ? "CUBLAS_STATUS_NOT_INITIALIZED"
           : status == InvalidValue   ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == NotSupported   ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                      : "unknown cublas status";
}
TEXT cublasGetStatusString(int status) { return cublasGetStatusName(status); }

API cublasGemmStridedBatchedEx(void *, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                               int lda, long long step_a, const void *b, int b_type, int ldb, long long step_b, const void *beta,
                               void *c, int c_type, int ldc, long long step_c, int batches, int compute, int) {
    Product product = {op_a, op_b, m, n, k, 0, 0, {a, a_type, lda, step_a}, {b, b_type, ldb, step_b}, {c, c_type, ldc, step_c}};
    if (!factor_of(alpha, compute, product.alpha) || !factor_of(beta, compute, product.beta)) return NotSupported;
    return multiply(product, batches);
}
API cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda,
                 const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type,
                                      ldc, 0, 1, compute, algorithm);
}
API cublasSgemmStridedBatched(void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a, int lda,
                              long long step_a, const float *b, int ldb, long long step_b, const float *beta, float *c, int ldc,
                              long long step_c, int batches) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, F32, lda, step_a, b, F32, ldb, step_b, beta, c, F32,
                                      ldc, step_c, batches, In32F, 0);
}
API cublasSgemm_v2(void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a, int lda,
                   const float *b, int ldb, const float *beta, float *c, int ldc) {
    return cublasSgemmStridedBatched(handle, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}
