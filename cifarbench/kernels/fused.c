/* Batch norm with a shortcut and its activation, and activations alone, on feature maps whose channels lie together.
 *
 * Maps are (rows, channels) in memory, a row for each pixel of each image, as torch's channels_last has them. Sums are
 * kept in floats over BLOCK rows and in doubles beyond. Every thread works on one stretch of rows, and sums are added up
 * in the threads' order, so that the same number of threads gives the same bits.
 */

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "numbers.h"

enum { BLOCK = 128 };
enum activation { IDENTITY, RELU, GELU, SILU };

/* e^x for x <= 0, to about 2e-7 of itself: 2^n times a Taylor polynomial on [-ln 2 / 2, ln 2 / 2]. */
INLINE float exp_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = rintf(x * 1.44269504f);
  float t = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts, the first exact in few bits */
  float p = 1 + t * (1 + t * (1.0f / 2 + t * (1.0f / 6 + t * (1.0f / 24 + t * (1.0f / 120 + t * (1.0f / 720))))));
  uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* The activation of z, and its derivative there. */
INLINE float activate(float z, float *slope, enum activation act) {
  if (act == RELU) {
    *slope = z > 0 ? 1.0f : 0.0f;
    return z < 0 ? 0.0f : z; /* and what is no number stays none */
  }
  if (act == GELU) { /* z times the normal distribution function: Abramowitz and Stegun (1964), 7.1.26 */
    float density = exp_negative(-0.5f * z * z);
    float t = 1 / (1 + 0.3275911f * 0.70710678f * fabsf(z));
    float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    tail *= 0.5f * density;
    float below = z < 0 ? tail : 1 - tail;
    *slope = below + z * density * 0.39894228f;
    return z * below;
  }
  if (act == SILU) {
    float small = exp_negative(-fabsf(z));
    float sigmoid = (z < 0 ? small : 1.0f) / (1 + small);
    *slope = sigmoid * (1 + z * (1 - sigmoid));
    return z * sigmoid;
  }
  *slope = 1;
  return z;
}

/* The first row of a thread of the team, which may be smaller than was asked for. */
INLINE long share(long rows, int thread, int team) { return rows * thread / team; }

/* Runs `call` with ACT known when this is compiled, so that its loops hold no branches. */
#define CASE(name, call)                                                                                               \
  case name: {                                                                                                         \
    const enum activation ACT = name;                                                                                  \
    call;                                                                                                              \
    break;                                                                                                             \
  }
#define SPECIALISE(act, call)                                                                                          \
  switch (act) { CASE(IDENTITY, call) CASE(RELU, call) CASE(GELU, call) CASE(SILU, call) }

/* y = act(x * scale + shift + added) for rows [from, to), and its derivative by the argument of act.
 *
 * `added` and `slope`, which takes the derivative, may be null.
 */
INLINE void apply_rows(const number *restrict x, const number *restrict added, number *restrict y,
                       number *restrict slope, const float *restrict scale, const float *restrict shift, long from,
                       long to, long channels, enum activation act) {
  for (long row = from; row < to; row++) {
    const number *in = x + row * channels, *more = added ? added + row * channels : 0;
    number *out = y + row * channels;
    if (slope) {
      number *steep = slope + row * channels;
      for (long c = 0; c < channels; c++) {
        float derivative, z = widen(in[c]) * scale[c] + shift[c];
        out[c] = narrow(activate(more ? z + widen(more[c]) : z, &derivative, act));
        steep[c] = narrow(derivative);
      }
    } else {
      for (long c = 0; c < channels; c++) {
        float derivative, z = widen(in[c]) * scale[c] + shift[c];
        out[c] = narrow(activate(more ? z + widen(more[c]) : z, &derivative, act));
      }
    }
  }
}

/* The gradient by the argument of the activation: from what is stored (the derivative; of RELU the output), or where
 * nothing was, from x again. */
INLINE float before_activation(float dy, const number *stored, long index, float x, float scale, float shift,
                               enum activation act, int is_stored) {
  if (act == IDENTITY) return dy;
  if (act == RELU) return (is_stored ? widen(stored[index]) : x * scale + shift) > 0 ? dy : 0.0f;
  return dy * widen(stored[index]);
}

/* Mean, biased variance and 1 / sqrt(variance + eps) of each channel. */
static void moments(const number *x, long rows, long channels, float eps, float *mean, float *var, float *rstd,
                    int threads) {
  double *sums = calloc((size_t)threads * 2 * channels, sizeof *sums);
  #pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads();
    double *total = sums + (size_t)thread * 2 * channels;
    float *first = malloc(3 * channels * sizeof *first), *part = first + channels;
    long from = share(rows, thread, team), to = share(rows, thread + 1, team);
    for (long c = 0; c < channels; c++) first[c] = widen(x[c]); /* near the mean, so that little is cancelled */
    for (long start = from; start < to; start += BLOCK) {
      long end = start + BLOCK < to ? start + BLOCK : to;
      memset(part, 0, 2 * channels * sizeof *part);
      for (long row = start; row < end; row++)
        for (long c = 0; c < channels; c++) {
          float value = widen(x[row * channels + c]) - first[c];
          part[c] += value;
          part[channels + c] += value * value;
        }
      for (long c = 0; c < 2 * channels; c++) total[c] += part[c];
    }
    free(first);
  }
  for (int thread = 1; thread < threads; thread++)
    for (long c = 0; c < 2 * channels; c++) sums[c] += sums[(size_t)thread * 2 * channels + c];
  for (long c = 0; c < channels; c++) {
    double offset = sums[c] / rows, spread = sums[channels + c] / rows - offset * offset;
    spread = spread < 0 ? 0 : spread;
    mean[c] = (float)(widen(x[c]) + offset);
    var[c] = (float)spread;
    rstd[c] = (float)(1 / sqrt(spread + eps));
  }
  free(sums);
}

/* apply_rows on all rows, by all threads. */
static void apply(const number *x, const number *added, number *y, number *slope, const float *scale,
                  const float *shift, long rows, long channels, int act, int threads) {
  #pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads();
    long from = share(rows, thread, team), to = share(rows, thread + 1, team);
    if (added) {
      SPECIALISE(act, apply_rows(x, added, y, slope, scale, shift, from, to, channels, ACT))
    } else {
      SPECIALISE(act, apply_rows(x, (const number *)0, y, slope, scale, shift, from, to, channels, ACT))
    }
  }
}

/* y = act((x - mean) * rstd * weight + bias + added) with the batch's own moments, which are given back.
 *
 * `added` may be null, and so may `slope`, which takes the derivative of act.
 */
void norm_forward(const number *x, const number *added, number *y, number *slope, const float *weight,
                  const float *bias, float *mean, float *var, float *rstd, long rows, long channels, float eps,
                  int act, int threads) {
  moments(x, rows, channels, eps, mean, var, rstd, threads);
  float *scale = malloc(2 * channels * sizeof *scale), *shift = scale + channels;
  for (long c = 0; c < channels; c++) {
    scale[c] = weight[c] * rstd[c];
    shift[c] = bias[c] - mean[c] * scale[c];
  }
  apply(x, added, y, slope, scale, shift, rows, channels, act, threads);
  free(scale);
}

/* y = act(x * scale + shift + added): batch norm in evaluation, with its activation. */
void affine_forward(const number *x, const number *added, number *y, const float *scale, const float *shift,
                    long rows, long channels, int act, int threads) {
  apply(x, added, y, 0, scale, shift, rows, channels, act, threads);
}

/* The sums that every channel's gradient needs; where something was added, its gradient too. */
INLINE void sum_rows(const number *restrict dy, const number *restrict stored, const number *restrict x,
                     const float *restrict scale, const float *restrict shift, const float *restrict mean,
                     number *restrict dadded, float *restrict part, double *restrict total, long from, long to,
                     long channels, enum activation act) {
  for (long start = from; start < to; start += BLOCK) {
    long end = start + BLOCK < to ? start + BLOCK : to;
    memset(part, 0, 2 * channels * sizeof *part);
    for (long row = start; row < end; row++) {
      const number *grad = dy + row * channels, *in = x + row * channels, *kept = stored + row * channels;
      number *passed = dadded ? dadded + row * channels : 0;
      for (long c = 0; c < channels; c++) {
        float value = widen(in[c]);
        float dz = before_activation(widen(grad[c]), kept, c, value, scale[c], shift[c], act, dadded != 0);
        if (passed) {
          passed[c] = narrow(dz);
          dz = widen(passed[c]);
        }
        part[c] += dz;
        part[channels + c] += dz * (value - mean[c]);
      }
    }
    for (long c = 0; c < 2 * channels; c++) total[c] += part[c];
  }
}

INLINE void gradient_rows(const number *restrict dy, const number *restrict stored, const number *restrict x,
                          number *restrict dx, const float *restrict scale, const float *restrict shift,
                          const float *restrict by_x, const float *restrict constant, long from, long to,
                          long channels, enum activation act) {
  for (long row = from; row < to; row++) {
    const number *grad = dy + row * channels, *in = x + row * channels, *kept = stored + row * channels;
    number *out = dx + row * channels;
    for (long c = 0; c < channels; c++) {
      float value = widen(in[c]);
      float dz = before_activation(widen(grad[c]), kept, c, value, scale[c], shift[c], act, 0);
      out[c] = narrow(scale[c] * dz + by_x[c] * value + constant[c]);
    }
  }
}

/* The gradients of norm_forward by x, weight, bias and, where `dadded` is not null, by what was added.
 *
 * `stored` is the derivative of act that norm_forward gave, or, for RELU with something added, its output. Where act is
 * IDENTITY, the gradient by what was added is dy itself, and `dadded` null.
 */
void norm_backward(const number *dy, const number *stored, const number *x, const float *weight, const float *bias,
                   const float *mean, const float *rstd, number *dadded, number *dx, float *dweight, float *dbias,
                   long rows, long channels, int act, int threads) {
  double *sums = calloc((size_t)threads * 2 * channels, sizeof *sums);
  float *scale = malloc(4 * channels * sizeof *scale), *shift = scale + channels;
  float *by_x = shift + channels, *constant = by_x + channels;
  for (long c = 0; c < channels; c++) {
    scale[c] = weight[c] * rstd[c];
    shift[c] = bias[c] - mean[c] * scale[c];
  }
  #pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads();
    long from = share(rows, thread, team), to = share(rows, thread + 1, team);
    double *total = sums + (size_t)thread * 2 * channels;
    float *part = malloc(2 * channels * sizeof *part);
    if (dadded) {
      SPECIALISE(act, sum_rows(dy, stored, x, scale, shift, mean, dadded, part, total, from, to, channels, ACT))
    } else {
      SPECIALISE(act, sum_rows(dy, stored, x, scale, shift, mean, (number *)0, part, total, from, to, channels, ACT))
    }
    free(part);
    #pragma omp barrier
    #pragma omp single
    {
      for (int other = 1; other < threads; other++)
        for (long c = 0; c < 2 * channels; c++) sums[c] += sums[(size_t)other * 2 * channels + c];
      for (long c = 0; c < channels; c++) {
        double product = sums[channels + c] * rstd[c];
        dbias[c] = (float)sums[c];
        dweight[c] = (float)product;
        by_x[c] = (float)(-scale[c] * rstd[c] * product / rows);
        constant[c] = (float)(-scale[c] * sums[c] / rows) - by_x[c] * mean[c];
      }
    }
    if (dadded) /* by the argument of act already */
      gradient_rows(dadded, stored, x, dx, scale, shift, by_x, constant, from, to, channels, IDENTITY);
    else
      SPECIALISE(act, gradient_rows(dy, stored, x, dx, scale, shift, by_x, constant, from, to, channels, ACT))
  }
  free(scale);
  free(sums);
}

INLINE void activate_all(const number *restrict x, number *restrict y, number *restrict slope, long from, long to,
                         enum activation act) {
  for (long i = from; i < to; i++) {
    float derivative;
    y[i] = narrow(activate(widen(x[i]), &derivative, act));
    if (slope) slope[i] = narrow(derivative);
  }
}

/* y = act(x), and the derivative where `slope` is not null. */
void activation_forward(const number *x, number *y, number *slope, long count, int act, int threads) {
  #pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads();
    long from = share(count, thread, team), to = share(count, thread + 1, team);
    if (slope) {
      SPECIALISE(act, activate_all(x, y, slope, from, to, ACT))
    } else {
      SPECIALISE(act, activate_all(x, y, (number *)0, from, to, ACT))
    }
  }
}
