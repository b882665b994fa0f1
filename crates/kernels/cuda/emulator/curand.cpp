// The functions of cuRAND (libcurand.so.10) that opening a device calls. Random numbers are not made with it: who asks for some
// gets an error.
#include <cstddef>
#include <cstdio>

#define API extern "C" __attribute__((visibility("default"))) int

static int generator;
API curandCreateGenerator(void **out, int) { return *out = &generator, 0; }
API curandDestroyGenerator(void *) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
API curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
API curandSetStream(void *, void *) { return 0; }

static int none(const char *name) { return fprintf(stderr, "emulator: %s makes no numbers\n", name), 201; } // launch failure
API curandGenerate(void *, unsigned *, size_t) { return none("curandGenerate"); }
API curandGenerateUniform(void *, float *, size_t) { return none("curandGenerateUniform"); }
API curandGenerateUniformDouble(void *, double *, size_t) { return none("curandGenerateUniformDouble"); }
API curandGenerateNormal(void *, float *, size_t, float, float) { return none("curandGenerateNormal"); }
API curandGenerateNormalDouble(void *, double *, size_t, double, double) { return none("curandGenerateNormalDouble"); }
