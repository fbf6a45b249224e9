/* bfloat16 is the upper half of a float32. */
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

static inline float widen(bfloat16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* Round to nearest, ties to even. Rounding could turn a NaN into a number, so NaN is handled separately. */
static inline bfloat16 narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bfloat16 rounded = (bfloat16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return value != value ? 0x7fc0 : rounded;
}
