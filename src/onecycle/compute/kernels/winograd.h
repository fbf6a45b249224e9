/* 3×3 convolution (stride 1, padding 1) and its weight gradient in float32, by Winograd's minimal filtering F(4×4, 3×3):
   Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4. It needs 36
   products where direct convolution needs 144. Maps are [images, height, width, channels], filters are
   [outputs, 3, 3, inputs].

   A tile is 4×4 pixels of the output. It depends on a window of 6×6 pixels of the input. Windows and filters are
   transformed to their values at 36 points. At each point, the convolution is a matrix product, (tiles × inputs) by
   (inputs × outputs). The products are transformed back to tiles. The weight gradient is the transposed algorithm: at
   each point, a product (inputs × tiles) by (tiles × outputs).

   The points are 0, ±5/8, ±3/2 and infinity in each direction. All constants are exact in float32, except those of the
   filters. The rounding errors are less than half as large as with the usual points 0, ±1, ±2.

   All threads work on one block of tiles at a time, so that its values stay in the caches. Every sum has one order, so
   the results do not depend on the number of threads. */
enum {
    SIDE = 4,             /* of a tile */
    REACH = SIDE + 2,     /* side of a window */
    POINTS = REACH * REACH,
    TAPS = 9,
    PANEL = LANES * WIDTH, /* columns of a product that are computed at once */
    MOST_CHANNELS = 8192,
    FEWEST_TILES = 96,     /* in a block */
    MOST_SUMMED = 256,     /* values in one sum; for accuracy, a longer sum is split into sums of this length */
    MOST_TILES = MOST_SUMMED, /* in a block */
    BLOCK_FLOATS = 1 << 20 /* in the windows and the products of a block */
};

static const Value zeros[MOST_CHANNELS + LANES];

typedef struct {
    long images, height, width, inputs, outputs;
    long rows, columns; /* tiles of a map */
    long tiles;         /* of all maps */
    long block;         /* tiles that are computed at a time, a multiple of ROWS */
    long input_pitch, output_pitch; /* floats from one tile to the next, in transformed windows and products */
} Shape;

static long smaller(long a, long b) { return a < b ? a : b; }
static long larger(long a, long b) { return a > b ? a : b; }
static long round_up(long value, long unit) { return (value + unit - 1) / unit * unit; }

static Shape shape_of(long images, long height, long width, long inputs, long outputs) {
    Shape s = {.images = images, .height = height, .width = width, .inputs = inputs, .outputs = outputs};
    s.rows = (height + SIDE - 1) / SIDE;
    s.columns = (width + SIDE - 1) / SIDE;
    s.tiles = images * s.rows * s.columns;
    /* Without the additional vector, tiles would often be a power of two apart and share their places in the cache. */
    s.input_pitch = larger(round_up(inputs, LANES), round_up(inputs, ROWS)) + LANES;
    s.output_pitch = round_up(outputs, PANEL) + LANES;
    long fitting = BLOCK_FLOATS / (POINTS * (s.input_pitch + s.output_pitch));
    s.block = round_up(smaller(larger(smaller(fitting, MOST_TILES), FEWEST_TILES), s.tiles), ROWS);
    return s;
}

static long window_floats(const Shape *s) { return POINTS * s->block * s->input_pitch; }
static long product_floats(const Shape *s) { return POINTS * s->block * s->output_pitch; }
static long filter_floats(const Shape *s) {
    return POINTS * round_up(s->outputs, PANEL) * round_up(s->inputs, ROWS);
}

/* The floats that `winograd_convolve` and `winograd_weight_gradient` need as workspace. */
long NAME(winograd_workspace)(long images, long height, long width, long inputs, long outputs) {
    Shape s = shape_of(images, height, width, inputs, outputs);
    return window_floats(&s) + product_floats(&s) + filter_floats(&s);
}

/* The first `count` values, followed by zeros. */
INLINE Vector load(const Value *from, long count) {
    if (count >= LANES) return widen_vector(from);
    Value values[LANES] = {0};
    memcpy(values, from, count * sizeof *from);
    return widen_vector(values);
}

INLINE void store(Value *to, Vector vector, long count) {
    if (count >= LANES) {
        narrow_vector(to, vector);
        return;
    }
    Value values[LANES];
    narrow_vector(values, vector);
    memcpy(to, values, count * sizeof *to);
}

/* Each of the next functions transforms one line of values, `step` values apart. Names are those of the source. */

enum { A = 0, B = 1 }; /* the points ±5/8 and ±3/2 */
static const float point[] = {0.625f, 1.5f}, square[] = {0.390625f, 2.25f}, cube[] = {0.244140625f, 3.375f};
static const float filter_scale[] = {256 / 225.0f, -2048 / 2975.0f, 128 / 1071.0f}; /* of the points 0, A and B */

/* 6 values of a window to 6 points, in place: Bᵀ. */
INLINE void window_line(Vector *d, int step) {
    Vector d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
    Vector even_a = d4 - square[B] * d2, odd_a = point[A] * (d3 - square[B] * d1);
    Vector even_b = d4 - square[A] * d2, odd_b = point[B] * (d3 - square[A] * d1);
    d[0] = square[A] * square[B] * d[0] - (square[A] + square[B]) * d2 + d4;
    d[5 * step] = square[A] * square[B] * d1 - (square[A] + square[B]) * d3 + d[5 * step];
    d[step] = even_a + odd_a;
    d[2 * step] = even_a - odd_a;
    d[3 * step] = even_b + odd_b;
    d[4 * step] = even_b - odd_b;
}

/* 3 taps of a filter to 6 points: G. */
INLINE void filter_line(Vector *to, int to_step, const Vector *g, int step) {
    to[0] = filter_scale[0] * g[0];
    for (int i = A; i <= B; i++) {
        Vector even = filter_scale[i + 1] * (g[0] + square[i] * g[2 * step]);
        Vector odd = filter_scale[i + 1] * point[i] * g[step];
        to[(2 * i + 1) * to_step] = even + odd;
        to[(2 * i + 2) * to_step] = even - odd;
    }
    to[5 * to_step] = g[2 * step];
}

/* 6 points to 4 outputs: Aᵀ. */
INLINE void output_line(Vector *to, int to_step, const Vector *m, int step) {
    Vector even_a = m[step] + m[2 * step], odd_a = m[step] - m[2 * step];
    Vector even_b = m[3 * step] + m[4 * step], odd_b = m[3 * step] - m[4 * step];
    to[0] = m[0] + even_a + even_b;
    to[to_step] = point[A] * odd_a + point[B] * odd_b;
    to[2 * to_step] = square[A] * even_a + square[B] * even_b;
    to[3 * to_step] = cube[A] * odd_a + cube[B] * odd_b + m[5 * step];
}

/* 4 gradients of outputs to 6 points: A. */
INLINE void gradient_line(Vector *to, int to_step, const Vector *y, int step) {
    for (int i = A; i <= B; i++) {
        Vector even = y[0] + square[i] * y[2 * step], odd = point[i] * y[step] + cube[i] * y[3 * step];
        to[(2 * i + 1) * to_step] = even + odd;
        to[(2 * i + 2) * to_step] = even - odd;
    }
    to[0] = y[0];
    to[5 * to_step] = y[3 * step];
}

/* 6 points to 3 gradients of taps: Gᵀ. */
INLINE void tap_line(Vector *to, int to_step, const Vector *d, int step) {
    Vector even_a = filter_scale[1] * (d[step] + d[2 * step]), odd_a = filter_scale[1] * (d[step] - d[2 * step]);
    Vector even_b = filter_scale[2] * (d[3 * step] + d[4 * step]), odd_b = filter_scale[2] * (d[3 * step] - d[4 * step]);
    to[0] = filter_scale[0] * d[0] + even_a + even_b;
    to[to_step] = point[A] * odd_a + point[B] * odd_b;
    to[2 * to_step] = square[A] * even_a + square[B] * even_b + d[5 * step];
}

/* Pointers to the `side`×`side` pixels from (`top`, `left`) of a map. Pixels outside the map are zeros. */
INLINE void find_pixels(const Value **pixel, const Value *map, int side, long top, long left, long height, long width,
                        long channels) {
    for (int i = 0; i < side * side; i++) {
        long row = top + i / side, column = left + i % side;
        int inside = row >= 0 && row < height && column >= 0 && column < width;
        pixel[i] = inside ? map + (row * width + column) * channels : zeros;
    }
}

/* Transform the windows of `count` tiles from `first` on. `to` is [POINTS, block, input_pitch]. */
static void transform_windows(const Value *x, float *to, const Shape *s, long first, long count) {
#pragma omp for schedule(static)
    for (long tile = 0; tile < count; tile++) {
        long image = (first + tile) / (s->rows * s->columns), place = (first + tile) % (s->rows * s->columns);
        const Value *map = x + image * s->height * s->width * s->inputs, *pixel[POINTS];
        long top = place / s->columns * SIDE - 1, left = place % s->columns * SIDE - 1;
        find_pixels(pixel, map, REACH, top, left, s->height, s->width, s->inputs);
        for (long c = 0; c < s->inputs; c += LANES) {
            Vector d[POINTS];
            for (int i = 0; i < POINTS; i++) d[i] = load(pixel[i] + c, s->inputs - c);
            for (int i = 0; i < REACH; i++) window_line(d + i, REACH);
            for (int i = 0; i < REACH; i++) window_line(d + i * REACH, 1);
            for (int i = 0; i < POINTS; i++) *(Stored *)(to + (i * s->block + tile) * s->input_pitch + c) = d[i];
        }
    }
}

/* Transform the gradients of `count` tiles from `first` on. `to` is [POINTS, block, output_pitch]. */
static void transform_gradients(const Value *gradient, float *to, const Shape *s, long first, long count) {
#pragma omp for schedule(static)
    for (long tile = 0; tile < count; tile++) {
        long image = (first + tile) / (s->rows * s->columns), place = (first + tile) % (s->rows * s->columns);
        const Value *map = gradient + image * s->height * s->width * s->outputs, *pixel[SIDE * SIDE];
        long top = place / s->columns * SIDE, left = place % s->columns * SIDE;
        find_pixels(pixel, map, SIDE, top, left, s->height, s->width, s->outputs);
        for (long c = 0; c < s->outputs; c += LANES) {
            Vector y[SIDE * SIDE], lines[REACH * SIDE], d[POINTS];
            for (int i = 0; i < SIDE * SIDE; i++) y[i] = load(pixel[i] + c, s->outputs - c);
            for (int i = 0; i < SIDE; i++) gradient_line(lines + i, SIDE, y + i, SIDE);
            for (int i = 0; i < REACH; i++) gradient_line(d + i * REACH, 1, lines + i * SIDE, 1);
            for (int i = 0; i < POINTS; i++) *(Stored *)(to + (i * s->block + tile) * s->output_pitch + c) = d[i];
        }
    }
}

/* Transform the filters. `to` is [POINTS, panels, inputs, PANEL]. */
static void transform_filters(const float *filters, float *to, const Shape *s) {
    long panels = round_up(s->outputs, PANEL) / PANEL;
#pragma omp for collapse(2) schedule(static)
    for (long panel = 0; panel < panels; panel++)
        for (long c = 0; c < s->inputs; c += LANES) {
            Vector d[PANEL][POINTS];
            long valid = smaller(PANEL, s->outputs - panel * PANEL), count = smaller(LANES, s->inputs - c);
            memset(d, 0, sizeof d);
            for (long o = 0; o < valid; o++) {
                Vector g[TAPS], lines[REACH * 3];
                const float *filter = filters + (panel * PANEL + o) * TAPS * s->inputs + c;
                for (int i = 0; i < TAPS; i++) {
                    float taps[LANES] = {0};
                    memcpy(taps, filter + i * s->inputs, count * sizeof *taps);
                    g[i] = *(Stored *)taps;
                }
                for (int i = 0; i < 3; i++) filter_line(lines + i, 3, g + i, 3);
                for (int i = 0; i < REACH; i++) filter_line(d[o] + i * REACH, 1, lines + i * 3, 1);
            }
            for (int i = 0; i < POINTS; i++)
                for (long lane = 0; lane < count; lane++) {
                    float *row = to + ((i * panels + panel) * s->inputs + c + lane) * PANEL;
                    for (long o = 0; o < PANEL; o++) row[o] = d[o][i][lane];
                }
        }
}

/* Store the sums of a product in `ROWS` rows of `result`, or add them to it. */
INLINE void add_sums(float *result, long pitch, Vector sums[ROWS][WIDTH], int add) {
    for (int row = 0; row < ROWS; row++)
        for (int j = 0; j < WIDTH; j++) {
            Stored *to = (Stored *)(result + row * pitch + j * LANES);
            if (add) *to += sums[row][j];
            else *to = sums[row][j];
        }
}

/* products = windows × filters at every point, for `count` tiles. */
static void multiply(const float *windows, const float *filters, float *products, const Shape *s, long count) {
    long panels = round_up(s->outputs, PANEL) / PANEL;
#pragma omp for collapse(2) schedule(static)
    for (long i = 0; i < POINTS; i++)
        for (long panel = 0; panel < panels; panel++)
            for (long first = 0; first < s->inputs; first += MOST_SUMMED) {
                const float *right = filters + ((i * panels + panel) * s->inputs + first) * PANEL;
                long summed = smaller(MOST_SUMMED, s->inputs - first);
                for (long tile = 0; tile < count; tile += ROWS) {
                    const float *left = windows + (i * s->block + tile) * s->input_pitch + first;
                    float *result = products + (i * s->block + tile) * s->output_pitch + panel * PANEL;
                    Vector sums[ROWS][WIDTH] = {0};
                    for (long c = 0; c < summed; c++)
                        for (int row = 0; row < ROWS; row++)
                            for (int j = 0; j < WIDTH; j++)
                                sums[row][j] +=
                                    left[row * s->input_pitch + c] * *(const Stored *)(right + c * PANEL + j * LANES);
                    add_sums(result, s->output_pitch, sums, first > 0);
                }
            }
}

/* Transform the products of `count` tiles from `first` on to pixels of `y`. */
static void transform_products(const float *products, Value *y, const Shape *s, long first, long count) {
#pragma omp for schedule(static)
    for (long tile = 0; tile < count; tile++) {
        long image = (first + tile) / (s->rows * s->columns), place = (first + tile) % (s->rows * s->columns);
        long top = place / s->columns * SIDE, left = place % s->columns * SIDE;
        long rows = smaller(SIDE, s->height - top), columns = smaller(SIDE, s->width - left);
        Value *corner = y + ((image * s->height + top) * s->width + left) * s->outputs;
        for (long c = 0; c < s->outputs; c += LANES) {
            Vector m[POINTS], lines[SIDE * REACH], result[SIDE * SIDE];
            for (int i = 0; i < POINTS; i++)
                m[i] = *(const Stored *)(products + (i * s->block + tile) * s->output_pitch + c);
            for (int i = 0; i < REACH; i++) output_line(lines + i, REACH, m + i, REACH);
            for (int i = 0; i < SIDE; i++) output_line(result + i * SIDE, 1, lines + i * REACH, 1);
            for (long row = 0; row < rows; row++)
                for (long column = 0; column < columns; column++)
                    store(corner + (row * s->width + column) * s->outputs + c, result[row * SIDE + column],
                          s->outputs - c);
        }
    }
}

/* Add windowsᵀ × gradients to `sums` [POINTS, panels, inputs, PANEL] at every point, for `count` tiles. */
static void add_products(const float *windows, const float *gradients, float *sums, const Shape *s, long first,
                         long count) {
    long panels = round_up(s->outputs, PANEL) / PANEL, inputs = round_up(s->inputs, ROWS);
#pragma omp for collapse(2) schedule(static)
    for (long i = 0; i < POINTS; i++)
        for (long panel = 0; panel < panels; panel++) {
            const float *right = gradients + i * s->block * s->output_pitch + panel * PANEL;
            for (long c = 0; c < inputs; c += ROWS) {
                const float *left = windows + i * s->block * s->input_pitch + c;
                float *result = sums + ((i * panels + panel) * inputs + c) * PANEL;
                Vector sum[ROWS][WIDTH] = {0};
                for (long tile = 0; tile < count; tile++)
                    for (int row = 0; row < ROWS; row++)
                        for (int j = 0; j < WIDTH; j++)
                            sum[row][j] += left[tile * s->input_pitch + row] *
                                           *(const Stored *)(right + tile * s->output_pitch + j * LANES);
                add_sums(result, PANEL, sum, first > 0);
            }
        }
}

/* Transform the sums to the gradients of the filters. */
static void transform_sums(const float *sums, float *result, const Shape *s) {
    long panels = round_up(s->outputs, PANEL) / PANEL, inputs = round_up(s->inputs, ROWS);
#pragma omp for schedule(static)
    for (long o = 0; o < s->outputs; o += LANES) {
        const float *panel = sums + o / PANEL * inputs * PANEL + o % PANEL;
        for (long c = 0; c < s->inputs; c++) {
            Vector d[POINTS], lines[3 * REACH], g[TAPS];
            for (int i = 0; i < POINTS; i++) d[i] = *(const Stored *)(panel + (i * panels * inputs + c) * PANEL);
            for (int i = 0; i < REACH; i++) tap_line(lines + i, REACH, d + i, REACH);
            for (int i = 0; i < 3; i++) tap_line(g + i * 3, 1, lines + i * REACH, 1);
            for (long lane = 0; lane < smaller(LANES, s->outputs - o); lane++)
                for (int i = 0; i < TAPS; i++) result[((o + lane) * TAPS + i) * s->inputs + c] = g[i][lane];
        }
    }
}

/* y = the convolution of x with the filters. */
void NAME(winograd_convolve)(const Value *x, const float *filters, Value *y, float *workspace, long images, long height,
                       long width, long inputs, long outputs, int threads) {
    Shape s = shape_of(images, height, width, inputs, outputs);
    float *windows = workspace, *products = windows + window_floats(&s), *transformed = products + product_floats(&s);
#pragma omp parallel num_threads(threads)
    {
        transform_filters(filters, transformed, &s);
        for (long first = 0; first < s.tiles; first += s.block) {
            long count = smaller(s.block, s.tiles - first);
            transform_windows(x, windows, &s, first, count);
            multiply(windows, transformed, products, &s, count);
            transform_products(products, y, &s, first, count);
        }
    }
}

/* result = the gradient of the filters. `gradient` is the gradient of the convolution's output. */
void NAME(winograd_weight_gradient)(const Value *x, const Value *gradient, float *result, float *workspace, long images,
                              long height, long width, long inputs, long outputs, int threads) {
    Shape s = shape_of(images, height, width, inputs, outputs);
    float *windows = workspace, *gradients = windows + window_floats(&s), *sums = gradients + product_floats(&s);
#pragma omp parallel num_threads(threads)
    {
        for (long first = 0; first < s.tiles; first += s.block) {
            long count = smaller(s.block, s.tiles - first);
            transform_windows(x, windows, &s, first, count);
            transform_gradients(gradient, gradients, &s, first, count);
            add_products(windows, gradients, sums, &s, first, count);
        }
        transform_sums(sums, result, &s);
    }
}
