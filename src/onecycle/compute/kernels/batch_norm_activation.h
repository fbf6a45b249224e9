/* Batch norm and activation of maps [rows, channels] of type `Value`. Values per channel are float32.

   The activation is a ReLU, or with `smooth` a hardswish: z times (z/6 + 1/2), where the second factor is clamped to
   [0, 1].

   The compiler vectorizes every loop over channels, and each pass reads every array once. Each thread has an equal
   range of the rows and its own sums. The caller adds the threads' sums, always in the same order. If OpenMP grants
   fewer threads than requested, one thread computes several ranges. */
enum { BLOCK = 256 };  /* rows summed in float32 before they are added in float64 */

/* The activation of z. It propagates NaN. */
INLINE float activated(float z, long smooth) {
    if (!smooth) return z < 0 ? 0 : z;
    float part = z * (1 / 6.0f) + 0.5f;
    return z * (part < 0 ? 0 : part > 1 ? 1 : part);
}

/* The gradient of the activation's input z. `gradient` is the gradient of the activation's output. */
INLINE float let_through(float gradient, float z, long smooth) {
    if (!smooth) return z <= 0 ? 0 : gradient;
    return z <= -3 ? 0 : z >= 3 ? gradient : gradient * (z * (1 / 3.0f) + 0.5f);
}

static void add_block(double *sums, float *block, long channels) {
    for (long c = 0; c < 2 * channels; c++) {
        sums[c] += block[c];
        block[c] = 0;
    }
}

/* Sum g and g (x - around) over one thread's rows. `sums` is [2, channels]. g is the gradient of the activation's
   input, or x - around if `gradient` is NULL. `around` is near the mean, so that squares stay small. */
INLINE void sum_rows(const Value *restrict x, const Value *restrict gradient, const float *restrict scale,
                     const float *restrict shift, const float *restrict around, double *restrict sums, long begin,
                     long end, long channels, long smooth) {
    float block[2 * channels];
    memset(sums, 0, 2 * channels * sizeof *sums);
    memset(block, 0, sizeof block);
    for (long row = begin; row < end; row++) {
#pragma omp simd
        for (long c = 0; c < channels; c++) {
            float value = widen(x[row * channels + c]), distance = value - around[c], g = distance;
            if (gradient) g = let_through(widen(gradient[row * channels + c]), scale[c] * value + shift[c], smooth);
            block[c] += g;
            block[channels + c] += g * distance;
        }
        if ((row + 1 - begin) % BLOCK == 0 || row == end - 1) add_block(sums, block, channels);
    }
}

/* Sum x - around and its square. `sums` is [threads, 2, channels]. */
void NAME(moments)(const Value *x, const float *around, double *sums, long rows, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++)
        sum_rows(x, NULL, NULL, NULL, around, sums + thread * 2 * channels, rows * thread / threads,
                 rows * (thread + 1) / threads, channels, 0);
}

INLINE void activate_row(const Value *restrict x, const float *restrict scale, const float *restrict shift,
                         Value *restrict y, long channels, long smooth) {
#pragma omp simd
    for (long c = 0; c < channels; c++) y[c] = narrow(activated(scale[c] * widen(x[c]) + shift[c], smooth));
}

/* y = activation(scale x + shift). */
void NAME(scale_shift_activate)(const Value *x, const float *scale, const float *shift, Value *y, long rows,
                          long channels, long smooth, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const Value *values = x + row * channels;
        Value *results = y + row * channels;
        if (smooth) activate_row(values, scale, shift, results, channels, 1);
        else activate_row(values, scale, shift, results, channels, 0);
    }
}

/* Sum g and g (x - mean), where g is the gradient of the activation's input. `sums` is [threads, 2, channels]. */
void NAME(gradient_moments)(const Value *x, const Value *gradient, const float *scale, const float *shift,
                      const float *mean, double *sums, long rows, long channels, long smooth, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        long begin = rows * thread / threads, end = rows * (thread + 1) / threads;
        double *own = sums + thread * 2 * channels;
        if (smooth) sum_rows(x, gradient, scale, shift, mean, own, begin, end, channels, 1);
        else sum_rows(x, gradient, scale, shift, mean, own, begin, end, channels, 0);
    }
}

INLINE void gradient_row(const Value *restrict x, const Value *restrict gradient, const float *restrict scale,
                         const float *restrict shift, const float *restrict slope, const float *restrict offset,
                         Value *restrict result, long channels, long smooth) {
#pragma omp simd
    for (long c = 0; c < channels; c++) {
        float value = widen(x[c]), g = let_through(widen(gradient[c]), scale[c] * value + shift[c], smooth);
        result[c] = narrow(scale[c] * g + slope[c] * value + offset[c]);
    }
}

/* result = scale g + slope x + offset, where g is the gradient of the activation's input. */
void NAME(input_gradient)(const Value *x, const Value *gradient, const float *scale, const float *shift,
                    const float *slope, const float *offset, Value *result, long rows, long channels, long smooth,
                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) {
        const Value *values = x + row * channels, *gradients = gradient + row * channels;
        Value *results = result + row * channels;
        if (smooth) gradient_row(values, gradients, scale, shift, slope, offset, results, channels, 1);
        else gradient_row(values, gradients, scale, shift, slope, offset, results, channels, 0);
    }
}
