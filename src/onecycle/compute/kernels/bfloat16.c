/* The kernels for maps in bfloat16. They compute in float32. */
#include "bfloat16.h"
#include "vector.h"

#define NAME(kernel) kernel##_bfloat16
typedef bfloat16 Value;

typedef uint32_t Bits __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef Halves StoredHalves __attribute__((aligned(sizeof(uint16_t)), may_alias));

INLINE Vector widen_vector(const Value *from) {
    return (Vector)(__builtin_convertvector(*(const StoredHalves *)from, Bits) << 16);
}

INLINE void narrow_vector(Value *to, Vector vector) {
    Bits bits = (Bits)vector, number = (Bits)(vector == vector);
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(StoredHalves *)to = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), Halves);
}

#include "batch_norm_activation.h"
#include "max_pool.h"
#include "winograd.h"
