/* Max-pooling of 2×2 windows, and its gradient; maps [images, height, width, channels] in bfloat16.

   Where a maximum lay is kept in a byte (0 to 3, in reading order), not in PyTorch's 64-bit index, and the gradient is
   written in one pass over the larger map: nothing is filled with zeros first. */
#include "bfloat16.h"

/* height and width are those of the pooled map. Of equal values the first counts; what is not a number stays so. */
void max_pool(const bfloat16 *restrict x, bfloat16 *restrict y, uint8_t *restrict place, long images, long height,
              long width, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < images * height; row++)
        for (long column = 0; column < width; column++) {
            const bfloat16 *above = x + (4 * row * width + 2 * column) * channels;
            const bfloat16 *below = above + 2 * width * channels;
            long out = (row * width + column) * channels;
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                const bfloat16 window[] = {above[c], above[channels + c], below[c], below[channels + c]};
                float largest = widen(window[0]);
                uint32_t where = 0;
                for (uint32_t i = 1; i < 4; i++) {
                    float value = widen(window[i]);
                    int larger = (value > largest) | (value != value);
                    largest = larger ? value : largest;
                    where = larger ? i : where;
                }
                y[out + c] = narrow(largest);
                place[out + c] = (uint8_t)where;
            }
        }
}

/* Each gradient goes to where its maximum lay, and zero to the other three. */
void max_pool_gradient(const bfloat16 *restrict gradient, const uint8_t *restrict place, bfloat16 *restrict result,
                       long images, long height, long width, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < images * height; row++)
        for (long column = 0; column < width; column++) {
            long in = (row * width + column) * channels;
            for (int i = 0; i < 4; i++) {
                bfloat16 *results = result + (4 * row * width + (i / 2) * 2 * width + 2 * column + i % 2) * channels;
#pragma omp simd
                for (long c = 0; c < channels; c++) results[c] = place[in + c] == i ? gradient[in + c] : 0;
            }
        }
}
