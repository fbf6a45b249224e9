/* Max-pooling of 2×2 windows, and its gradient, for maps [images, height, width, channels] of type `Value`. `height` and
   `width` are the size before pooling. As in PyTorch, an odd last row or column is ignored.

   The place of a maximum in its window is stored as a byte (0 to 3, row by row), not as a 64-bit index as in PyTorch.
   The gradient is written in one pass, without filling the map with zeros first. */
/* Of equal values, the first is the maximum. NaN propagates. */
void NAME(max_pool)(const Value *restrict x, Value *restrict y, uint8_t *restrict place, long images, long height,
              long width, long channels, int threads) {
    long rows = height / 2, columns = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < images * rows; row++)
        for (long column = 0; column < columns; column++) {
            long from = (row / rows * height + row % rows * 2) * width + 2 * column;
            const Value *above = x + from * channels, *below = above + width * channels;
            long out = (row * columns + column) * channels;
#pragma omp simd
            for (long c = 0; c < channels; c++) {
                const Value window[] = {above[c], above[channels + c], below[c], below[channels + c]};
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

/* Each gradient goes to the place of its maximum. All other places get zero. */
void NAME(max_pool_gradient)(const Value *restrict gradient, const uint8_t *restrict place, Value *restrict result,
                       long images, long height, long width, long channels, int threads) {
    long rows = height / 2, columns = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < images * height; row++)
        for (long column = 0; column < width; column++) {
            Value *results = result + (row * width + column) * channels;
            long above = row % height / 2, beside = column / 2;
            if (above == rows || beside == columns) {
                memset(results, 0, channels * sizeof *results);
                continue;
            }
            long in = ((row / height * rows + above) * columns + beside) * channels;
            uint8_t here = (uint8_t)(row % height % 2 * 2 + column % 2);
#pragma omp simd
            for (long c = 0; c < channels; c++) results[c] = place[in + c] == here ? gradient[in + c] : 0;
        }
}
