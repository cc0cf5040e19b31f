/* Winograd's minimal filtering F(4x4, 3x3): the transforms of LANES channels of one tile at a time.
 *
 * Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). A tile of 4x4 outputs y of a 3x3
 * convolution of stride 1 sees 6x6 inputs d. With a filter g, ' for transposed, and the product in the middle taken
 * point by point,
 *
 *     U = G g G'     V = B' d B     M = U V, summed over the input channels     y = A' M A
 *
 *          4  0 -5  0  1  0         1/4    0     0
 *          0 -4 -4  1  1  0        -1/6  -1/6  -1/6         1  1  1  1  1  0
 *     B' = 0  4 -4 -1  1  0    G = -1/6   1/6  -1/6    A' = 0  1 -1  2 -2  0
 *          0 -2 -1  2  1  0        1/24  1/12   1/6         0  1  1  4  4  0
 *          0  2 -1 -2  1  0        1/24 -1/12   1/6         0  1 -1  8 -8  1
 *          0  4  0 -5  0  1           0    0     1
 *
 * which multiplies polynomials by their values at 0, 1, -1, 2, -2 and infinity. The filter's gradient is its reverse:
 * G' (V (A dy A')) G. Below, what the rows for 1 and -1, and those for 2 and -2, share is worked out once.
 *
 * Maps are (images, height, width, channels) numbers; whatever is transformed is floats. Zeros stand beyond an image's
 * edge, so a tile is of one image, whatever lies beside it.
 */

#include <stdlib.h>

#include "numbers.h"

enum { OUT = 4, TAPS = 3, SIDE = OUT + TAPS - 1, POINTS = SIDE * SIDE, LANES = 8 };

typedef float lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(32)));
typedef uint16_t halves __attribute__((vector_size(16)));

INLINE long tiles_along(long side) { return (side + OUT - 1) / OUT; }

/* Which of all images' pixels each of a tile's 6x6 inputs is; -1 for zeros. Its 4x4 outputs are those in the middle. */
static void find_pixels(long tile, long height, long width, long pixel[POINTS]) {
  long tile_rows = tiles_along(height), tile_columns = tiles_along(width);
  long image = tile / (tile_rows * tile_columns);
  long top = tile / tile_columns % tile_rows * OUT - 1, left = tile % tile_columns * OUT - 1;
  for (int i = 0; i < SIDE; i++)
    for (int j = 0; j < SIDE; j++) {
      long h = top + i, w = left + j;
      int is_inside = h >= 0 && h < height && w >= 0 && w < width;
      pixel[i * SIDE + j] = is_inside ? (image * height + h) * width + w : -1;
    }
}

INLINE lanes load(const number *from) {
#ifdef BF16
  halves upper;
  memcpy(&upper, from, sizeof upper);
  words word = __builtin_convertvector(upper, words) << 16;
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
  halves upper = __builtin_convertvector((rounded & is_number) | (0x7fc0 & ~is_number), halves);
  memcpy(to, &upper, sizeof upper);
#else
  memcpy(to, &value, sizeof value);
#endif
}

/* B' of a row or column of six inputs. */
INLINE void input_points(lanes p[SIDE], lanes d0, lanes d1, lanes d2, lanes d3, lanes d4, lanes d5) {
  lanes even = d4 - 4 * d2, odd = d3 - 4 * d1, near = d4 - d2, far = 2 * (d3 - d1);
  p[0] = 4 * d0 - 5 * d2 + d4;
  p[1] = even + odd;
  p[2] = even - odd;
  p[3] = near + far;
  p[4] = near - far;
  p[5] = 4 * d1 - 5 * d3 + d5;
}

/* A' of six sums. */
INLINE void outputs_of(lanes y[OUT], lanes m0, lanes m1, lanes m2, lanes m3, lanes m4, lanes m5) {
  lanes sum = m1 + m2, difference = m1 - m2, far_sum = m3 + m4, far_difference = m3 - m4;
  y[0] = m0 + sum + far_sum;
  y[1] = difference + 2 * far_difference;
  y[2] = sum + 4 * far_sum;
  y[3] = difference + 8 * far_difference + m5;
}

/* A of the gradients of four outputs. */
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

/* V of a tile of maps x with so many channels: its 36 points, a stride apart. */
static void transform_input(const number *x, long channels, const long pixel[POINTS], float *to, long point_stride) {
  const lanes zero = {0};
  lanes half[SIDE][SIDE], done[SIDE];
  for (int j = 0; j < SIDE; j++) {
    lanes d[SIDE];
    for (int i = 0; i < SIDE; i++) {
      long at = pixel[i * SIDE + j];
      d[i] = at < 0 ? zero : load(x + at * channels);
    }
    input_points(half[j], d[0], d[1], d[2], d[3], d[4], d[5]);
  }
  for (int i = 0; i < SIDE; i++) {
    input_points(done, half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]);
    for (int j = 0; j < SIDE; j++) memcpy(to + (i * SIDE + j) * point_stride, &done[j], sizeof done[j]);
  }
}

/* A dy A' of a tile of the output's gradient, in the same way. */
static void transform_gradient(const number *grad, long channels, const long pixel[POINTS], float *to,
                               long point_stride) {
  const lanes zero = {0};
  lanes half[OUT][SIDE], done[SIDE];
  for (int j = 0; j < OUT; j++) {
    lanes d[OUT];
    for (int i = 0; i < OUT; i++) {
      long at = pixel[(i + 1) * SIDE + j + 1];
      d[i] = at < 0 ? zero : load(grad + at * channels);
    }
    gradient_points(half[j], d[0], d[1], d[2], d[3]);
  }
  for (int i = 0; i < SIDE; i++) {
    gradient_points(done, half[0][i], half[1][i], half[2][i], half[3][i]);
    for (int j = 0; j < SIDE; j++) memcpy(to + (i * SIDE + j) * point_stride, &done[j], sizeof done[j]);
  }
}

/* A' M A of a tile, and a bias if there is one, to y. */
static void transform_sums(const float *from, long point_stride, const float *bias, number *y, long channels,
                              const long pixel[POINTS]) {
  lanes half[SIDE][OUT], done[OUT], m[SIDE], shift = {0};
  if (bias) memcpy(&shift, bias, sizeof shift);
  for (int j = 0; j < SIDE; j++) {
    for (int i = 0; i < SIDE; i++) memcpy(&m[i], from + (i * SIDE + j) * point_stride, sizeof m[i]);
    outputs_of(half[j], m[0], m[1], m[2], m[3], m[4], m[5]);
  }
  for (int i = 0; i < OUT; i++) {
    outputs_of(done, half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]);
    for (int j = 0; j < OUT; j++) {
      long at = pixel[(i + 1) * SIDE + j + 1];
      if (at >= 0) store(y + at * channels, done[j] + shift);
    }
  }
}

/* U of filters. */
static void transform_taps(const lanes taps[TAPS][TAPS], float *to, long point_stride) {
  lanes half[TAPS][SIDE], done[SIDE];
  for (int j = 0; j < TAPS; j++) tap_points(half[j], taps[0][j], taps[1][j], taps[2][j]);
  for (int i = 0; i < SIDE; i++) {
    tap_points(done, half[0][i], half[1][i], half[2][i]);
    for (int j = 0; j < SIDE; j++) memcpy(to + (i * SIDE + j) * point_stride, &done[j], sizeof done[j]);
  }
}

/* G' dU G, the gradients of filters. */
static void taps_back(const float *from, long point_stride, lanes taps[TAPS][TAPS]) {
  lanes half[SIDE][TAPS], p[SIDE];
  for (int j = 0; j < SIDE; j++) {
    for (int i = 0; i < SIDE; i++) memcpy(&p[i], from + (i * SIDE + j) * point_stride, sizeof p[i]);
    taps_of(half[j], p[0], p[1], p[2], p[3], p[4], p[5]);
  }
  for (int i = 0; i < TAPS; i++)
    taps_of(taps[i], half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]);
}
