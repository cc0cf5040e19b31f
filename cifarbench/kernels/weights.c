/* The weight gradient of a 3x3 convolution of stride 1 with zero padding 1, on AMX, the matrix unit of newer Xeons.
 *
 * The gradient of the weight at tap (i, j) is the product of two matrices, output gradients (channels, pixels) and the
 * input's pixels one tap away (pixels, channels), and a tile product takes 32 pixels at a time. Small maps have no row
 * of 32, so the images of a group are put side by side, each with a column of zeros after it:
 *
 *     row 0   image 0, 0, image 1, 0, ...      a pixel's neighbour is then at a fixed distance in this one long row
 *     row 1   image 0, 0, image 1, 0, ...      of pixels, and is a zero where it lies outside its image
 *
 * Above and below there are no zeros: a tap that looks up leaves out the first row, one that looks down the last.
 *
 *     grads   tiles of 16 channels by 32 pixels
 *     pairs   tiles of 16 pairs of neighbouring pixels by 16 channels, for pairs that begin at an even and, once more,
 *             at an odd pixel; slot s holds the pair from pixel 2 s - 2, or 2 s - 1
 *     sums    tiles of 16 by 16 floats, output by input channels, for each tap
 */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined BF16 && defined __AMX_BF16__ && defined __AVX512BW__ && defined __AVX512VL__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "numbers.h"

enum { TILE = 16, DEPTH = 32, TAPS = 9, SUMS = TILE * TILE, LEAST = 2048, MOST = 4096, CACHE = 1 << 21 };

/* Whether this process may use the tiles: Linux lets it once it has asked (ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA). */
int has_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

typedef struct {
  long images, height, width, inputs, outputs; /* of the convolution */
  long together, row, pixels;                  /* images side by side, pixels of a long row, and of all rows */
  long in_blocks, out_blocks;                  /* of 16 channels, even numbers */
} shape;

static long rounded_up(long value, long step) { return (value + step - 1) / step * step; }

/* Groups of images, as many as threads or a multiple of it, of about as many pixels as fit into a core's cache. */
static long grouping(shape *s, int threads) {
  long fitting = CACHE / (long)sizeof(number) / (2 * s->inputs + s->outputs);
  long pixels = fitting < LEAST ? LEAST : fitting > MOST ? MOST : fitting;
  long most = pixels / (s->height * (s->width + 1));
  long groups = rounded_up((s->images + (most > 1 ? most : 1) - 1) / (most > 1 ? most : 1), threads);
  s->together = (s->images + groups - 1) / groups;
  s->row = rounded_up(s->together * (s->width + 1), DEPTH);
  s->pixels = s->height * s->row;
  s->in_blocks = rounded_up(s->inputs, 2 * TILE) / TILE;
  s->out_blocks = s->outputs / TILE;
  return groups;
}

/* For each pixel of a group, which of the images' pixels it is, counted from the first image; -1 for zeros. */
static void places(const shape *s, long images, int32_t *place) {
  for (long h = 0; h < s->height; h++)
    for (long f = 0; f < s->row; f++) {
      long image = f / (s->width + 1), w = f % (s->width + 1);
      int is_zero = image >= images || w == s->width;
      place[h * s->row + f] = is_zero ? -1 : (int32_t)((image * s->height + h) * s->width + w);
    }
  place[s->pixels] = -1;
}

/* 16 channels of two pixels, channel by channel: the first in the lower half of each 32 bits. */
static inline __m512i pair(const number *map, long channels, int32_t first, int32_t second, __mmask16 present) {
  __m256i low = _mm256_maskz_loadu_epi16(first < 0 ? 0 : present, map + (first < 0 ? 0 : first * channels));
  __m256i high = _mm256_maskz_loadu_epi16(second < 0 ? 0 : present, map + (second < 0 ? 0 : second * channels));
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

/* The input's pairs of both parities. */
static void pack_input(const shape *s, const number *x, const int32_t *place, uint32_t *pairs) {
  long slots = s->pixels / 2 + 2;
  for (long block = 0; block < s->in_blocks; block++) {
    long left = s->inputs - block * TILE;
    __mmask16 present = left >= TILE ? 0xffff : left > 0 ? (__mmask16)((1 << left) - 1) : 0;
    const number *map = x + (left > 0 ? block * TILE : 0);
    uint32_t *even = pairs + block * slots * TILE, *odd = even + s->in_blocks * slots * TILE;
    _mm512_storeu_si512(even, _mm512_setzero_si512());
    _mm512_storeu_si512(odd, pair(map, s->inputs, -1, place[0], present));
    for (long p = 0; p < s->pixels; p += 2) {
      long slot = (p / 2 + 1) * TILE;
      int32_t after = p + 2 < s->pixels ? place[p + 2] : -1;
      _mm512_storeu_si512(even + slot, pair(map, s->inputs, place[p], place[p + 1], present));
      _mm512_storeu_si512(odd + slot, pair(map, s->inputs, place[p + 1], after, present));
    }
    _mm512_storeu_si512(even + (slots - 1) * TILE, _mm512_setzero_si512());
    _mm512_storeu_si512(odd + (slots - 1) * TILE, _mm512_setzero_si512());
  }
}

/* Rows of 16 words to columns, by exchanging ever larger halves. */
static inline void transpose(__m512i rows[TILE]) {
  const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int step = 1; step < TILE; step *= 2) {
    __mmask16 high = _mm512_test_epi32_mask(count, _mm512_set1_epi32(step));
    __m512i swapped = _mm512_xor_si512(count, _mm512_set1_epi32(step));
    for (int first = 0; first < TILE; first++)
      if (!(first & step)) {
        __m512i a = rows[first], b = rows[first + step];
        rows[first] = _mm512_mask_permutexvar_epi32(a, high, swapped, b);
        rows[first + step] = _mm512_mask_permutexvar_epi32(b, (__mmask16)~high, swapped, a);
      }
  }
}

/* The gradients' tiles: a row of 32 pixels for each of 16 channels. */
static void pack_gradient(const shape *s, const number *grad, const int32_t *place, uint32_t *grads) {
  for (long p = 0; p < s->pixels; p += DEPTH)
    for (long block = 0; block < s->out_blocks; block++) {
      __m512i rows[TILE];
      uint32_t *tile = grads + (block * s->pixels + p) * TILE / 2;
      #pragma GCC unroll 16
      for (int k = 0; k < TILE; k++)
        rows[k] = pair(grad + block * TILE, s->outputs, place[p + 2 * k], place[p + 2 * k + 1], 0xffff);
      transpose(rows);
      #pragma GCC unroll 16
      for (int k = 0; k < TILE; k++) _mm512_storeu_si512(tile + k * TILE, rows[k]);
    }
}

static void use_tiles(void) {
  struct { uint8_t palette, start, zeros[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
  for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = TILE;
  __asm__ volatile("" : : "r"(&config) : "memory"); /* some compilers' intrinsic says that it reads 8 bytes alone */
  _tile_loadconfig(&config);
}

/* Add one tap's products for 32 by 32 channels: the sums of two blocks of outputs, each with two of inputs. */
static inline void multiply(const uint32_t *grads, long next_grads, const uint32_t *pairs, long next_pairs, long from,
                            long to, long offset, float *sums, long next_sums) {
  __asm__ volatile("" : : : "memory"); /* nor do tile loads say that they read what was stored before */
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + SUMS, 64);
  _tile_loadd(2, sums + next_sums, 64);
  _tile_loadd(3, sums + next_sums + SUMS, 64);
  for (long p = from; p < to; p += DEPTH) {
    const uint32_t *g = grads + p * TILE / 2, *x = pairs + (p / 2 + offset) * TILE;
    _tile_loadd(4, g, 64);
    _tile_loadd(6, x, 64);
    _tile_loadd(7, x + next_pairs, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, g + next_grads, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + SUMS, 64);
  _tile_stored(2, sums + next_sums, 64);
  _tile_stored(3, sums + next_sums + SUMS, 64);
}

static void add_group(const shape *s, const uint32_t *grads, const uint32_t *pairs, float *sums) {
  long slots = s->pixels / 2 + 2, next_grads = s->pixels * TILE / 2, next_pairs = slots * TILE;
  for (long in = 0; in < s->in_blocks; in += 2)
    for (long out = 0; out < s->out_blocks; out += 2)
      for (int tap = 0; tap < TAPS; tap++) {
        long up = tap / 3 == 0 ? s->row : 0, down = tap / 3 == 2 ? s->row : 0;
        /* one pixel to the left is an odd pair that begins one slot earlier */
        long offset = (tap / 3 - 1) * s->row / 2 + (tap % 3 == 0 ? 0 : 1);
        const uint32_t *parity = pairs + (tap % 3 == 1 ? 0 : s->in_blocks * next_pairs);
        multiply(grads + out * next_grads, next_grads, parity + in * next_pairs, next_pairs, up, s->pixels - down,
                 offset, sums + ((tap * s->in_blocks + in) * s->out_blocks + out) * SUMS, s->out_blocks * SUMS);
      }
}

/* dweight (outputs, 3, 3, inputs) floats from x (images, height, width, inputs) and grad (..., outputs).
 *
 * `outputs` is a multiple of 32. Returns 0, or 1 where there is no memory.
 */
int weight_gradient(const number *x, const number *grad, float *dweight, long images, long height, long width,
                    long inputs, long outputs, int threads) {
  shape s = {.images = images, .height = height, .width = width, .inputs = inputs, .outputs = outputs};
  long groups = grouping(&s, threads);
  size_t for_sums = (size_t)TAPS * s.in_blocks * s.out_blocks * SUMS * sizeof(float);
  size_t for_grads = (size_t)s.pixels * s.out_blocks * TILE * sizeof(number);
  size_t for_pairs = (size_t)2 * s.in_blocks * (s.pixels / 2 + 2) * TILE * sizeof(uint32_t);
  size_t for_places = rounded_up((s.pixels + 1) * sizeof(int32_t), 64), each = for_sums + for_grads + for_pairs;
  char *memory = aligned_alloc(64, threads * (each + for_places));
  if (!memory) return 1;
  #pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads(); /* perhaps fewer than were asked for */
    char *mine = memory + thread * (each + for_places);
    float *sums = (float *)mine;
    uint32_t *grads = (uint32_t *)(mine + for_sums), *pairs = (uint32_t *)(mine + for_sums + for_grads);
    int32_t *place = (int32_t *)(mine + each);
    memset(sums, 0, for_sums);
    use_tiles();
    for (long group = groups * thread / team; group < groups * (thread + 1) / team; group++) {
      long first = group * s.together, left = images - first;
      if (left <= 0) break;
      places(&s, left < s.together ? left : s.together, place);
      pack_input(&s, x + first * height * width * inputs, place, pairs);
      pack_gradient(&s, grad + first * height * width * outputs, place, grads);
      add_group(&s, grads, pairs, sums);
    }
    _tile_release();
    #pragma omp barrier
    #pragma omp for schedule(static)
    for (long out = 0; out < outputs; out++)
      for (int tap = 0; tap < TAPS; tap++)
        for (long in = 0; in < inputs; in++) {
          long block = (tap * s.in_blocks + in / TILE) * s.out_blocks + out / TILE;
          long at = block * SUMS + out % TILE * TILE + in % TILE;
          float sum = 0;
          for (int other = 0; other < team; other++)
            sum += ((float *)(memory + other * (each + for_places)))[at];
          dweight[(out * TAPS + tap) * inputs + in] = sum;
        }
  }
  free(memory);
  return 0;
}
#else
int has_tiles(void) { return 0; }
int weight_gradient(void) { return 1; }
#endif
