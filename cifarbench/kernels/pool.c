/* 2x2 max pooling on feature maps (images, height, width, channels) in memory, as torch's channels_last has them. */

#include "numbers.h"

/* The largest of each 2x2 window, and which of the four it was. An odd last row or column is left out, or, with `edge`,
 * has windows of its own, which are cut off. */
void pool_forward(const number *restrict x, number *restrict y, uint8_t *restrict which, long images, long height,
                  long width, long channels, int edge, int threads) {
  long tall = (height + edge) / 2, wide = (width + edge) / 2;
  #pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < images * tall; line++) {
    long above = line % tall * 2;
    const number *upper = x + (line / tall * height + above) * width * channels;
    for (long column = 0; column < wide; column++) {
      int right = 2 * column + 1 < width, below = above + 1 < height, inside[3] = {right, below, right & below};
      const number *corner = upper + 2 * column * channels, *next = corner + below * width * channels;
      const number *others[3] = {corner + right * channels, next, next + right * channels};
      number *out = y + (line * wide + column) * channels;
      uint8_t *place = which + (line * wide + column) * channels;
      for (long c = 0; c < channels; c++) {
        float best = widen(corner[c]);
        int index = 0;
        for (int k = 0; k < 3; k++) {
          float value = widen(others[k][c]);
          int is_larger = inside[k] & ((value > best) | (value != value));
          best = is_larger ? value : best;
          index = is_larger ? k + 1 : index;
        }
        out[c] = narrow(best);
        place[c] = (uint8_t)index;
      }
    }
  }
}

/* The gradient of pool_forward: each number to where the largest was, zero elsewhere. */
void pool_backward(const number *restrict dy, const uint8_t *restrict which, number *restrict dx, long images,
                   long height, long width, long channels, int edge, int threads) {
  long tall = (height + edge) / 2, wide = (width + edge) / 2;
  #pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < images * tall; line++) {
    long above = line % tall * 2;
    number *upper = dx + (line / tall * height + above) * width * channels;
    for (long column = 0; column < wide; column++) {
      const number *grad = dy + (line * wide + column) * channels;
      const uint8_t *place = which + (line * wide + column) * channels;
      for (int k = 0; k < 4; k++) {
        if (above + k / 2 >= height || 2 * column + k % 2 >= width) continue;
        number *out = upper + (k / 2 * width + 2 * column + k % 2) * channels;
        for (long c = 0; c < channels; c++) out[c] = place[c] == k ? grad[c] : 0;
      }
    }
    if (2 * wide < width)
      for (int row = 0; row < 2; row++)
        memset(upper + (row * width + width - 1) * channels, 0, channels * sizeof *dx);
    if (2 * tall < height && line % tall == tall - 1)
      memset(upper + 2 * width * channels, 0, width * channels * sizeof *dx);
  }
}
