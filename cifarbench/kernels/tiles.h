/* Tiles of feature maps, and the transforms of Winograd's minimal filtering F(4x4, 3x3).
 *
 * Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). A tile of 4x4 outputs of a 3x3
 * convolution of stride 1 sees 6x6 inputs d: with filter g the outputs are A'[(GgG') (B'dB)]A, where the product in the
 * middle goes point by point.
 *
 * A side that is no multiple of 4 would leave the last tiles half empty, so along it four images are put together, each
 * with a row (or column) of zeros after it, which is a whole number of tiles:
 *
 *     side 5       image 0 0 image 1 0 image 2 0 image 3 0       six tiles where single images need eight
 *
 * Maps are (images, height, width, channels) numbers; whatever is transformed is floats.
 */

#include <stdlib.h>

#include "numbers.h"

enum { OUT = 4, TAPS = 3, SIDE = OUT + TAPS - 1, POINTS = SIDE * SIDE, LANES = 8 };

typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(32)));
typedef uint16_t halves __attribute__((vector_size(16)));
static long least(long a, long b) { return a < b ? a : b; }

typedef struct {
  long images, height, width;
  long down, across;               /* images of a block */
  long cell_height, cell_width;    /* of an image with its zeros */
  long tile_rows, tile_columns;    /* of a block */
  long tiles;                      /* of all */
} tiling;

static tiling tile(long images, long height, long width) {
  tiling s = {.images = images, .height = height, .width = width};
  s.down = height % OUT ? OUT : 1;
  s.across = width % OUT ? OUT : 1;
  s.cell_height = height + (s.down > 1);
  s.cell_width = width + (s.across > 1);
  s.tile_rows = s.down * s.cell_height / OUT;
  s.tile_columns = s.across * s.cell_width / OUT;
  long block = s.down * s.across;
  s.tiles = (images + block - 1) / block * s.tile_rows * s.tile_columns;
  return s;
}

/* Which of all images' pixels each of a tile's 6x6 inputs is; -1 for zeros. Its 4x4 outputs are those in the middle. */
static void places(const tiling *s, long tile, long place[POINTS]) {
  long block = tile / (s->tile_rows * s->tile_columns), row = tile / s->tile_columns % s->tile_rows;
  long column = tile % s->tile_columns;
  for (int i = 0; i < SIDE; i++)
    for (int j = 0; j < SIDE; j++) {
      long y = row * OUT + i - 1, x = column * OUT + j - 1;
      long image = (block * s->down + y / s->cell_height) * s->across + x / s->cell_width;
      long h = y % s->cell_height, w = x % s->cell_width;
      int is_inside = y >= 0 && y < s->down * s->cell_height && x >= 0 && x < s->across * s->cell_width;
      int is_pixel = is_inside && h < s->height && w < s->width && image < s->images;
      place[i * SIDE + j] = is_pixel ? (image * s->height + h) * s->width + w : -1;
    }
}

INLINE lanes load(const number *from) {
#ifdef BF16
  halves half;
  memcpy(&half, from, sizeof half);
  words word = __builtin_convertvector(half, words) << 16;
  return (lanes)word;
#else
  lanes value;
  memcpy(&value, from, sizeof value);
  return value;
#endif
}

INLINE void store(number *to, lanes value) {
#ifdef BF16
  words bits = (words)value;
  words is_number = (words)(value == value);
  words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  halves half = __builtin_convertvector((rounded & is_number) | (0x7fc0 & ~is_number), halves);
  memcpy(to, &half, sizeof half);
#else
  memcpy(to, &value, sizeof value);
#endif
}

/* B' of six inputs: their column (or row) at six points. */
INLINE void input_points(lanes p[SIDE], lanes d0, lanes d1, lanes d2, lanes d3, lanes d4, lanes d5) {
  lanes even = d4 - 4 * d2, odd = d3 - 4 * d1, near = d4 - d2, far = 2 * (d3 - d1);
  p[0] = 4 * d0 - 5 * d2 + d4;
  p[1] = even + odd;
  p[2] = even - odd;
  p[3] = near + far;
  p[4] = near - far;
  p[5] = 4 * d1 - 5 * d3 + d5;
}

/* A' of the sums at six points. */
INLINE void outputs_of(lanes y[OUT], lanes m0, lanes m1, lanes m2, lanes m3, lanes m4, lanes m5) {
  lanes sum = m1 + m2, difference = m1 - m2, far_sum = m3 + m4, far_difference = m3 - m4;
  y[0] = m0 + sum + far_sum;
  y[1] = difference + 2 * far_difference;
  y[2] = sum + 4 * far_sum;
  y[3] = difference + 8 * far_difference + m5;
}

/* A of four outputs' gradients. */
INLINE void gradient_points(lanes p[SIDE], lanes y0, lanes y1, lanes y2, lanes y3) {
  lanes even = y0 + y2, odd = y1 + y3, far_even = y0 + 4 * y2, far_odd = 2 * y1 + 8 * y3;
  p[0] = y0;
  p[1] = even + odd;
  p[2] = even - odd;
  p[3] = far_even + far_odd;
  p[4] = far_even - far_odd;
  p[5] = y3;
}

/* G of three taps. */
INLINE void tap_points(lanes p[SIDE], lanes g0, lanes g1, lanes g2) {
  lanes even = (g0 + g2) / 6, odd = g1 / 6, far_even = g0 / 24 + g2 / 6, far_odd = g1 / 12;
  p[0] = g0 / 4;
  p[1] = -even - odd;
  p[2] = odd - even;
  p[3] = far_even + far_odd;
  p[4] = far_even - far_odd;
  p[5] = g2;
}

/* G' of the gradients at six points. */
INLINE void taps_of(lanes g[TAPS], lanes p0, lanes p1, lanes p2, lanes p3, lanes p4, lanes p5) {
  lanes near = (p1 + p2) / 6, far = p3 + p4;
  g[0] = p0 / 4 - near + far / 24;
  g[1] = (p2 - p1) / 6 + (p3 - p4) / 12;
  g[2] = far / 6 - near + p5;
}

/* B'dB of LANES channels of a tile, of maps of `channels`: its 36 numbers, `next` apart. */
static void transform_input(const number *x, long channels, const long place[POINTS], float *to, long next) {
  const lanes zero = {0};
  lanes half[SIDE][SIDE], done[SIDE];
  for (int j = 0; j < SIDE; j++) {
    lanes d[SIDE];
    for (int i = 0; i < SIDE; i++) {
      long pixel = place[i * SIDE + j];
      d[i] = pixel < 0 ? zero : load(x + pixel * channels);
    }
    input_points(half[j], d[0], d[1], d[2], d[3], d[4], d[5]);
  }
  for (int i = 0; i < SIDE; i++) {
    input_points(done, half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]);
    for (int j = 0; j < SIDE; j++) memcpy(to + (i * SIDE + j) * next, &done[j], sizeof done[j]);
  }
}

/* AdA' of LANES channels of a tile of the output's gradient, in the same way. */
static void transform_gradient(const number *grad, long channels, const long place[POINTS], float *to, long next) {
  const lanes zero = {0};
  lanes half[OUT][SIDE], done[SIDE];
  for (int j = 0; j < OUT; j++) {
    lanes d[OUT];
    for (int i = 0; i < OUT; i++) {
      long pixel = place[(i + 1) * SIDE + j + 1];
      d[i] = pixel < 0 ? zero : load(grad + pixel * channels);
    }
    gradient_points(half[j], d[0], d[1], d[2], d[3]);
  }
  for (int i = 0; i < SIDE; i++) {
    gradient_points(done, half[0][i], half[1][i], half[2][i], half[3][i]);
    for (int j = 0; j < SIDE; j++) memcpy(to + (i * SIDE + j) * next, &done[j], sizeof done[j]);
  }
}

/* A'mA of LANES channels of a tile's sums m, which are `next` apart, with a bias if there is one. */
static void transform_outputs(const float *from, long next, const float *bias, number *y, long channels,
                              const long place[POINTS]) {
  lanes half[SIDE][OUT], done[OUT], m[SIDE], shift = {0};
  if (bias) memcpy(&shift, bias, sizeof shift);
  for (int j = 0; j < SIDE; j++) {
    for (int i = 0; i < SIDE; i++) memcpy(&m[i], from + (i * SIDE + j) * next, sizeof m[i]);
    outputs_of(half[j], m[0], m[1], m[2], m[3], m[4], m[5]);
  }
  for (int i = 0; i < OUT; i++) {
    outputs_of(done, half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]);
    for (int j = 0; j < OUT; j++) {
      long pixel = place[(i + 1) * SIDE + j + 1];
      if (pixel >= 0) store(y + pixel * channels, done[j] + shift);
    }
  }
}

/* GgG' of LANES filters g of 3x3 taps. */
static void transform_taps(const lanes taps[TAPS][TAPS], float *to, long next) {
  lanes half[TAPS][SIDE], done[SIDE];
  for (int j = 0; j < TAPS; j++) tap_points(half[j], taps[0][j], taps[1][j], taps[2][j]);
  for (int i = 0; i < SIDE; i++) {
    tap_points(done, half[0][i], half[1][i], half[2][i]);
    for (int j = 0; j < SIDE; j++) memcpy(to + (i * SIDE + j) * next, &done[j], sizeof done[j]);
  }
}

/* G'uG of LANES filters' gradients u, which are `next` apart. */
static void taps_back(const float *from, long next, lanes taps[TAPS][TAPS]) {
  lanes half[SIDE][TAPS], p[SIDE];
  for (int j = 0; j < SIDE; j++) {
    for (int i = 0; i < SIDE; i++) memcpy(&p[i], from + (i * SIDE + j) * next, sizeof p[i]);
    taps_of(half[j], p[0], p[1], p[2], p[3], p[4], p[5]);
  }
  for (int i = 0; i < TAPS; i++)
    taps_of(taps[i], half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]);
}
