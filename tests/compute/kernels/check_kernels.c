/* Compare every kernel of float32.c and bfloat16.c with plain loops in double. Usage: check_kernels SEED SHAPES

   It checks a few fixed shapes and SHAPES pseudo-random ones, each with 1, 2 and 3 threads. Every buffer has exactly
   the size that the kernel needs, so AddressSanitizer detects any access beyond it. Buffers start as NaN, so the
   comparison detects values that a kernel does not write, or reads too early.

   Errors are relative to the norm of the result. Where the terms of a value cancel each other, the root of their summed
   squares stands for the value. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bfloat16.h"

enum { TAPS = 9, WINDOW = 4, MOST_THREADS = 3, MOST_BUFFERS = 200 };

typedef struct {
    long images, height, width, inputs, outputs;
} Shape;

static const Shape fixed_shapes[] = {
    {1, 1, 1, 1, 1},
    {1, 4, 4, 32, 64}, /* whole tiles, and whole vectors of every length */
    {2, 7, 5, 24, 64},
    {33, 8, 8, 8, 5},
    /* With every length of vectors, the tiles of these two are more than a block. */
    {80, 1, 6, 3, 400},
    {100, 1, 1, 600, 3},
};

/* The kernels take maps of one data type. `void` stands for it. */
typedef long Workspace(long images, long height, long width, long inputs, long outputs);
typedef void Convolve(const void *x, const float *filters, void *y, float *workspace, long images, long height,
                      long width, long inputs, long outputs, int threads);
typedef void WeightGradient(const void *x, const void *gradient, float *result, float *workspace, long images,
                            long height, long width, long inputs, long outputs, int threads);
typedef void MaxPool(const void *x, void *y, uint8_t *place, long images, long height, long width, long channels,
                     int threads);
typedef void MaxPoolGradient(const void *gradient, const uint8_t *place, void *result, long images, long height,
                             long width, long channels, int threads);
typedef void Moments(const void *x, const float *around, double *sums, long rows, long channels, int threads);
typedef void Activate(const void *x, const float *scale, const float *shift, void *y, long rows, long channels,
                      long smooth, int threads);
typedef void GradientMoments(const void *x, const void *gradient, const float *scale, const float *shift,
                             const float *mean, double *sums, long rows, long channels, long smooth, int threads);
typedef void InputGradient(const void *x, const void *gradient, const float *scale, const float *shift,
                           const float *slope, const float *offset, void *result, long rows, long channels,
                           long smooth, int threads);

typedef struct {
    const char *name;
    size_t value_bytes;
    long steps; /* random values are multiples of 2 / steps, so that the data type represents them exactly */
    double convolution_limit, norm_limit; /* of errors */
    Workspace *workspace;
    Convolve *convolve;
    WeightGradient *weight_gradient;
    MaxPool *max_pool;
    MaxPoolGradient *max_pool_gradient;
    Moments *moments;
    Activate *activate;
    GradientMoments *gradient_moments;
    InputGradient *input_gradient;
} Type;

#define DECLARE(type)                                                                                                 \
    Workspace winograd_workspace_##type;                                                                              \
    Convolve winograd_convolve_##type;                                                                                \
    WeightGradient winograd_weight_gradient_##type;                                                                   \
    MaxPool max_pool_##type;                                                                                          \
    MaxPoolGradient max_pool_gradient_##type;                                                                         \
    Moments moments_##type;                                                                                           \
    Activate scale_shift_activate_##type;                                                                             \
    GradientMoments gradient_moments_##type;                                                                          \
    InputGradient input_gradient_##type;
#define KERNELS(type)                                                                                                 \
    winograd_workspace_##type, winograd_convolve_##type, winograd_weight_gradient_##type, max_pool_##type,            \
        max_pool_gradient_##type, moments_##type, scale_shift_activate_##type, gradient_moments_##type,               \
        input_gradient_##type

DECLARE(float32)
DECLARE(bfloat16)

static const Type types[] = {
    {"float32", sizeof(float), 2048, 3e-6, 1e-5, KERNELS(float32)},
    {"bfloat16", sizeof(bfloat16), 128, 1e-2, 2e-2, KERNELS(bfloat16)},
};

/* A random integer from 0 to `count` - 1. Source of the constants: Knuth, MMIX. */
static uint64_t random_state;
static long random_below(long count) {
    random_state = random_state * 6364136223846793005 + 1442695040888963407;
    return (long)((random_state >> 33) % (uint64_t)count);
}

static void *buffers[MOST_BUFFERS];
static int buffer_count;

/* Memory filled with NaN, in each data type. It lasts until `free_buffers`. */
static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory || buffer_count == MOST_BUFFERS) {
        printf("there is no memory for buffer %d of %zu bytes\n", buffer_count, bytes);
        exit(1);
    }
    buffers[buffer_count++] = memory;
    return memset(memory, 0xff, bytes);
}

static void free_buffers(void) {
    while (buffer_count) free(buffers[--buffer_count]);
}

/* Random values from -2 to 2. */
static double *random_values(long count, long steps) {
    double *values = allocate(count * sizeof *values);
    for (long i = 0; i < count; i++) values[i] = (random_below(2 * steps + 1) - steps) * 2.0 / steps;
    return values;
}

static float *to_floats(const double *values, long count) {
    float *floats = allocate(count * sizeof *floats);
    for (long i = 0; i < count; i++) floats[i] = (float)values[i];
    return floats;
}

static void *to_map(const Type *type, const double *values, long count) {
    if (type->value_bytes == sizeof(float)) return to_floats(values, count);
    bfloat16 *map = allocate(count * sizeof *map);
    for (long i = 0; i < count; i++) map[i] = narrow((float)values[i]);
    return map;
}

static double value_at(const Type *type, const void *map, long i) {
    return type->value_bytes == sizeof(float) ? ((const float *)map)[i] : widen(((const bfloat16 *)map)[i]);
}

/* Name the kernel, the shape and the error, and exit. */
static void fail(const Type *type, const char *kernel, const Shape *s, int threads, const char *problem, double value) {
    printf("%s_%s: %ld images of %ldx%ld, channels %ld -> %ld, %d threads: %s %g\n", kernel, type->name, s->images,
           s->height, s->width, s->inputs, s->outputs, threads, problem, value);
    exit(1);
}

/* A result as it should be. */
typedef struct {
    long count;
    double *sums, *squares; /* of the terms of each value */
} Expected;

static Expected expect(long count) {
    Expected e = {count, allocate(count * sizeof(double)), allocate(count * sizeof(double))};
    memset(e.sums, 0, count * sizeof(double));
    memset(e.squares, 0, count * sizeof(double));
    return e;
}

static void add_term(Expected *e, long i, double term) {
    e->sums[i] += term;
    e->squares[i] += term * term;
}

/* The error of a result, and the size that it is relative to: sums of squares. */
typedef struct {
    double difference, size;
} Error;

static void add_error(Error *error, double value, const Expected *e, long i) {
    error->difference += (value - e->sums[i]) * (value - e->sums[i]);
    error->size += fmax(e->sums[i] * e->sums[i], e->squares[i]);
}

static void check_error(const Type *type, const char *kernel, const Shape *s, int threads, Error error, double limit) {
    double relative = error.difference == 0 ? 0 : sqrt(error.difference / error.size);
    if (!(relative < limit)) /* also NaN */
        fail(type, kernel, s, threads, "relative error", relative);
}

static void check_map(const Type *type, const char *kernel, const Shape *s, int threads, const void *map,
                      const Expected *e, double limit) {
    Error error = {0};
    for (long i = 0; i < e->count; i++) add_error(&error, value_at(type, map, i), e, i);
    check_error(type, kernel, s, threads, error, limit);
}

static void check_identical(const Type *type, const char *kernel, const Shape *s, int threads, const void *result,
                            const void *first, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const char *)result)[i] != ((const char *)first)[i])
            fail(type, kernel, s, threads, "unlike the result of 1 thread at byte", i);
}

/* Convolve x [images, height, width, inputs] with the filters [outputs, 3, 3, inputs], and add up their gradient. */
static void convolve_directly(const Shape *s, const double *x, const double *filters, const double *gradient,
                              Expected *y, Expected *filter_gradient) {
    for (long pixel = 0; pixel < s->images * s->height * s->width; pixel++)
        for (long tap = 0; tap < TAPS; tap++) {
            long down = tap / 3 - 1, right = tap % 3 - 1;
            long row = pixel / s->width % s->height + down, column = pixel % s->width + right;
            if (row < 0 || row >= s->height || column < 0 || column >= s->width) continue;
            const double *inputs = x + (pixel + down * s->width + right) * s->inputs;
            for (long o = 0; o < s->outputs; o++)
                for (long c = 0; c < s->inputs; c++) {
                    long out = pixel * s->outputs + o, filter = (o * TAPS + tap) * s->inputs + c;
                    add_term(y, out, inputs[c] * filters[filter]);
                    add_term(filter_gradient, filter, inputs[c] * gradient[out]);
                }
        }
}

static void check_winograd(const Type *type, const Shape *s) {
    long pixels = s->images * s->height * s->width;
    long x_count = pixels * s->inputs, y_count = pixels * s->outputs, filter_count = s->outputs * TAPS * s->inputs;
    double *x = random_values(x_count, type->steps), *gradient = random_values(y_count, type->steps);
    double *filters = random_values(filter_count, 1 << 20);
    Expected y = expect(y_count), filter_gradient = expect(filter_count);
    convolve_directly(s, x, filters, gradient, &y, &filter_gradient);

    void *x_map = to_map(type, x, x_count), *gradient_map = to_map(type, gradient, y_count);
    float *filter_floats = to_floats(filters, filter_count);
    size_t y_bytes = y_count * type->value_bytes, filter_bytes = filter_count * sizeof(float);
    size_t workspace_bytes = type->workspace(s->images, s->height, s->width, s->inputs, s->outputs) * sizeof(float);
    void *first_y = NULL;
    float *first_result = NULL;
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        float *workspace = allocate(workspace_bytes);
        void *y_map = allocate(y_bytes);
        type->convolve(x_map, filter_floats, y_map, workspace, s->images, s->height, s->width, s->inputs, s->outputs,
                       threads);
        check_map(type, "winograd_convolve", s, threads, y_map, &y, type->convolution_limit);

        memset(workspace, 0xff, workspace_bytes);
        float *result = allocate(filter_bytes);
        type->weight_gradient(x_map, gradient_map, result, workspace, s->images, s->height, s->width, s->inputs,
                              s->outputs, threads);
        Error error = {0};
        for (long i = 0; i < filter_count; i++) add_error(&error, result[i], &filter_gradient, i);
        check_error(type, "winograd_weight_gradient", s, threads, error, types[0].convolution_limit); /* a float32 */

        if (threads == 1) {
            first_y = y_map;
            first_result = result;
            continue;
        }
        check_identical(type, "winograd_convolve", s, threads, y_map, first_y, y_bytes);
        check_identical(type, "winograd_weight_gradient", s, threads, result, first_result, filter_bytes);
    }
}

static void check_max_pool(const Type *type, const Shape *s) {
    long rows = s->height / 2, columns = s->width / 2, channels = s->inputs;
    long x_count = s->images * s->height * s->width * channels, y_count = s->images * rows * columns * channels;
    double *x = random_values(x_count, type->steps), *gradient = random_values(y_count, type->steps);
    double *expected_gradient = allocate(x_count * sizeof *expected_gradient);
    long *largest = allocate(y_count * sizeof *largest); /* the index of each maximum in x */
    uint8_t *expected_place = allocate(y_count);
    for (long i = 0; i < x_count; i++) expected_gradient[i] = 0;
    for (long i = 0; i < y_count; i++) {
        long channel = i % channels, column = i / channels % columns, row = i / channels / columns % rows;
        long image = i / channels / columns / rows;
        long corner = ((image * s->height + 2 * row) * s->width + 2 * column) * channels + channel;
        for (uint8_t place = 0; place < WINDOW; place++) {
            long from = corner + (place / 2 * s->width + place % 2) * channels;
            if (place > 0 && x[from] <= x[largest[i]]) continue;
            largest[i] = from;
            expected_place[i] = place;
        }
        expected_gradient[largest[i]] = gradient[i];
    }

    void *x_map = to_map(type, x, x_count), *gradient_map = to_map(type, gradient, y_count);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        void *y = allocate(y_count * type->value_bytes), *result = allocate(x_count * type->value_bytes);
        uint8_t *place = allocate(y_count);
        type->max_pool(x_map, y, place, s->images, s->height, s->width, channels, threads);
        for (long i = 0; i < y_count; i++) {
            if (value_at(type, y, i) != x[largest[i]]) fail(type, "max_pool", s, threads, "wrong value at", i);
            if (place[i] != expected_place[i]) fail(type, "max_pool", s, threads, "wrong place at", i);
        }
        type->max_pool_gradient(gradient_map, place, result, s->images, s->height, s->width, channels, threads);
        for (long i = 0; i < x_count; i++)
            if (value_at(type, result, i) != expected_gradient[i])
                fail(type, "max_pool_gradient", s, threads, "wrong value at", i);
    }
}

/* The factor of x in a ReLU or a hardswish of x. */
static double gate(double z, long smooth) { return smooth ? fmin(fmax(z / 6 + 0.5, 0), 1) : z > 0; }

static double gate_of_gradient(double z, long smooth) {
    if (!smooth) return z > 0;
    return z <= -3 ? 0 : z >= 3 ? 1 : z / 3 + 0.5;
}

/* Compare the sums of all threads, [threads, 2, channels]. */
static void check_sums(const Type *type, const char *kernel, const Shape *s, int threads, const double *sums,
                       const Expected *e) {
    Error error = {0};
    for (long i = 0; i < e->count; i++) {
        double sum = 0;
        for (int thread = 0; thread < threads; thread++) sum += sums[thread * e->count + i];
        add_error(&error, sum, e, i);
    }
    check_error(type, kernel, s, threads, error, types[0].norm_limit); /* the sums of both data types are float32 */
}

static void check_batch_norm_activation(const Type *type, const Shape *s, long smooth) {
    long channels = s->inputs, rows = s->images * s->height * s->width, count = rows * channels;
    double *x = random_values(count, type->steps), *gradient = random_values(count, type->steps);
    /* float32 represents scale x + shift exactly, so these loops and the kernels agree about its sign. */
    double *scale = random_values(channels, 16), *shift = random_values(channels, 16);
    double *mean = random_values(channels, 16);
    double *slope = random_values(channels, 1 << 20), *offset = random_values(channels, 1 << 20);
    Expected moments = expect(2 * channels), gradient_moments = expect(2 * channels);
    Expected activations = expect(count), input_gradient = expect(count);
    for (long i = 0; i < count; i++) {
        long c = i % channels;
        double z = scale[c] * x[i] + shift[c], distance = x[i] - mean[c];
        double g = gradient[i] * gate_of_gradient(z, smooth);
        add_term(&moments, c, distance);
        add_term(&moments, channels + c, distance * distance);
        add_term(&gradient_moments, c, g);
        add_term(&gradient_moments, channels + c, g * distance);
        add_term(&activations, i, scale[c] * x[i] * gate(z, smooth));
        add_term(&activations, i, shift[c] * gate(z, smooth));
        add_term(&input_gradient, i, scale[c] * g);
        add_term(&input_gradient, i, slope[c] * x[i]);
        add_term(&input_gradient, i, offset[c]);
    }

    void *x_map = to_map(type, x, count), *gradient_map = to_map(type, gradient, count);
    float *scale_floats = to_floats(scale, channels), *shift_floats = to_floats(shift, channels);
    float *mean_floats = to_floats(mean, channels);
    float *slope_floats = to_floats(slope, channels), *offset_floats = to_floats(offset, channels);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        double *sums = allocate(threads * 2 * channels * sizeof *sums);
        type->moments(x_map, mean_floats, sums, rows, channels, threads);
        check_sums(type, "moments", s, threads, sums, &moments);
        double *gradient_sums = allocate(threads * 2 * channels * sizeof *gradient_sums);
        type->gradient_moments(x_map, gradient_map, scale_floats, shift_floats, mean_floats, gradient_sums, rows,
                               channels, smooth, threads);
        check_sums(type, "gradient_moments", s, threads, gradient_sums, &gradient_moments);

        void *y = allocate(count * type->value_bytes), *result = allocate(count * type->value_bytes);
        type->activate(x_map, scale_floats, shift_floats, y, rows, channels, smooth, threads);
        check_map(type, "scale_shift_activate", s, threads, y, &activations, type->norm_limit);
        type->input_gradient(x_map, gradient_map, scale_floats, shift_floats, slope_floats, offset_floats, result,
                             rows, channels, smooth, threads);
        check_map(type, "input_gradient", s, threads, result, &input_gradient, type->norm_limit);
    }
}

static void check(const Shape *s) {
    for (const Type *type = types; type < types + sizeof types / sizeof *types; type++) {
        check_winograd(type, s);
        if (s->height > 1 && s->width > 1) check_max_pool(type, s);
        for (long smooth = 0; smooth <= 1; smooth++) check_batch_norm_activation(type, s, smooth);
        free_buffers();
    }
}

int main(int argument_count, char **arguments) {
    if (argument_count != 3) {
        printf("usage: check_kernels SEED SHAPES\n");
        return 1;
    }
    random_state = strtoull(arguments[1], NULL, 10);
    long random_shapes = strtol(arguments[2], NULL, 10), fixed = sizeof fixed_shapes / sizeof *fixed_shapes;
    for (long i = 0; i < fixed; i++) check(&fixed_shapes[i]);
    for (long i = 0; i < random_shapes; i++) {
        Shape shape = {.images = 1 + random_below(5), .height = 1 + random_below(11), .width = 1 + random_below(11),
                       .inputs = 1 + random_below(40), .outputs = 1 + random_below(40)};
        check(&shape);
    }
    printf("%ld shapes agree\n", fixed + random_shapes);
    return 0;
}
