// The memory of the emulated device, shared by its libraries.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

// Whether `bytes` from `address` on lie within one allocation.
bool is_allocated(uint64_t address, size_t bytes);

// What libcuda.so.1 gives the other libraries: one at a time works on the device's memory.
struct Device {
    void (*lock)();
    void (*unlock)();
    bool (*is_allocated)(uint64_t address, size_t bytes);
};

} // namespace emulator
