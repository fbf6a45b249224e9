/* Vectors of float32, as long as the CPU's registers. gcc and clang turn operators on them into instructions. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) /* the compiler removes branches on constant arguments */

/* A matrix product adds to `ROWS` rows of `WIDTH` vectors at once, which fill the registers. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 12, WIDTH = 2 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6, WIDTH = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 6, WIDTH = 4 };
#else
enum { LANES = 4, ROWS = 6, WIDTH = 2 };
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef Vector Stored __attribute__((aligned(sizeof(float)), may_alias)); /* at any place in an array of floats */
