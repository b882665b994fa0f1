// The functions of cuRAND (libcurand.so.10) that opening a device calls. Random numbers are not made with it.
#define API extern "C" __attribute__((visibility("default"))) int

static int generator;
API curandCreateGenerator(void **out, int) { return *out = &generator, 0; }
API curandDestroyGenerator(void *) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
API curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
API curandSetStream(void *, void *) { return 0; }
