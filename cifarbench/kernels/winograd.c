/* 3x3 convolutions of stride 1 with zero padding 1 by Winograd's minimal filtering: 36 products in place of 144.
 *
 * Tiles of the maps and the filters are transformed (winograd.h: U, V, M); at each of their 36 points the tiles are
 * then a matrix V (tiles, inputs), which is multiplied with the filters' U (inputs, outputs), and the sums M are
 * transformed back. The gradient of U is V, transposed, times that of M (tiles, outputs). Products are in float,
 * whatever the maps are in.
 *
 * A matrix that a product has its columns from lies in panels of COLUMNS columns, each panel with all its rows.
 */

#include "winograd.h"

enum { NEAR = 1 << 19, SHARED = 1 << 22 }; /* bytes of tiles for a core's own cache, and for all cores' */
enum { GAP = 16 };                         /* floats after a row: powers of 2 apart, rows would share few cache lines */
enum { FEWEST = 24, PART = 8 };            /* tiles of a chunk, and those that a thread takes at a time */

#ifdef __AVX512F__
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));
enum { WIDTH = 16, ROWS = 8, COLUMNS = 32 }; /* of products in registers */
#else
typedef lanes wide;
enum { WIDTH = 8, ROWS = 4, COLUMNS = 16 };
#endif

#ifdef __AVX2__
#define LOADED(value) __asm__("" : "+v"(value)) /* once: compilers would load it anew for each row */
#else
#define LOADED(value)
#endif

static long least(long a, long b) { return a < b ? a : b; }

/* sums (ROWS, columns) = or += over `depth` steps, a's ROWS numbers, which are `row` apart, times b's columns. */
#define PRODUCTS(name, vector, count)                                                                                  \
  static void name(const float *a, long row, long step, const float *b, long next, float *sums, long next_sums,        \
                   long depth, int adds) {                                                                             \
    vector sum[ROWS][count], by[count];                                                                                \
    for (int i = 0; i < ROWS; i++)                                                                                     \
      for (int j = 0; j < count; j++)                                                                                  \
        sum[i][j] = adds ? ((const vector *)(sums + i * next_sums))[j] : (vector){0};                                  \
    for (long d = 0; d < depth; d++, a += step, b += next) {                                                           \
      for (int j = 0; j < count; j++) {                                                                                \
        by[j] = ((const vector *)b)[j];                                                                                \
        LOADED(by[j]);                                                                                                 \
      }                                                                                                                \
      for (int i = 0; i < ROWS; i++)                                                                                   \
        for (int j = 0; j < count; j++) sum[i][j] += a[i * row] * by[j];                                               \
    }                                                                                                                  \
    for (int i = 0; i < ROWS; i++)                                                                                     \
      for (int j = 0; j < count; j++) ((vector *)(sums + i * next_sums))[j] = sum[i][j];                               \
  }

PRODUCTS(products, wide, COLUMNS / WIDTH)
PRODUCTS(few_products, lanes, 1)

/* The products of up to COLUMNS columns. */
static void multiply(const float *a, long row, long step, const float *b, long next, float *sums, long next_sums,
                     long depth, long columns, int adds) {
  if (columns == COLUMNS)
    products(a, row, step, b, next, sums, next_sums, depth, adds);
  else
    for (long c = 0; c < columns; c += LANES)
      few_products(a, row, step, b + c, next, sums + c, next_sums, depth, adds);
}

/* Where a row's number in column `c` lies in panels: of COLUMNS columns, or of what is left of them. */
INLINE long panel(long c, long row, long rows, long columns) {
  long first = c / COLUMNS * COLUMNS;
  return first * rows + row * least(COLUMNS, columns - first) + c - first;
}

/* U of `weight` (outputs, 3, 3, inputs): panels of outputs, with a row for each input.
 *
 * With `turned`, that which takes an output's gradient to the input's: of (inputs, 3, 3, outputs), taps in reverse.
 */
static void transform_weight(const float *weight, float *u, long inputs, long outputs, int turned, int threads) {
  #pragma omp parallel for num_threads(threads)
  for (long input = 0; input < inputs; input++)
    for (long k = 0; k < outputs; k += LANES) {
      lanes taps[TAPS][TAPS];
      for (int tap = 0, last = TAPS * TAPS - 1; tap <= last; tap++)
        for (int l = 0; l < LANES; l++)
          taps[tap / TAPS][tap % TAPS][l] = turned ? weight[(input * TAPS * TAPS + last - tap) * outputs + k + l]
                                                   : weight[((k + l) * TAPS * TAPS + tap) * inputs + input];
      transform_taps(taps, u + panel(k, input, inputs, outputs), inputs * outputs);
    }
}

/* The gradient (outputs, 3, 3, inputs) of a weight from that of U. */
static void weight_back(const float *du, float *dweight, long inputs, long outputs, int threads) {
  #pragma omp parallel for num_threads(threads)
  for (long k = 0; k < outputs; k += LANES)
    for (long input = 0; input < inputs; input++) {
      lanes taps[TAPS][TAPS];
      taps_back(du + panel(k, input, inputs, outputs), inputs * outputs, taps);
      for (int tap = 0; tap < TAPS * TAPS; tap++)
        for (int l = 0; l < LANES; l++)
          dweight[((k + l) * TAPS * TAPS + tap) * inputs + input] = taps[tap / TAPS][tap % TAPS][l];
    }
}

static long rounded_up(long value, long step) { return (value + step - 1) / step * step; }

/* Memory for so many floats from the beginning of a cache line on; null where there is none. */
static float *floats(long count) { return aligned_alloc(64, rounded_up(count * sizeof(float), 64)); }

static long tiles_of(long images, long height, long width) {
  return images * tiles_along(height) * tiles_along(width);
}

/* Tiles at a time, a multiple of ROWS, that take about `bytes` with so many channels. */
static long chunk_of(long tiles, long channels, long bytes) {
  long fitting = bytes / (POINTS * channels * (long)sizeof(float)) / ROWS * ROWS;
  return least(fitting < FEWEST ? FEWEST : fitting, rounded_up(tiles, ROWS));
}

/* Whether this library has vectors of the kind that it was measured with. */
int has_winograd(void) {
#if defined __AVX2__ && defined __FMA__
  return 1;
#else
  return 0;
#endif
}

/* The outputs of `count` tiles from tile `first` on, at most a chunk; `v` and `m` are memory for their matrices. */
static void convolve_chunk(const number *x, const float *u, const float *bias, number *y, long first, long count,
                           long height, long width, long inputs, long outputs, float *v, long v_stride, float *m,
                           long m_stride, long (*pixel)[POINTS]) {
  long tile_stride = inputs + GAP, rows = rounded_up(count, ROWS);
  for (long t = 0; t < count; t++) {
    find_pixels(first + t, height, width, pixel[t]);
    for (long c = 0; c < inputs; c += LANES)
      transform_input(x + c, inputs, pixel[t], v + t * tile_stride + c, v_stride);
  }
  for (int p = 0; p < POINTS; p++)
    memset(v + p * v_stride + count * tile_stride, 0, (rows - count) * tile_stride * sizeof(float));
  for (long k = 0; k < outputs; k += COLUMNS) {
    long columns = least(COLUMNS, outputs - k);
    for (int p = 0; p < POINTS; p++)
      for (long t = 0; t < rows; t += ROWS)
        multiply(v + p * v_stride + t * tile_stride, tile_stride, 1, u + (p * outputs + k) * inputs, columns,
                 m + p * m_stride + t * COLUMNS, COLUMNS, inputs, columns, 0);
    for (long t = 0; t < count; t++)
      for (long c = 0; c < columns; c += LANES)
        transform_sums(m + t * COLUMNS + c, m_stride, bias ? bias + k + c : 0, y + k + c, outputs, pixel[t]);
  }
}

/* y (images, height, width, outputs) from x (..., inputs) by the weight (outputs, 3, 3, inputs) and a bias, or null.
 *
 * With `turned`, x is the gradient of an output, y that of the input, and the weight (inputs, 3, 3, outputs). `inputs`
 * and `outputs` are multiples of 8. Returns 0, or 1 where there is no memory.
 */
int winograd(const number *x, const float *weight, const float *bias, number *y, long images, long height, long width,
             long inputs, long outputs, int turned, int threads) {
  long tiles = tiles_of(images, height, width), chunk = chunk_of(tiles, inputs, NEAR), failed = 0;
  long v_stride = chunk * (inputs + GAP) + GAP, m_stride = chunk * COLUMNS + GAP;
  float *u = floats(POINTS * inputs * outputs);
  if (!u) return 1;
  transform_weight(weight, u, inputs, outputs, turned, threads);
  #pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float *v = floats(POINTS * v_stride), *m = floats(POINTS * m_stride);
    long(*pixel)[POINTS] = malloc(chunk * sizeof *pixel);
    failed = !v || !m || !pixel;
    #pragma omp for schedule(dynamic)
    for (long first = 0; first < tiles; first += chunk)
      if (!failed)
        convolve_chunk(x, u, bias, y, first, least(chunk, tiles - first), height, width, inputs, outputs, v, v_stride,
                       m, m_stride, pixel);
    free(pixel);
    free(m);
    free(v);
  }
  free(u);
  return failed != 0;
}

/* dweight (outputs, 3, 3, inputs) from x (images, height, width, inputs) and grad (..., outputs), as for `winograd`.
 *
 * All threads transform a chunk of tiles and then share its products out by points and channels, so every sum is added
 * up in the order of the tiles, whatever the number of threads.
 */
int winograd_gradient(const number *x, const number *grad, float *dweight, long images, long height, long width,
                      long inputs, long outputs, int threads) {
  long tiles = tiles_of(images, height, width), chunk = chunk_of(tiles, inputs + outputs, SHARED);
  long v_stride = chunk * inputs + GAP, dm_stride = chunk * outputs + GAP;
  long panels = (outputs + COLUMNS - 1) / COLUMNS, grain = POINTS * panels / (threads * 8) + 1;
  float *v = floats(POINTS * v_stride), *dm = floats(POINTS * dm_stride), *du = floats(POINTS * inputs * outputs);
  int failed = !v || !dm || !du;
  if (!failed) {
    #pragma omp parallel num_threads(threads)
    for (long first = 0; first < tiles; first += chunk) {
      long count = least(chunk, tiles - first);
      #pragma omp for schedule(dynamic, PART)
      for (long t = 0; t < count; t++) {
        long pixel[POINTS];
        find_pixels(first + t, height, width, pixel);
        for (long c = 0; c < inputs; c += LANES)
          transform_input(x + c, inputs, pixel, v + c * chunk + t * LANES, v_stride);
        for (long k = 0; k < outputs; k += LANES)
          transform_gradient(grad + k, outputs, pixel, dm + panel(k, t, chunk, outputs), dm_stride);
      }
      #pragma omp for schedule(dynamic, grain)
      for (long unit = 0; unit < POINTS * panels; unit++) {
        long p = unit / panels, k = unit % panels * COLUMNS, columns = least(COLUMNS, outputs - k);
        for (long c = 0; c < inputs; c += ROWS)
          multiply(v + p * v_stride + c / LANES * LANES * chunk + c % LANES, 1, LANES, dm + p * dm_stride + k * chunk,
                   columns, du + (p * outputs + k) * inputs + c * columns, columns, count, columns, first > 0);
      }
    }
    weight_back(du, dweight, inputs, outputs, threads);
  }
  free(du);
  free(dm);
  free(v);
  return failed;
}
