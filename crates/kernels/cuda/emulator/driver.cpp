// The driver's functions (libcuda.so.1) over the emulated device: memory with guards around it, kernels that are run at once.
//
// What a device would allow in silence, or punish with a wrong number, is an error here: a copy outside an allocation, a write before or behind one, a
// launch beyond the limits of compute capability 8.0. Fresh memory is full of NaN.
#include "cuda.h"
#include "memory.h"
#include <map>
#include <mutex>

namespace {

enum Status { Success = 0, InvalidValue = 1, OutOfMemory = 2, NotInitialized = 3, NoDevice = 101, NotFound = 500, NotSupported = 801 };

constexpr size_t GUARD = 256;
constexpr unsigned MOST_SHARED = 163 << 10, SHARED_WITHOUT_ASKING = 48 << 10;

struct Function {
    const emulator::Kernel *kernel;
    unsigned shared_allowed;
};

std::recursive_mutex lock;
std::map<uint64_t, size_t> allocations;
std::map<std::string, Function> functions;
size_t used, most_used;
int context, stream_count;
thread_local void *current_context;

size_t memory_limit() {
    static const char *wanted = getenv("TAPER_EMULATOR_MEMORY");
    static size_t limit = wanted ? strtoull(wanted, nullptr, 10) : (size_t)8 << 30;
    return limit;
}

[[noreturn]] void fault(const char *what, uint64_t address, size_t bytes) {
    fprintf(stderr, "emulator: %s (%zu bytes at %#llx)\n", what, bytes, (unsigned long long)address);
    abort();
}

void check_guards(uint64_t address, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++) {
        if (((unsigned char *)address)[-(long)i - 1] != 0xA5) fault("something was written before an allocation", address, bytes);
        if (((unsigned char *)address)[bytes + i] != 0xA5) fault("something was written behind an allocation", address, bytes);
    }
}

int allocate(uint64_t *address, size_t bytes) {
    if (bytes == 0) return InvalidValue;
    if (used + bytes > memory_limit()) return OutOfMemory;
    auto *memory = (unsigned char *)aligned_alloc(256, (bytes + 2 * GUARD + 255) / 256 * 256);
    if (!memory) return OutOfMemory;
    memset(memory, 0xA5, GUARD);
    memset(memory + GUARD, 0xFF, bytes);
    memset(memory + GUARD + bytes, 0xA5, GUARD);
    *address = (uint64_t)memory + GUARD;
    allocations[*address] = bytes;
    used += bytes;
    if (used > most_used) most_used = used;
    return Success;
}

int release(uint64_t address) {
    if (address == 0) return Success;
    auto found = allocations.find(address);
    if (found == allocations.end()) fault("memory is freed that was never allocated, or twice", address, 0);
    check_guards(address, found->second);
    used -= found->second;
    allocations.erase(found);
    free((void *)(address - GUARD));
    return Success;
}

void check_all() {
    for (auto &[address, bytes] : allocations) check_guards(address, bytes);
}

void check_range(uint64_t address, size_t bytes, const char *what) {
    if (bytes && !emulator::is_allocated(address, bytes)) fault(what, address, bytes);
}

} // namespace

bool emulator::is_allocated(uint64_t address, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return false;
    auto &[start, held] = *--next;
    return address - start <= held && bytes <= held - (address - start);
}

#define API extern "C" __attribute__((visibility("default"))) int
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

API emulator_is_allocated(uint64_t address, size_t bytes) { return emulator::is_allocated(address, bytes); }

API cuInit(unsigned) { return Success; }
API cuDriverGetVersion(int *version) { return *version = 13000, Success; }
API cuDeviceGetCount(int *count) { return *count = 1, Success; }
API cuDeviceGet(int *device, int ordinal) { return ordinal == 0 ? (*device = 0, Success) : NoDevice; }
API cuDeviceGetName(char *name, int len, int) {
    return snprintf(name, (size_t)len, "Emulated GPU (on the CPU)"), Success;
}
API cuDeviceGetUuid(unsigned char *uuid, int) { return memset(uuid, 0xE5, 16), Success; }
API cuDeviceGetUuid_v2(unsigned char *uuid, int) { return memset(uuid, 0xE5, 16), Success; }
API cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = memory_limit(), Success; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; break;            // threads of a block
    case 8: *value = SHARED_WITHOUT_ASKING; break;
    case 10: *value = 32; break;             // threads of a warp
    case 16: *value = 108; break;            // multiprocessors
    case 75: *value = 8; break;              // capability, major
    case 76: *value = 0; break;              // and minor
    case 97: *value = MOST_SHARED; break;    // shared memory of a block that asks
    case 115: *value = 1; break;             // memory pools
    default: *value = 0;
    }
    return Success;
}

API cuDevicePrimaryCtxRetain(void **ctx, int) { return *ctx = &context, Success; }
API cuDevicePrimaryCtxRelease_v2(int) { return Success; }
API cuCtxSetCurrent(void *ctx) { return current_context = ctx, Success; }
API cuCtxGetCurrent(void **ctx) { return *ctx = current_context, Success; }
API cuCtxSetFlags(unsigned) { return Success; }
API cuCtxGetLimit(size_t *limit, int) { return *limit = 0, Success; }
API cuCtxSetLimit(int, size_t) { return Success; }
API cuCtxSynchronize() {
    LOCKED;
    return check_all(), Success;
}

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED;
    return *free = memory_limit() - used, *total = memory_limit(), Success;
}
API cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    LOCKED;
    return allocate(address, bytes);
}
API cuMemAllocAsync(uint64_t *address, size_t bytes, void *) {
    LOCKED;
    return allocate(address, bytes);
}
API cuMemFree_v2(uint64_t address) {
    LOCKED;
    return release(address);
}
API cuMemFreeAsync(uint64_t address, void *) {
    LOCKED;
    return release(address);
}
API cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    return (*memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)) ? Success : OutOfMemory;
}
API cuMemFreeHost(void *memory) { return free(memory), Success; }

static int pool;
API cuDeviceGetDefaultMemPool(void **out, int) { return *out = &pool, Success; }
API cuDeviceGetMemPool(void **out, int) { return *out = &pool, Success; }
API cuMemPoolSetAttribute(void *, int attribute, uint64_t *value) {
    LOCKED;
    if ((attribute == 6 || attribute == 8) && *value == 0) most_used = used;
    return Success;
}
API cuMemPoolGetAttribute(void *, int attribute, uint64_t *value) {
    LOCKED;
    // Reserved now and at most, used now and at most; the others are of no interest.
    *value = attribute == 5 || attribute == 7 ? used : attribute == 6 || attribute == 8 ? most_used : 0;
    return Success;
}
API cuMemPoolTrimTo(void *, size_t) { return Success; }

static int to_device(uint64_t to, const void *from, size_t bytes) {
    LOCKED;
    check_range(to, bytes, "a copy to outside of an allocation");
    return memcpy((void *)to, from, bytes), Success;
}
static int to_host(void *to, uint64_t from, size_t bytes) {
    LOCKED;
    check_range(from, bytes, "a copy from outside of an allocation");
    return memcpy(to, (void *)from, bytes), Success;
}
static int within(uint64_t to, uint64_t from, size_t bytes) {
    LOCKED;
    check_range(to, bytes, "a copy to outside of an allocation");
    check_range(from, bytes, "a copy from outside of an allocation");
    return memmove((void *)to, (void *)from, bytes), Success;
}
static int fill(uint64_t to, unsigned char value, size_t bytes) {
    LOCKED;
    check_range(to, bytes, "bytes set outside of an allocation");
    return memset((void *)to, value, bytes), Success;
}
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return to_device(to, from, bytes); }
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) { return to_device(to, from, bytes); }
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { return to_host(to, from, bytes); }
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) { return to_host(to, from, bytes); }
API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return within(to, from, bytes); }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) { return within(to, from, bytes); }
API cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { return fill(to, value, bytes); }
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *) { return fill(to, value, bytes); }

API cuStreamCreate(void **stream, unsigned) { return *stream = &stream_count, Success; }
API cuStreamCreateWithPriority(void **stream, unsigned, int) { return *stream = &stream_count, Success; }
API cuStreamDestroy_v2(void *) { return Success; }
API cuStreamWaitEvent(void *, void *, unsigned) { return Success; }
API cuStreamIsCapturing(void *, int *status) { return *status = 0, Success; }
API cuStreamSynchronize(void *) {
    LOCKED;
    return check_all(), Success;
}
API cuEventCreate(void **event, unsigned) { return *event = malloc(1), Success; }
API cuEventDestroy_v2(void *event) { return free(event), Success; }
API cuEventRecord(void *, void *) { return Success; }
API cuEventQuery(void *) { return Success; }
API cuEventSynchronize(void *) { return Success; }
API cuEventElapsedTime(float *ms, void *, void *) { return *ms = 0, Success; }
API cuEventElapsedTime_v2(float *ms, void *, void *) { return *ms = 0, Success; }

// Kernels are known by their names, whatever image they are said to be in.
API cuModuleLoadData(void **module, const void *) { return *module = &functions, Success; }
API cuModuleLoadDataEx(void **module, const void *, unsigned, void *, void **) { return *module = &functions, Success; }
API cuModuleUnload(void *) { return Success; }
API cuModuleGetFunction(void **out, void *, const char *name) {
    LOCKED;
    for (const auto &kernel : emulator::kernels()) {
        if (strcmp(kernel.name, name)) continue;
        auto &function = functions[name];
        if (!function.kernel) function = {&kernel, SHARED_WITHOUT_ASKING};
        return *out = &function, Success;
    }
    return fprintf(stderr, "emulator: there is no kernel `%s`\n", name), NotFound;
}
API cuFuncGetAttribute(int *value, int, void *) { return *value = 0, Success; }
API cuFuncSetCacheConfig(void *, int) { return Success; }
API cuFuncSetAttribute(void *function, int attribute, int value) {
    LOCKED;
    if (attribute == 8) {
        if ((unsigned)value > MOST_SHARED) return InvalidValue;
        ((Function *)function)->shared_allowed = (unsigned)value;
    }
    return Success;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) { return *blocks = 1, Success; }

API cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *,
                   void **params, void **) {
    LOCKED;
    auto *function = (Function *)f;
    uint64_t threads = (uint64_t)bx * by * bz;
    bool fits = gx && gy && gz && gx < 1u << 31 && gy < 65536 && gz < 65536 && threads && threads <= 1024;
    if (!fits || shared > function->shared_allowed) {
        fprintf(stderr, "emulator: `%s` cannot be launched on (%u, %u, %u) blocks of (%u, %u, %u) with %u bytes\n",
                function->kernel->name, gx, gy, gz, bx, by, bz, shared);
        return InvalidValue;
    }
    emulator::launch(function->kernel->name, function->kernel->run, params, {gx, gy, gz}, {bx, by, bz}, shared);
    return Success;
}

API cuGetErrorName(int, const char **text) { return *text = "CUDA_ERROR", Success; }
API cuGetErrorString(int code, const char **text) {
    *text = code == OutOfMemory ? "out of memory" : code == NotFound ? "named symbol not found" : "error of the emulated device";
    return Success;
}
