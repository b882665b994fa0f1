// cuBLAS's products (libcublas.so.13) on the CPU: plain loops, summed in f64.
#include "cuda.h"
#include <dlfcn.h>

namespace {

enum Status { Success = 0, InvalidValue = 7, NotSupported = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };

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

// Whether a column-major matrix of [rows, columns] lies within an allocation.
bool lies(const void *values, int type, int rows, int columns, int stride) {
    static auto is_allocated = (int (*)(uint64_t, size_t))dlsym(RTLD_DEFAULT, "emulator_is_allocated");
    if (rows == 0 || columns == 0 || !is_allocated) return true;
    bool inside = is_allocated((uint64_t)values, ((size_t)(columns - 1) * stride + rows) * bytes_of(type));
    if (!inside) fprintf(stderr, "emulator: a matrix of [%d, %d] with columns of %d lies outside of an allocation\n", rows, columns, stride);
    return inside;
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

int multiply(int op_a, int op_b, int m, int n, int k, float alpha, const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
             float beta, void *c, int c_type, int ldc) {
    bool known = a_type == b_type && (a_type == F32 || a_type == F16 || a_type == BF16) && (c_type == F32 || c_type == a_type);
    if (!known) return fprintf(stderr, "emulator: no product of types %d and %d into %d\n", a_type, b_type, c_type), NotSupported;
    bool strides = lda >= (op_a ? k : m) && ldb >= (op_b ? n : k) && ldc >= m;
    if (m < 0 || n < 0 || k < 0 || !strides) return InvalidValue;
    if (!lies(a, a_type, op_a ? k : m, op_a ? m : k, lda) || !lies(b, b_type, op_b ? n : k, op_b ? k : n, ldb) || !lies(c, c_type, m, n, ldc))
        abort();
    std::vector<float> left = rows_of(a, a_type, op_a, m, k, lda), right = rows_of(b, b_type, !op_b, n, k, ldb);
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            const float *x = &left[(size_t)i * k], *y = &right[(size_t)j * k];
            double lanes[8] = {};
            int l = 0;
            for (; l + 8 <= k; l += 8)
                for (int s = 0; s < 8; s++) lanes[s] += (double)x[l + s] * y[l + s];
            double sum = 0.0;
            for (; l < k; l++) sum += (double)x[l] * y[l];
            for (double lane : lanes) sum += lane;
            size_t at = (size_t)j * ldc + i;
            float before = beta == 0.0f ? 0.0f : beta * load(c, c_type, at);
            store(c, c_type, at, (float)(alpha * sum) + before);
        }
    }
    return Success;
}

int handle_of_all, stream_of_all;
void *stream = &stream_of_all;

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasCreate_v2(void **handle) { return *handle = &handle_of_all, Success; }
API cublasDestroy_v2(void *) { return Success; }
API cublasSetStream_v2(void *, void *wanted) { return stream = wanted, Success; }
API cublasGetStream_v2(void *, void **out) { return *out = stream, Success; }
API cublasSetPointerMode_v2(void *, int) { return Success; }
API cublasSetMathMode(void *, int) { return Success; }
API cublasSetAtomicsMode(void *, int) { return Success; }
API cublasSetWorkspace_v2(void *, void *, size_t) { return Success; }
API cublasGetVersion_v2(void *, int *version) { return *version = 130000, Success; }

API cublasGemmEx(void *, int op_a, int op_b, int m, int n, int k, const float *alpha, const void *a, int a_type, int lda, const void *b,
                 int b_type, int ldb, const float *beta, void *c, int c_type, int ldc, int, int) {
    return multiply(op_a, op_b, m, n, k, *alpha, a, a_type, lda, b, b_type, ldb, *beta, c, c_type, ldc);
}
API cublasSgemm_v2(void *, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a, int lda, const float *b, int ldb,
                   const float *beta, float *c, int ldc) {
    return multiply(op_a, op_b, m, n, k, *alpha, a, F32, lda, b, F32, ldb, *beta, c, F32, ldc);
}
