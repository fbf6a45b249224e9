/* Batch norm and ReLU over rows of channels, [rows, channels] in bfloat16; what is per channel is float32.

   Every loop over channels is one vector instruction after another, and every array is read once per pass. Each thread
   takes an equal stretch of the rows, and its sums are its own: they are added outside, always in the same order. Where
   OpenMP grants fewer threads than were asked for, one does the stretches of several. */
#include "bfloat16.h"

enum { BLOCK = 256 };  /* rows summed in float32 before they are added in float64 */

static void add_block(double *sums, float *block, long channels) {
    for (long c = 0; c < 2 * channels; c++) {
        sums[c] += block[c];
        block[c] = 0;
    }
}

/* sums [2, channels] over one thread's rows: of g and of g (x - around). g is the gradient that the ReLU lets through;
   where there is none it is x - around itself. Around a value near the mean its squares stay small. */
static inline __attribute__((always_inline)) void sum_rows(
    const bfloat16 *restrict x, const bfloat16 *restrict gradient, const float *restrict scale,
    const float *restrict shift, const float *restrict around, double *restrict sums, long begin, long end,
    long channels) {
    float block[2 * channels];
    memset(sums, 0, 2 * channels * sizeof *sums);
    memset(block, 0, sizeof block);
    for (long row = begin; row < end; row++) {
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float value = widen(x[row * channels + c]), distance = value - around[c], g = distance;
            if (gradient) g = scale[c] * value + shift[c] <= 0 ? 0 : widen(gradient[row * channels + c]);
            block[c] += g;
            block[channels + c] += g * distance;
        }
        if ((row + 1 - begin) % BLOCK == 0 || row == end - 1) add_block(sums, block, channels);
    }
}

/* sums [threads, 2, channels]: of x - around and of its square. */
void moments(const bfloat16 *x, const float *around, double *sums, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++)
        sum_rows(x, NULL, NULL, NULL, around, sums + thread * 2 * channels, rows * thread / threads,
                 rows * (thread + 1) / threads, channels);
}

/* y = relu(scale x + shift); what is not a number stays so. */
void scale_shift_relu(const bfloat16 *restrict x, const float *restrict scale, const float *restrict shift,
                      bfloat16 *restrict y, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const bfloat16 *values = x + row * channels;
        bfloat16 *results = y + row * channels;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float result = scale[c] * widen(values[c]) + shift[c];
            results[c] = narrow(result < 0 ? 0 : result);
        }
    }
}

/* sums [threads, 2, channels]: of g and of g (x - mean), where g is the gradient that the ReLU lets through. */
void gradient_moments(const bfloat16 *x, const bfloat16 *gradient, const float *scale, const float *shift,
                      const float *mean, double *sums, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++)
        sum_rows(x, gradient, scale, shift, mean, sums + thread * 2 * channels, rows * thread / threads,
                 rows * (thread + 1) / threads, channels);
}

/* result = scale g + slope x + offset, where g is the gradient that the ReLU lets through. */
void input_gradient(const bfloat16 *restrict x, const bfloat16 *restrict gradient, const float *restrict scale,
                    const float *restrict shift, const float *restrict slope, const float *restrict offset,
                    bfloat16 *restrict result, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const bfloat16 *values = x + row * channels, *gradients = gradient + row * channels;
        bfloat16 *results = result + row * channels;
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float value = widen(values[c]);
            float g = scale[c] * value + shift[c] <= 0 ? 0 : widen(gradients[c]);
            results[c] = narrow(scale[c] * g + slope[c] * value + offset[c]);
        }
    }
}
