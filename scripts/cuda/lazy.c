/* One CUDA library behind trampolines, so that a program linked with this starts where the library is not.
 *
 *   cc -O2 -fPIC -c -DLIBRARY='"libcublas.so.13"' -DABSENT=1 -DFUNCTIONS='"cublas.inc"' lazy.c
 *
 * FUNCTIONS has a line `F(0, name)` for each function, numbered upwards. Each is a jump through a slot. A slot first leads to
 * `enter`, which keeps the registers that carry arguments, lets `resolve` open the library and fill the slot, and jumps on. Where
 * the library or the function is missing, the slot gets a function that returns ABSENT, the library's own code for "not there".
 * x86-64, System V calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F(index, name) #name,
static const char *const names[] = {
#include FUNCTIONS
};
#undef F

__attribute__((visibility("hidden"))) extern void *slots[]; /* in the assembly below */

/* Where libraries are looked for once $CUDA_LAZY_PATH and the loader's own folders had none. */
static const struct {
  const char *variable, *pattern;
} places[] = {
    {"CUDA_HOME", "/lib64"},
    {"CUDA_PATH", "/lib64"},
    {"VIRTUAL_ENV", "/lib/python3*/site-packages/nvidia/cu13/lib"},
    {"CONDA_PREFIX", "/lib"},
    {0, "/usr/local/cuda/lib64"},
    {0, "/usr/local/nvidia/lib64"},
    {0, "/usr/lib/wsl/lib"},
};

static void *open_in(const char *folder) {
  char path[4096];
  if (!*folder || snprintf(path, sizeof path, "%s/" LIBRARY, folder) >= (int)sizeof path) return 0;
  return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *open_at(const char *variable, const char *pattern) {
  const char *root = variable ? getenv(variable) : "";
  char path[4096];
  if (!root || (variable && !*root) || snprintf(path, sizeof path, "%s%s", root, pattern) >= (int)sizeof path) return 0;
  glob_t found;
  void *library = 0;
  if (glob(path, 0, 0, &found) == 0) {
    for (size_t i = 0; !library && i < found.gl_pathc; i++) library = open_in(found.gl_pathv[i]);
    globfree(&found);
  }
  return library;
}

static void *open_library(void) {
  void *library = 0;
  const char *given = getenv("CUDA_LAZY_PATH"); /* folders with ':' between them */
  char *folders = given ? strdup(given) : 0, *rest = folders, *folder;
  while (!library && rest && (folder = strsep(&rest, ":"))) library = open_in(folder);
  free(folders);
  if (!library) library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL); /* LD_LIBRARY_PATH, the loader's cache */
  for (size_t i = 0; !library && i < sizeof places / sizeof *places; i++)
    library = open_at(places[i].variable, places[i].pattern);
  /* A machine without a driver is an ordinary one: the program tells of it in its own words. */
  if (!library && (strcmp(LIBRARY, "libcuda.so.1") || getenv("CUDA_LAZY_VERBOSE")))
    fprintf(stderr, "cannot load %s: name its folder in CUDA_LAZY_PATH\n", LIBRARY);
  return library;
}

static const char text[] = "the library " LIBRARY " could not be loaded";
static long absent(void) { return ABSENT; }
static const char *absent_text(void) { return text; }
static int absent_text_of_driver(int code, const char **out) {
  (void)code;
  *out = text;
  return 0;
}

static int ends_with(const char *name, const char *end) {
  size_t n = strlen(name), e = strlen(end);
  return n >= e && !strcmp(name + n - e, end);
}

/* What stands in for a function that is not there: one that gives a text gives one, as callers print it unseen. */
static void *stand_in(const char *name) {
  if (!strcmp(name, "cuGetErrorString") || !strcmp(name, "cuGetErrorName")) return (void *)absent_text_of_driver;
  if (ends_with(name, "String") || ends_with(name, "StatusName")) return (void *)absent_text;
  return (void *)absent;
}

__attribute__((used, noinline)) static void *resolve(unsigned long index) {
  static void *library;
  static int tried;
  if (!__atomic_load_n(&tried, __ATOMIC_ACQUIRE)) { /* two threads may both open it: dlopen counts */
    __atomic_store_n(&library, open_library(), __ATOMIC_RELEASE);
    __atomic_store_n(&tried, 1, __ATOMIC_RELEASE);
  }
  void *opened = __atomic_load_n(&library, __ATOMIC_ACQUIRE);
  void *function = opened ? dlsym(opened, names[index]) : 0;
  if (opened && !function) fprintf(stderr, "%s has no function %s\n", LIBRARY, names[index]);
  if (!function) function = stand_in(names[index]);
  __atomic_store_n(&slots[index], function, __ATOMIC_RELEASE);
  return function;
}

/* The index and seven registers take 64 bytes of stack, xmm0 to xmm7 128 below them; 8 more align the call. */
__asm__(
    ".text\n"
    ".type enter,@function\n"
    "enter:\n"
    " pushq %rdi\n pushq %rsi\n pushq %rdx\n pushq %rcx\n pushq %r8\n pushq %r9\n pushq %rax\n subq $136,%rsp\n"
    " movups %xmm0,(%rsp)\n movups %xmm1,16(%rsp)\n movups %xmm2,32(%rsp)\n movups %xmm3,48(%rsp)\n"
    " movups %xmm4,64(%rsp)\n movups %xmm5,80(%rsp)\n movups %xmm6,96(%rsp)\n movups %xmm7,112(%rsp)\n"
    " movq 192(%rsp),%rdi\n call resolve\n movq %rax,%r11\n"
    " movups (%rsp),%xmm0\n movups 16(%rsp),%xmm1\n movups 32(%rsp),%xmm2\n movups 48(%rsp),%xmm3\n"
    " movups 64(%rsp),%xmm4\n movups 80(%rsp),%xmm5\n movups 96(%rsp),%xmm6\n movups 112(%rsp),%xmm7\n"
    " addq $136,%rsp\n popq %rax\n popq %r9\n popq %r8\n popq %rcx\n popq %rdx\n popq %rsi\n popq %rdi\n"
    " addq $8,%rsp\n jmp *%r11\n"
#define F(index, name)                                                           \
  ".globl " #name "\n.type " #name ",@function\n" #name ": jmp *slots+8*" #index \
  "(%rip)\nfirst" #index ": pushq $" #index "\n jmp enter\n"
#include FUNCTIONS
#undef F
    ".data\n.balign 8\nslots:\n"
#define F(index, name) " .quad first" #index "\n"
#include FUNCTIONS
#undef F
    ".text\n");
