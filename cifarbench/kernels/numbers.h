/* The numbers in feature maps: bfloat16 where BF16 is defined, and else float. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef BF16
typedef uint16_t number;

INLINE float widen(number value) {
  uint32_t bits = (uint32_t)value << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

/* To the nearest, ties to even; what is no number stays none. */
INLINE number narrow(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return value == value ? (number)rounded : 0x7fc0;
}
#else
typedef float number;

INLINE float widen(number value) { return value; }
INLINE number narrow(float value) { return value; }
#endif
