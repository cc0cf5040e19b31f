/* 3x3 convolutions of stride 1 with zero padding 1 by Winograd's minimal filtering: 36 products for 144.
 *
 * Tiles of the maps and the filters are transformed (tiles.h); at each of their 36 points the tiles are then one matrix
 * (tiles, inputs), which is multiplied with the filters' (inputs, outputs), and the sums are transformed back. For the
 * weight gradient it is the inputs' matrix, transposed, with that of the output's gradient (tiles, outputs). Products
 * are in float, whatever the maps are in.
 *
 * What a product has its columns from lies in panels of COLUMNS columns, each panel with all its rows.
 */

#include "tiles.h"

enum { NEAR = 1 << 19, SHARED = 1 << 22 }; /* bytes of transforms for a core's own cache, and for all cores' */
enum { GAP = 16 };                         /* floats after a row: powers of 2 apart, rows would share few cache lines */
enum { PART = 8 };                         /* tiles */

#ifdef __AVX512F__
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));
enum { WIDTH = 16, ROWS = 8, COLUMNS = 32 }; /* of products in registers */
#else
typedef lanes wide;
enum { WIDTH = 8, ROWS = 4, COLUMNS = 16 };
#endif

/* sums (ROWS, columns) = or += over `depth` steps, a's ROWS numbers, which are `row` apart, times b's columns. */
#define PRODUCTS(name, vector, count)                                                                                  \
  static void name(const float *a, long row, long step, const float *b, long next, float *sums, long next_sums,        \
                   long depth, int adds) {                                                                             \
    vector sum[ROWS][count], by[count];                                                                                \
    for (int i = 0; i < ROWS; i++)                                                                                     \
      for (int j = 0; j < count; j++)                                                                                  \
        sum[i][j] = adds ? ((const vector *)(sums + i * next_sums))[j] : (vector){0};                                  \
    for (long d = 0; d < depth; d++, a += step, b += next) {                                                           \
      for (int j = 0; j < count; j++) by[j] = ((const vector *)b)[j];                                                  \
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

/* Where channel `c` of a panel's row begins: COLUMNS columns, or what is left of them, lie together for all rows. */
INLINE long panel(long c, long row, long rows, long columns) {
  long first = c / COLUMNS * COLUMNS;
  return first * rows + row * least(COLUMNS, columns - first) + c - first;
}

/* The transformed filters of `weight` (outputs, 3, 3, inputs): panels of outputs, with a row for each input.
 *
 * With `turned`, those that take an output's gradient to the input's: of (inputs, 3, 3, outputs), taps in reverse.
 */
static void transform_filters(const float *weight, float *filters, long inputs, long outputs, int turned, int threads) {
  #pragma omp parallel for num_threads(threads)
  for (long row = 0; row < inputs; row++)
    for (long k = 0; k < outputs; k += LANES) {
      lanes taps[TAPS][TAPS];
      for (int tap = 0, last = TAPS * TAPS - 1; tap <= last; tap++)
        for (int l = 0; l < LANES; l++)
          taps[tap / TAPS][tap % TAPS][l] = turned ? weight[(row * TAPS * TAPS + last - tap) * outputs + k + l]
                                                   : weight[((k + l) * TAPS * TAPS + tap) * inputs + row];
      transform_taps(taps, filters + panel(k, row, inputs, outputs), inputs * outputs);
    }
}

/* The gradient (outputs, 3, 3, inputs) of a weight from that of the transformed filters. */
static void filters_back(const float *dfilters, float *dweight, long inputs, long outputs, int threads) {
  #pragma omp parallel for num_threads(threads)
  for (long k = 0; k < outputs; k += LANES)
    for (long row = 0; row < inputs; row++) {
      lanes taps[TAPS][TAPS];
      taps_back(dfilters + panel(k, row, inputs, outputs), inputs * outputs, taps);
      for (int tap = 0; tap < TAPS * TAPS; tap++)
        for (int l = 0; l < LANES; l++)
          dweight[((k + l) * TAPS * TAPS + tap) * inputs + row] = taps[tap / TAPS][tap % TAPS][l];
    }
}

/* Tiles at a time, a multiple of ROWS, whose transforms take about `bytes`. */
static long chunk_of(long tiles, long channels, long bytes) {
  long fitting = bytes / (POINTS * channels * (long)sizeof(float)) / ROWS * ROWS;
  long most = (tiles + ROWS - 1) / ROWS * ROWS;
  return least(fitting < ROWS ? ROWS : fitting, most);
}

/* Whether this library's vectors are those that it was measured with. */
int has_winograd(void) {
#if defined __AVX2__ && defined __FMA__
  return 1;
#else
  return 0;
#endif
}

/* y (images, height, width, outputs) from x (..., inputs) by the weight (outputs, 3, 3, inputs) and a bias, or null.
 *
 * With `turned`, x is the gradient of an output, y that of the input, and the weight (inputs, 3, 3, outputs). `inputs`
 * and `outputs` are multiples of 8. Returns 0, or 1 where there is no memory.
 */
int winograd(const number *x, const float *weight, const float *bias, number *y, long images, long height, long width,
             long inputs, long outputs, int turned, int threads) {
  tiling s = tile(images, height, width);
  long chunk = chunk_of(s.tiles, inputs, NEAR), chunks = (s.tiles + chunk - 1) / chunk, failed = 0;
  long row = inputs + GAP, next = chunk * row + GAP, next_sums = chunk * COLUMNS + GAP;
  float *filters = malloc(POINTS * inputs * outputs * sizeof(float));
  if (!filters) return 1;
  transform_filters(weight, filters, inputs, outputs, turned, threads);
  #pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float *values = malloc(POINTS * (next + next_sums) * sizeof(float)), *sums = values + POINTS * next;
    long(*place)[POINTS] = malloc(chunk * sizeof *place);
    failed = !values || !place;
    #pragma omp for schedule(dynamic)
    for (long part = 0; part < chunks; part++) {
      if (failed) continue;
      long first = part * chunk, count = least(chunk, s.tiles - first), rows = (count + ROWS - 1) / ROWS * ROWS;
      for (long t = 0; t < count; t++) {
        places(&s, first + t, place[t]);
        for (long c = 0; c < inputs; c += LANES)
          transform_input(x + c, inputs, place[t], values + t * row + c, next);
      }
      for (int p = 0; p < POINTS; p++)
        memset(values + p * next + count * row, 0, (rows - count) * row * sizeof(float));
      for (long k = 0; k < outputs; k += COLUMNS) {
        long columns = least(COLUMNS, outputs - k);
        for (int p = 0; p < POINTS; p++)
          for (long t = 0; t < rows; t += ROWS)
            multiply(values + p * next + t * row, row, 1, filters + (p * outputs + k) * inputs, columns,
                     sums + p * next_sums + t * COLUMNS, COLUMNS, inputs, columns, 0);
        for (long t = 0; t < count; t++)
          for (long c = 0; c < columns; c += LANES)
            transform_outputs(sums + t * COLUMNS + c, next_sums, bias ? bias + k + c : 0, y + k + c, outputs, place[t]);
      }
    }
    free(place);
    free(values);
  }
  free(filters);
  return failed != 0;
}

/* dweight (outputs, 3, 3, inputs) from x (images, height, width, inputs) and grad (..., outputs), as for `winograd`.
 *
 * All threads transform a chunk of tiles and then share its products out by points and channels, so every sum is added
 * up in the order of the tiles, whatever the number of threads.
 */
int winograd_gradient(const number *x, const number *grad, float *dweight, long images, long height, long width,
                      long inputs, long outputs, int threads) {
  tiling s = tile(images, height, width);
  long chunk = chunk_of(s.tiles, inputs + outputs, SHARED), strips = (outputs + COLUMNS - 1) / COLUMNS;
  long next = chunk * inputs + GAP, next_grads = chunk * outputs + GAP, grain = POINTS * strips / (threads * 8) + 1;
  float *values = malloc(POINTS * (next + next_grads + inputs * outputs) * sizeof(float));
  if (!values) return 1;
  float *grads = values + POINTS * next, *dfilters = grads + POINTS * next_grads;
  #pragma omp parallel num_threads(threads)
  for (long first = 0; first < s.tiles; first += chunk) {
    long count = least(chunk, s.tiles - first);
    #pragma omp for schedule(dynamic, PART)
    for (long t = 0; t < count; t++) {
      long place[POINTS];
      places(&s, first + t, place);
      for (long c = 0; c < inputs; c += LANES)
        transform_input(x + c, inputs, place, values + c * chunk + t * LANES, next);
      for (long k = 0; k < outputs; k += LANES)
        transform_gradient(grad + k, outputs, place, grads + panel(k, t, chunk, outputs), next_grads);
    }
    #pragma omp for schedule(dynamic, grain)
    for (long unit = 0; unit < POINTS * strips; unit++) {
      long p = unit / strips, k = unit % strips * COLUMNS, columns = least(COLUMNS, outputs - k);
      for (long c = 0; c < inputs; c += ROWS) {
        const float *of = values + p * next + c / LANES * LANES * chunk + c % LANES;
        multiply(of, 1, LANES, grads + p * next_grads + k * chunk, columns,
                 dfilters + (p * outputs + k) * inputs + c * columns, columns, count, columns, first > 0);
      }
    }
  }
  filters_back(dfilters, dweight, inputs, outputs, threads);
  free(values);
  return 0;
}
