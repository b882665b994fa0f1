// Threads of a block as fibers, and what they do together.
#include "cuda.h"
#include <algorithm>
#include <random>
#include <sys/mman.h>

namespace emulator {

Fiber *current;
uint3 block_index;
dim3 block_size, grid_size;
unsigned char *dynamic_shared;
std::vector<Exchange> exchanges;

namespace {

constexpr size_t PAGE = 4096, STACK = 128 << 10;
constexpr size_t SHARED = 256 << 10;
constexpr uint64_t CANARY = 0x5a5a5a5a5a5a5a5a;

const char *kernel_name;
void (*kernel_body)(void **);
void **kernel_params;
std::vector<Fiber> fibers;
std::vector<int> running;
void *scheduler_stack_pointer;

} // namespace

[[noreturn]] void fault(const std::string &what) {
    fprintf(stderr, "emulator: kernel `%s`, block (%u, %u, %u): %s\n", kernel_name, block_index.x, block_index.y, block_index.z,
            what.c_str());
    abort();
}

// Saves the registers that a call keeps on the stack, and goes on where another stack was left.
extern "C" void emulator_switch(void **save, void *next);
__asm__(".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch,@function\n"
        "emulator_switch:\n"
        " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
        " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");

namespace {

void fiber_main() {
    kernel_body(kernel_params);
    current->wait = Wait::Done;
    emulator_switch(&current->stack_pointer, scheduler_stack_pointer);
    abort();
}

void prepare(Fiber &fiber, int index) {
    if (!fiber.stack) {
        void *stack = mmap(nullptr, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) fault("no memory for a stack");
        // Below the stack nothing can be touched.
        if (mprotect(stack, PAGE, PROT_NONE)) fault("no guard below a stack");
        fiber.stack = (char *)stack + PAGE;
    }
    *(uint64_t *)fiber.stack = CANARY;
    // As if `emulator_switch` had been called by `fiber_main`'s caller: six registers, then the address to return to; the stack
    // is then 8 bytes off a multiple of 16, as it is at the start of a function.
    void **top = (void **)(fiber.stack + STACK) - 2;
    *top = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
    unsigned x = block_size.x, y = block_size.y;
    fiber.thread = {index % x, index / x % y, index / (x * y)};
    fiber.index = index;
    fiber.lane = index % 32;
    fiber.warp = index / 32;
    fiber.wait = Wait::None;
    fiber.parity = 0;
    fiber.copies.clear();
    fiber.groups.clear();
}

// The order in which the threads run next; `wanted` is read once per launch.
std::string wanted;

void set_order(size_t threads) {
    const char *order = getenv("TAPER_EMULATOR_ORDER");
    wanted = order ? order : "forward";
    bool known = wanted == "forward" || wanted == "reverse" || wanted == "shuffle";
    if (!known) fault("TAPER_EMULATOR_ORDER is not forward, reverse or shuffle");
    running.resize(threads);
    for (size_t i = 0; i < threads; i++) running[i] = (int)i;
    if (wanted == "reverse") std::reverse(running.begin(), running.end());
}

const std::vector<int> &next_order() {
    static std::mt19937 random(7);
    if (wanted == "shuffle") std::shuffle(running.begin(), running.end(), random);
    return running;
}

// Why thread `i`, which waits with its warp, never goes on.
std::string stuck(size_t threads, size_t i) {
    std::string text = "thread " + std::to_string(i) + " waits at " + fibers[i].what + " for the others of its warp";
    for (size_t j = i / 32 * 32; j < std::min(i / 32 * 32 + 32, threads); j++) {
        if (fibers[j].wait == Wait::Done || !strcmp(fibers[j].what, fibers[i].what)) continue;
        return text + ", but thread " + std::to_string(j) + " waits at " + fibers[j].what;
    }
    return text;
}

// Lets go on whoever all others have come to: warps first, then the block. A thread that has returned is waited for by nobody.
bool release(size_t threads) {
    bool released = false;
    for (size_t first = 0; first < threads; first += 32) {
        size_t last = std::min(first + 32, threads);
        const char *what = nullptr;
        bool all = true;
        for (size_t i = first; i < last; i++) {
            Fiber &fiber = fibers[i];
            if (fiber.wait == Wait::Done) continue;
            all = all && fiber.wait == Wait::Warp && (!what || !strcmp(what, fiber.what));
            what = fiber.what;
        }
        if (!all || !what) continue;
        unsigned alive = 0;
        for (size_t i = first; i < last; i++) {
            if (fibers[i].wait != Wait::Warp) continue;
            fibers[i].wait = Wait::None;
            alive |= 1u << fibers[i].lane;
        }
        exchanges[first / 32].alive = alive;
        released = true;
    }
    if (released) return true;
    bool any = false;
    for (size_t i = 0; i < threads; i++) {
        if (fibers[i].wait == Wait::Warp) fault(stuck(threads, i));
        any = any || fibers[i].wait == Wait::Block;
    }
    if (!any) return false;
    for (size_t i = 0; i < threads; i++) {
        if (fibers[i].wait == Wait::Block) fibers[i].wait = Wait::None;
    }
    return true;
}

void run_block(size_t threads) {
    for (size_t i = 0; i < threads; i++) prepare(fibers[i], (int)i);
    do {
        for (int i : next_order()) {
            Fiber &fiber = fibers[i];
            if (fiber.wait != Wait::None) continue;
            current = &fiber;
            emulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
            if (*(uint64_t *)fiber.stack != CANARY) fault("a thread has used up its stack");
        }
    } while (release(threads));
}

} // namespace

void wait_for(Wait wait, const char *what) {
    current->wait = wait;
    current->what = what;
    emulator_switch(&current->stack_pointer, scheduler_stack_pointer);
}

void launch(const char *name, void (*body)(void **), void **params, dim3 grid, dim3 block, size_t shared) {
    static unsigned char *memory = (unsigned char *)aligned_alloc(1024, SHARED);
    kernel_name = name;
    kernel_body = body;
    kernel_params = params;
    block_size = block;
    grid_size = grid;
    dynamic_shared = memory;
    size_t threads = (size_t)block.x * block.y * block.z;
    set_order(threads);
    if (fibers.size() < threads) fibers.resize(threads);
    if (exchanges.size() < (threads + 31) / 32) exchanges.resize((threads + 31) / 32);
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = {x, y, z};
                // What nobody wrote is NaN, within what was asked for and beyond.
                memset(memory, 0xff, std::min(SHARED, shared + 1024));
                run_block(threads);
                for (size_t i = shared; i < std::min(SHARED, shared + 1024); i++) {
                    if (memory[i] != 0xff) fault("wrote behind its shared memory");
                }
            }
        }
    }
}

std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

static void check_whole(const char *what) {
    if (exchanges[current->warp].alive != 0xffffffffu) fault(std::string(what) + " in a warp that is not whole");
}

static float half_of(unsigned pair, int high) { return __bfloat162float({(uint16_t)(high ? pair >> 16 : pair)}); }

void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    unsigned own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto slots = exchange(own, sizeof own, "mma");
    check_whole("mma");
    int group = current->lane / 4, pair = 2 * (current->lane % 4);
    for (int i = 0; i < 4; i++) {
        int row = group + (i >= 2 ? 8 : 0), column = pair + i % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; k++) {
            const unsigned *left = (const unsigned *)slots[row % 8 * 4 + k % 8 / 2];
            const unsigned *right = (const unsigned *)slots[column * 4 + k % 8 / 2];
            sum += half_of(left[(row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0)], k % 2) * half_of(right[4 + (k >= 8 ? 1 : 0)], k % 2);
        }
        d[i] += sum;
    }
}

void ldmatrix(unsigned *r, int count, const void *row, bool transposed) {
    if ((uintptr_t)row % 16 && current->lane < 8 * count) fault("ldmatrix from an address that is no multiple of 16");
    const char *names[2][2] = {{"ldmatrix.x2", "ldmatrix.x2.trans"}, {"ldmatrix.x4", "ldmatrix.x4.trans"}};
    const char *what = names[count == 4][transposed];
    auto slots = exchange(&row, sizeof row, what);
    check_whole(what);
    int group = current->lane / 4, pair = 2 * (current->lane % 4);
    for (int i = 0; i < count; i++) {
        auto element = [&](int y, int x) { return (unsigned)(*(const uint16_t **)slots[8 * i + y])[x]; };
        r[i] = transposed ? element(pair, group) | element(pair + 1, group) << 16
                          : element(group, pair) | element(group, pair + 1) << 16;
    }
    // Nobody writes to shared memory before all lanes have read it.
    wait_for(Wait::Warp, "the end of ldmatrix");
}

void cp_async_16(void *shared, const void *global, bool valid) {
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16)) fault("cp.async with an address that is no multiple of 16");
    current->copies.push_back({shared, global, valid});
}

void cp_async_commit() { current->groups.push_back(current->copies.size()); }

// Copies happen here and not when they are asked for, so that who forgets to wait reads NaN.
void cp_async_wait(int groups) {
    auto &held = current->groups;
    if ((int)held.size() <= groups) return;
    size_t done = held[held.size() - groups - 1];
    for (size_t i = 0; i < done; i++) {
        const Copy &copy = current->copies[i];
        if (copy.valid) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    current->copies.erase(current->copies.begin(), current->copies.begin() + (long)done);
    held.erase(held.begin(), held.end() - groups);
    for (size_t &end : held) end -= done;
}

} // namespace emulator
