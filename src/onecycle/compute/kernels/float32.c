/* The kernels for maps in float32. */
#include "vector.h"

#define NAME(kernel) kernel##_float32
typedef float Value;

INLINE float widen(Value value) { return value; }
INLINE Value narrow(float value) { return value; }
INLINE Vector widen_vector(const Value *from) { return *(const Stored *)from; }
INLINE void narrow_vector(Value *to, Vector vector) { *(Stored *)to = vector; }

#include "batch_norm_activation.h"
#include "max_pool.h"
#include "winograd.h"
