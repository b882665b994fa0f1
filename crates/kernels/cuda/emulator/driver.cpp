// The driver's functions (libcuda.so.1) over the emulated device: memory with guards around it, kernels that are run at once.
//
// What a device would allow in silence, or punish with a wrong number, is an error here: a copy outside an allocation, a write
// before or behind one, a launch beyond the limits of compute capability 8.0. Fresh memory is full of NaN, and so is what lies
// around it.
#include "cuda.h"
#include "memory.h"
#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <set>

namespace {

enum Status { Success = 0, InvalidValue = 1, OutOfMemory = 2, InvalidDevice = 101, NotFound = 500, NotSupported = 801 };

constexpr size_t GUARD = 256;
constexpr unsigned MOST_SHARED = 163 << 10, SHARED_WITHOUT_ASKING = 48 << 10;

struct Function {
    const emulator::Kernel *kernel;
    unsigned shared_allowed;
};

std::recursive_mutex lock;
std::map<uint64_t, size_t> allocations;
std::set<uint64_t> managed; // of these, those that take nothing of the device's memory
std::map<std::string, Function> functions;
size_t used, most_used, most_reserved;
std::map<int, uint64_t> pool_attributes;
int context;
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

// Around an allocation every f32, bf16 and f16 is a NaN, so that who reads there is found too, and none that arithmetic makes.
struct Guard {
    unsigned char bytes[GUARD + 1];
    Guard() {
        for (size_t i = 0; i <= GUARD; i++) bytes[i] = i % 2 ? 0xFF : 0xA5;
    }
};
const Guard pattern;

const unsigned char *guard_at(uint64_t address) { return pattern.bytes + address % 2; }

void check_guards(uint64_t address, size_t bytes) {
    uint64_t before = address - GUARD, behind = address + bytes;
    if (memcmp((void *)before, guard_at(before), GUARD)) fault("something was written before an allocation", address, bytes);
    if (memcmp((void *)behind, guard_at(behind), GUARD)) fault("something was written behind an allocation", address, bytes);
}

int allocate(uint64_t *address, size_t bytes, bool on_host = false) {
    if (bytes == 0) return InvalidValue;
    if (!on_host && bytes > memory_limit() - used) return OutOfMemory;
    auto *memory = (unsigned char *)aligned_alloc(256, (bytes + 2 * GUARD + 255) / 256 * 256);
    if (!memory) return OutOfMemory;
    *address = (uint64_t)memory + GUARD;
    memcpy(memory, guard_at((uint64_t)memory), GUARD);
    memset(memory + GUARD, 0xFF, bytes);
    memcpy(memory + GUARD + bytes, guard_at(*address + bytes), GUARD);
    allocations[*address] = bytes;
    if (on_host) return managed.insert(*address), Success;
    used += bytes;
    if (used > most_used) most_used = used;
    if (used > most_reserved) most_reserved = used;
    return Success;
}

int release(uint64_t address) {
    if (address == 0) return Success;
    auto found = allocations.find(address);
    if (found == allocations.end()) fault("memory is freed that was never allocated, or twice", address, 0);
    check_guards(address, found->second);
    if (!managed.erase(address)) used -= found->second;
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

extern "C" __attribute__((visibility("default"))) const emulator::Device emulator_device = {
    [] { lock.lock(); },
    [] { lock.unlock(); },
    emulator::is_allocated,
};

API cuInit(unsigned) { return Success; }
API cuDriverGetVersion(int *version) { return *version = 13000, Success; }
API cuDeviceGetCount(int *count) { return *count = 1, Success; }
API cuDeviceGet(int *device, int ordinal) { return ordinal == 0 ? (*device = 0, Success) : InvalidDevice; }
API cuDeviceGetName(char *name, int len, int) {
    return snprintf(name, (size_t)len, "Emulated GPU (compute capability 8.0, on the CPU)"), Success;
}
API cuDeviceGetUuid(unsigned char *uuid, int) { return memset(uuid, 0xE5, 16), Success; }
API cuDeviceGetUuid_v2(unsigned char *uuid, int) { return memset(uuid, 0xE5, 16), Success; }
API cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = memory_limit(), Success; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; break;            // threads of a block
    case 2: case 3: *value = 1024; break;    // along x and y
    case 4: *value = 64; break;              // along z
    case 5: *value = 0x7fffffff; break;      // blocks along x
    case 6: case 7: *value = 65535; break;   // along y and z
    case 8: *value = SHARED_WITHOUT_ASKING; break;
    case 10: *value = 32; break;             // threads of a warp
    case 12: case 82: *value = 65536; break; // registers of a block, of a multiprocessor
    case 13: *value = 1410000; break;        // kHz
    case 16: *value = 108; break;            // multiprocessors
    case 38: *value = 40 << 20; break;       // bytes of the second cache
    case 39: *value = 2048; break;           // threads of a multiprocessor
    case 41: *value = 1; break;              // one space of addresses
    case 75: *value = 8; break;              // capability, major
    case 76: *value = 0; break;              // and minor
    case 81: *value = 164 << 10; break;      // shared memory of a multiprocessor
    case 83: case 89: *value = 1; break;     // managed memory, while the host uses it too
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
API cuCtxGetDevice(int *device) { return *device = 0, Success; }
API cuCtxGetFlags(unsigned *flags) { return *flags = 0, Success; }
API cuCtxGetApiVersion(void *, unsigned *version) { return *version = 13000, Success; }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = *greatest = 0, Success; }
API cuCtxGetCacheConfig(int *config) { return *config = 0, Success; }
API cuCtxSetCacheConfig(int) { return Success; }
API cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) { return *flags = 0, *active = 1, Success; }
API cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return Success; }
API cuDeviceCanAccessPeer(int *can, int, int) { return *can = 0, Success; }
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
// Memory whose pages move between the host and the device: here it is simply there, beyond what the device has.
API cuMemAllocManaged(uint64_t *address, size_t bytes, unsigned flags) {
    LOCKED;
    if (flags != 1 && flags != 2) return InvalidValue;
    return allocate(address, bytes, true);
}
struct Location { int type, id; };
static int within_managed(uint64_t address, size_t bytes) {
    LOCKED;
    if (bytes == 0 || !emulator::is_allocated(address, bytes)) return InvalidValue;
    return managed.count((--allocations.upper_bound(address))->first) ? Success : InvalidValue;
}
API cuMemAdvise_v2(uint64_t address, size_t bytes, int, Location) { return within_managed(address, bytes); }
API cuMemPrefetchAsync_v2(uint64_t address, size_t bytes, Location to, unsigned flags, void *) {
    bool known = (to.type == 1 && to.id == 0) || to.type == 2;
    return known && flags == 0 ? within_managed(address, bytes) : (int)InvalidValue;
}
API cuMemAdvise(uint64_t address, size_t bytes, int, int) { return within_managed(address, bytes); }
API cuMemPrefetchAsync(uint64_t address, size_t bytes, int, void *) { return within_managed(address, bytes); }
API cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    return (*memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)) ? Success : OutOfMemory;
}
API cuMemAllocHost_v2(void **memory, size_t bytes) { return cuMemHostAlloc(memory, bytes, 0); }
API cuMemFreeHost(void *memory) { return free(memory), Success; }
API cuMemHostRegister_v2(void *, size_t, unsigned) { return Success; }
API cuMemHostUnregister(void *) { return Success; }
API cuMemHostGetFlags(unsigned *flags, void *) { return *flags = 0, Success; }
API cuMemGetAddressRange_v2(uint64_t *start, size_t *bytes, uint64_t address) {
    LOCKED;
    if (!emulator::is_allocated(address, 0)) return InvalidValue;
    auto found = --allocations.upper_bound(address);
    if (start) *start = found->first;
    if (bytes) *bytes = found->second;
    return Success;
}

static int pool;
API cuDeviceGetDefaultMemPool(void **out, int) { return *out = &pool, Success; }
API cuDeviceGetMemPool(void **out, int) { return *out = &pool, Success; }
API cuDeviceSetMemPool(int, void *) { return Success; }
API cuMemAllocFromPoolAsync(uint64_t *address, size_t bytes, void *, void *) {
    LOCKED;
    return allocate(address, bytes);
}
// 1 to 3 are switches (int), 4 is what the pool keeps, 5 to 8 are reserved now and at most, used now and at most (u64).
API cuMemPoolSetAttribute(void *, int attribute, void *value) {
    LOCKED;
    if (attribute >= 1 && attribute <= 3) return pool_attributes[attribute] = *(unsigned *)value, Success;
    if (attribute == 4) return pool_attributes[attribute] = *(uint64_t *)value, Success;
    // Of the others the highest can be set alone, and to 0 alone: it then starts from now.
    if ((attribute != 6 && attribute != 8) || *(uint64_t *)value != 0) return InvalidValue;
    return (attribute == 6 ? most_reserved : most_used) = used, Success;
}
API cuMemPoolGetAttribute(void *, int attribute, void *value) {
    LOCKED;
    if (attribute >= 1 && attribute <= 3) return *(unsigned *)value = (unsigned)pool_attributes[attribute], Success;
    if (attribute < 1 || attribute > 8) return InvalidValue;
    uint64_t values[] = {pool_attributes[4], used, most_reserved, used, most_used};
    return *(uint64_t *)value = values[attribute - 4], Success;
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
template <class T> static int fill(uint64_t to, T value, size_t count) {
    LOCKED;
    check_range(to, count * sizeof(T), "values set outside of an allocation");
    if (to % sizeof(T)) return InvalidValue;
    return std::fill_n((T *)to, count, value), Success;
}
// Addresses of the host and the device are told apart by where they lie.
static int copy(uint64_t to, uint64_t from, size_t bytes) {
    LOCKED;
    if (!emulator::is_allocated(to, 0)) return to_host((void *)to, from, bytes);
    if (!emulator::is_allocated(from, 0)) return to_device(to, (void *)from, bytes);
    return within(to, from, bytes);
}
API cuMemcpy(uint64_t to, uint64_t from, size_t bytes) { return copy(to, from, bytes); }
API cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void *) { return copy(to, from, bytes); }
API cuMemcpyPeerAsync(uint64_t to, void *, uint64_t from, void *, size_t bytes, void *) { return within(to, from, bytes); }
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { return to_device(to, from, bytes); }
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) { return to_device(to, from, bytes); }
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { return to_host(to, from, bytes); }
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) { return to_host(to, from, bytes); }
API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return within(to, from, bytes); }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *) { return within(to, from, bytes); }
API cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { return fill(to, value, bytes); }
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *) { return fill(to, value, bytes); }
API cuMemsetD16_v2(uint64_t to, unsigned short value, size_t count) { return fill(to, value, count); }
API cuMemsetD16Async(uint64_t to, unsigned short value, size_t count, void *) { return fill(to, value, count); }
API cuMemsetD32_v2(uint64_t to, unsigned value, size_t count) { return fill(to, value, count); }
API cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *) { return fill(to, value, count); }

// Whatever is put on a stream has happened when the call returns.
API cuStreamCreate(void **stream, unsigned) { return *stream = new char, Success; }
API cuStreamCreateWithPriority(void **stream, unsigned, int) { return *stream = new char, Success; }
API cuStreamDestroy_v2(void *stream) { return delete (char *)stream, Success; }
API cuStreamQuery(void *) { return Success; }
API cuStreamGetPriority(void *, int *priority) { return *priority = 0, Success; }
API cuStreamGetFlags(void *, unsigned *flags) { return *flags = 0, Success; }
API cuStreamGetCtx(void *, void **ctx) { return *ctx = &context, Success; }
API cuStreamBeginCapture_v2(void *, int) { return NotSupported; }
API cuStreamEndCapture(void *, void **) { return NotSupported; }
API cuLaunchHostFunc(void *, void (*function)(void *), void *data) { return function(data), Success; }
API cuStreamWaitEvent(void *, void *, unsigned) { return Success; }
API cuStreamIsCapturing(void *, int *status) { return *status = 0, Success; }
API cuStreamSynchronize(void *) {
    LOCKED;
    return check_all(), Success;
}

using Clock = std::chrono::steady_clock;
API cuEventCreate(void **event, unsigned) { return *event = new Clock::time_point, Success; }
API cuEventDestroy_v2(void *event) { return delete (Clock::time_point *)event, Success; }
API cuEventRecord(void *event, void *) {
    LOCKED;
    return *(Clock::time_point *)event = Clock::now(), Success;
}
API cuEventRecordWithFlags(void *event, void *stream, unsigned) { return cuEventRecord(event, stream); }
API cuEventQuery(void *) { return Success; }
API cuEventSynchronize(void *) {
    LOCKED;
    return check_all(), Success;
}
API cuEventElapsedTime(float *ms, void *start, void *end) {
    LOCKED;
    auto between = *(Clock::time_point *)end - *(Clock::time_point *)start;
    return *ms = std::chrono::duration<float, std::milli>(between).count(), Success;
}
API cuEventElapsedTime_v2(float *ms, void *start, void *end) { return cuEventElapsedTime(ms, start, end); }

// Kernels are known by their names, whatever image they are said to be in.
API cuModuleLoadData(void **module, const void *) { return *module = &functions, Success; }
API cuModuleLoadDataEx(void **module, const void *, unsigned, void *, void **) { return *module = &functions, Success; }
API cuModuleLoad(void **module, const char *) { return *module = &functions, Success; }
API cuModuleGetGlobal_v2(uint64_t *, size_t *, void *, const char *) { return NotFound; }
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
API cuFuncGetAttribute(int *value, int attribute, void *function) {
    LOCKED;
    switch (attribute) {
    case 0: *value = 1024; break; // threads of a block at most
    case 4: *value = 32; break;   // registers of a thread: not known here
    case 5: case 6: *value = 80; break; // versions of PTX and of the binary
    case 8: *value = (int)((Function *)function)->shared_allowed; break;
    default: *value = 0;
    }
    return Success;
}
API cuFuncSetCacheConfig(void *, int) { return Success; }
API cuFuncSetAttribute(void *function, int attribute, int value) {
    LOCKED;
    if (attribute == 8) {
        if (value < 0 || (unsigned)value > MOST_SHARED) return InvalidValue;
        ((Function *)function)->shared_allowed = (unsigned)value;
    }
    return Success;
}
// As many blocks as threads and shared memory leave room for; each takes 1 KiB more than it asks for.
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int threads, size_t shared) {
    if (threads <= 0 || threads > 1024 || shared > MOST_SHARED) return InvalidValue;
    int warps = (threads + 31) / 32, by_shared = (int)((164 << 10) / (shared + 1024));
    return *blocks = std::min({32, 64 / warps, by_shared}), Success;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *function, int threads, size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
API cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, void *, int blocks, int) {
    if (blocks <= 0) return InvalidValue;
    return *bytes = std::min((size_t)MOST_SHARED, (size_t)(164 << 10) / (size_t)blocks - 1024), Success;
}

API cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *,
                   void **params, void **) {
    LOCKED;
    auto *function = (Function *)f;
    uint64_t threads = (uint64_t)bx * by * bz;
    bool fits = gx && gy && gz && gx < 1u << 31 && gy < 65536 && gz < 65536 && threads && threads <= 1024 && bz <= 64;
    if (!fits || shared > function->shared_allowed) {
        fprintf(stderr, "emulator: `%s` cannot be launched on (%u, %u, %u) blocks of (%u, %u, %u) with %u bytes\n",
                function->kernel->name, gx, gy, gz, bx, by, bz, shared);
        return InvalidValue;
    }
    emulator::launch(function->kernel->name, function->kernel->run, params, {gx, gy, gz}, {bx, by, bz}, shared);
    return Success;
}

API cuLaunchCooperativeKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **) {
    return NotSupported;
}

API cuProfilerStart() { return Success; }
API cuProfilerStop() { return Success; }

static const struct { int code; const char *name, *text; } ERRORS[] = {
    {Success, "CUDA_SUCCESS", "no error"},
    {InvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {InvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {NotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};
API cuGetErrorName(int code, const char **text) {
    for (const auto &error : ERRORS)
        if (error.code == code) return *text = error.name, Success;
    return *text = nullptr, InvalidValue;
}
API cuGetErrorString(int code, const char **text) {
    for (const auto &error : ERRORS)
        if (error.code == code) return *text = error.text, Success;
    return *text = nullptr, InvalidValue;
}
