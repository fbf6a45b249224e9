/* 3×3 convolution (stride 1, padding 1) with AMX, the matrix extensions of x86 CPUs: bfloat16 values, float32 sums.
   Maps are [images, height, width, channels], filters are [outputs, 3, 3, inputs].

   Maps are packed with the images innermost, in groups of 32: every pixel has a matrix of 32 images by channels.
   The output of a pixel is a sum of matrix products, (images × inputs) by (inputs × outputs), one for each neighbor
   (tap). The weight gradient of a tap is a sum of products (outputs × images) by (images × inputs). No patches are
   unfolded, and nothing is multiplied by the zeros beyond the border.

   A tile is 16 rows of 64 bytes. The left tile of a product holds rows of 32 bfloat16 values. The right tile holds
   pairs of rows, interleaved value by value, as the instruction requires. */
#include "bfloat16.h"

#if defined(__x86_64__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VL__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIDE = 16, DEPTH = 2 * SIDE, GROUP = DEPTH /* images */, TAPS = 9, BYTES = 64 };

typedef struct {
    __m512i row[SIDE];
} Tile;

typedef struct {
    float value[SIDE][SIDE];
} Sums;

/* Ask Linux for permission to use AMX in this process. Returns whether Linux grants it. */
int has_amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Configuration;

/* Assembly, because gcc before 12.4 and 13.3 believes that the intrinsics access only 8 of the 64 bytes. */
static inline void load_configuration(const Configuration *from) { __asm__ volatile("ldtilecfg %0" : : "m"(*from)); }
static inline void store_configuration(Configuration *to) { __asm__ volatile("sttilecfg %0" : "=m"(*to)); }

/* Configure the tiles of this thread. `others` receives the previous configuration, which PyTorch's kernels may have
   set. */
static void take_tiles(Configuration *others) {
    Configuration ours = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        ours.bytes[i] = BYTES;
        ours.rows[i] = SIDE;
    }
    store_configuration(others);
    load_configuration(&ours);
}

static void give_tiles_back(const Configuration *others) {
    if (others->palette)
        load_configuration(others);
    else
        _tile_release();
}

/* gcc does not know that loading a tile reads memory, so make it finish all writes to packed tiles first. */
static inline void finish_packing(void) { __asm__ volatile("" : : : "memory"); }

/* The number of blocks of 16 channels, rounded up to an even number, because two blocks are computed at once. */
static long blocks(long channels) { return (channels + 2 * SIDE - 1) / (2 * SIDE) * 2; }

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* The mask of the first `count` values, at most 32. */
static inline __mmask32 mask(long count) { return count >= 32 ? 0xffffffff : count > 0 ? (1u << count) - 1 : 0; }

/* Interleave two rows of 16 values. NULL is a row of zeros. */
static inline __m512i interleave(const bfloat16 *one, const bfloat16 *other, __mmask16 valid) {
    __m256i low = _mm256_setzero_si256(), high = low;
    if (one) low = _mm256_maskz_loadu_epi16(valid, one);
    if (other) high = _mm256_maskz_loadu_epi16(valid, other);
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

/* Transpose 16×16 values of 32 bits: swap the off-diagonal squares of side 1, then 2, 4 and 8. */
static inline void transpose(Tile *tile) {
#pragma GCC unroll 4
    for (int half = 1; half < SIDE; half *= 2) {
        int32_t left[SIDE], right[SIDE];
        for (int i = 0; i < SIDE; i++) {
            left[i] = i & half ? SIDE + i - half : i;
            right[i] = i & half ? SIDE + i : i + half;
        }
        __m512i to_left = _mm512_loadu_si512(left), to_right = _mm512_loadu_si512(right);
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++)
            if (!(i & half)) {
                __m512i above = tile->row[i], below = tile->row[i + half];
                tile->row[i] = _mm512_permutex2var_epi32(above, to_left, below);
                tile->row[i + half] = _mm512_permutex2var_epi32(above, to_right, below);
            }
    }
}

/* Pack filters as right tiles. `packed` is [block of 32 outputs][tap][block of 32 inputs][2 halves of 16 outputs]. */
static void pack_filters(const bfloat16 *filters, Tile *packed, long inputs, long outputs, int threads) {
    long steps = blocks(inputs) / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long out = 0; out < blocks(outputs); out++)
        for (long tap = 0; tap < TAPS; tap++)
            for (long step = 0; step < steps; step++) {
                Tile tile;
                for (long i = 0; i < SIDE; i++) {
                    __mmask32 valid = out * SIDE + i < outputs ? mask(inputs - step * DEPTH) : 0;
                    tile.row[i] = _mm512_maskz_loadu_epi16(
                        valid, filters + ((out * SIDE + i) * TAPS + tap) * inputs + step * DEPTH);
                }
                transpose(&tile);
                packed[(((out / 2) * TAPS + tap) * steps + step) * 2 + out % 2] = tile;
            }
}

/* Pack maps as left tiles: `packed` is [pixel][block of 32 channels][2 halves of 16 images].
   Missing images are zero. */
static void pack_images(const bfloat16 *maps, Tile *packed, long images, long pixels, long channels) {
    long steps = blocks(channels) / 2;
    for (long image = 0; image < GROUP; image++)
        for (long pixel = 0; pixel < pixels; pixel++)
            for (long step = 0; step < steps; step++) {
                const bfloat16 *at = maps + (image * pixels + pixel) * channels + step * DEPTH;
                __mmask32 valid = image < images ? mask(channels - step * DEPTH) : 0;
                Tile *tile = packed + (pixel * steps + step) * 2 + image / SIDE;
                tile->row[image % SIDE] = _mm512_maskz_loadu_epi16(valid, at);
            }
}

/* Compute 32 outputs of one pixel for 32 images. `sums` is [2 halves of 16 images][2 halves of 16 outputs].
   `filters` are the packed filters of these outputs. */
static inline void convolve_pixel(const Tile *packed, const Tile *filters, Sums sums[4], long row, long column,
                                  long height, long width, long steps) {
    finish_packing();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long tap = 0; tap < TAPS; tap++) {
        long y = row + tap / 3 - 1, x = column + tap % 3 - 1;
        if (y < 0 || y >= height || x < 0 || x >= width) continue;
        const Tile *left = packed + (y * width + x) * steps * 2, *right = filters + tap * steps * 2;
        for (long step = 0; step < steps; step++, left += 2, right += 2) {
            _tile_loadd(4, left, BYTES);
            _tile_loadd(6, right, BYTES);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, right + 1, BYTES);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, left + 1, BYTES);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums + 0, BYTES);
    _tile_stored(1, sums + 1, BYTES);
    _tile_stored(2, sums + 2, BYTES);
    _tile_stored(3, sums + 3, BYTES);
}

/* Round 32 outputs of one pixel to bfloat16 and store them. In `output`, images are `stride` values apart. */
static void store_pixel(bfloat16 *output, const Sums sums[4], long images, long stride, __mmask32 valid) {
    for (long image = 0; image < images; image++) {
        const Sums *of = sums + image / SIDE * 2;
        __m512 low = _mm512_loadu_ps(of[0].value[image % SIDE]), high = _mm512_loadu_ps(of[1].value[image % SIDE]);
        _mm512_mask_storeu_epi16(output + image * stride, valid, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* Convolve. `output` is [images, height, width, outputs]. `packed_filters` has room for all filters, and
   `packed_images` has room for 32 images per thread. */
void amx_convolve_bfloat16(const bfloat16 *input, const bfloat16 *filters, bfloat16 *output, Tile *packed_filters,
              Tile *packed_images, long images, long height, long width, long inputs, long outputs, int threads) {
    long pixels = height * width, steps = blocks(inputs) / 2, groups = (images + GROUP - 1) / GROUP;
    pack_filters(filters, packed_filters, inputs, outputs, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        Tile *packed = packed_images + thread * pixels * steps * 2;
        Configuration others;
        take_tiles(&others);
        for (long group = groups * thread / threads; group < groups * (thread + 1) / threads; group++) {
            long from = group * GROUP, count = smaller(images - from, GROUP);
            pack_images(input + from * pixels * inputs, packed, count, pixels, inputs);
            for (long out = 0; out < outputs; out += 2 * SIDE)
                for (long pixel = 0; pixel < pixels; pixel++) {
                    _Alignas(BYTES) Sums sums[4];
                    convolve_pixel(packed, packed_filters + out / SIDE * TAPS * steps, sums, pixel / width,
                                   pixel % width, height, width, steps);
                    store_pixel(output + (from * pixels + pixel) * outputs + out, sums, count, pixels * outputs,
                                mask(outputs - out));
                }
        }
        give_tiles_back(&others);
    }
}

/* Pack the first `pixels` of the `map_pixels` pixels of each map. `packed` is [block of 16 channels][pixel]. The tiles
   are left tiles of 16 channels if `transposed`, else right tiles of 16 pairs of images. */
static void pack_pixels(const bfloat16 *maps, Tile *packed, long images, long map_pixels, long pixels, long channels,
                        int transposed) {
    for (long pixel = 0; pixel < pixels; pixel++)
        for (long block = 0; block < blocks(channels); block++) {
            Tile tile;
#pragma GCC unroll 16
            for (long i = 0; i < SIDE; i++) {
                const bfloat16 *one = maps + (2 * i * map_pixels + pixel) * channels + block * SIDE;
                const bfloat16 *other = one + map_pixels * channels;
                tile.row[i] = interleave(2 * i < images ? one : NULL, 2 * i + 1 < images ? other : NULL,
                                         mask(channels - block * SIDE));
            }
            if (transposed) transpose(&tile);
            packed[block * pixels + pixel] = tile;
        }
}

/* Add the products of one tap to the sums of 32 outputs and 32 inputs. If `anew`, the sums start at zero. The
   sums of the second 16 outputs come `below` tiles after the sums of the first 16 outputs. */
static inline void add_tap(Sums *sums, long below, int anew, const Tile *gradient, long next_gradient,
                           const Tile *input, long next_input, long rows, long columns, long width) {
    finish_packing();
    if (anew) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, BYTES);
        _tile_loadd(1, sums + 1, BYTES);
        _tile_loadd(2, sums + below, BYTES);
        _tile_loadd(3, sums + below + 1, BYTES);
    }
    for (long row = 0; row < rows; row++)
        for (long i = row * width; i < row * width + columns; i++) {
            _tile_loadd(4, gradient + i, BYTES);
            _tile_loadd(6, input + i, BYTES);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, input + next_input + i, BYTES);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, gradient + next_gradient + i, BYTES);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    _tile_stored(0, sums, BYTES);
    _tile_stored(1, sums + 1, BYTES);
    _tile_stored(2, sums + below, BYTES);
    _tile_stored(3, sums + below + 1, BYTES);
}

/* Add the sums of all parts. `sums` is [part][tap][block of outputs][block of inputs], and `result` is
   [outputs][tap][inputs]. */
static void add_up(const Sums *sums, float *result, long parts, long inputs, long outputs, int threads) {
    long in_blocks = blocks(inputs), out_blocks = blocks(outputs), a_part = TAPS * out_blocks * in_blocks;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long out = 0; out < outputs; out++)
        for (long tap = 0; tap < TAPS; tap++)
            for (long in = 0; in < inputs; in += SIDE) {
                const Sums *sum = sums + (tap * out_blocks + out / SIDE) * in_blocks + in / SIDE;
                __m512 total = _mm512_setzero_ps();
                for (long part = 0; part < parts; part++)
                    total = _mm512_add_ps(total, _mm512_loadu_ps(sum[part * a_part].value[out % SIDE]));
                float *at = result + (out * TAPS + tap) * inputs + in;
                _mm512_mask_storeu_ps(at, (__mmask16)mask(inputs - in), total);
            }
}

/* The rows that a thread computes at once: `rows` rows of the output's gradient, starting at `row`. They need
   `input_rows` rows of the input, starting at `first_input_row`. */
typedef struct {
    long row, rows, first_input_row, input_rows;
} Band;

static Band band_at(long row, long rows_at_once, long height) {
    long rows = smaller(rows_at_once, height - row), first = row ? row - 1 : 0;
    return (Band){row, rows, first, smaller(row + rows + 1, height) - first};
}

/* Add the products of all taps and channels of a band to `sums` [tap][block of outputs][block of inputs]. */
static void add_band(Sums *sums, int anew, const Tile *gradient, const Tile *input, Band band, long height, long width,
                     long out_blocks, long in_blocks) {
    long gradient_block = band.rows * width, input_block = band.input_rows * width;
    for (long in = 0; in < in_blocks; in += 2)
        for (long out = 0; out < out_blocks; out += 2)
            for (long tap = 0; tap < TAPS; tap++) {
                long dy = tap / 3 - 1, dx = tap % 3 - 1;
                long y = (band.row + dy < 0), x = (dx < 0); /* the first pixel that has this neighbor */
                long below = smaller(band.rows, height - band.row - dy), columns = width - (dx != 0);
                add_tap(sums + (tap * out_blocks + out) * in_blocks + in, in_blocks, anew,
                        gradient + out * gradient_block + y * width + x, gradient_block,
                        input + in * input_block + (band.row + y + dy - band.first_input_row) * width + x + dx,
                        input_block, below - y, columns, width);
            }
}

/* Compute the weight gradient. `result` is [outputs][tap][inputs]. The images are divided into groups of 32, and the
   groups into parts: one part per thread, or one part per group if there are fewer groups than threads. A part is
   computed in bands of `rows_at_once` rows. Each part has room for `gradient_size` packed tiles of the gradient and
   `input_size` packed tiles of the input. In the input, a band has two more rows. Each part has its own sums in `sums`. */
void amx_weight_gradient_bfloat16(const bfloat16 *input, const bfloat16 *gradient, float *result, Sums *sums, Tile *packed_input,
                     long input_size, Tile *packed_gradient, long gradient_size, long rows_at_once, long images,
                     long height, long width, long inputs, long outputs, int threads) {
    long pixels = height * width, in_blocks = blocks(inputs), out_blocks = blocks(outputs);
    long groups = (images + GROUP - 1) / GROUP, parts = smaller(groups, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < parts; part++) {
        Tile *right = packed_input + part * input_size, *left = packed_gradient + part * gradient_size;
        Configuration others;
        take_tiles(&others);
        int anew = 1;
        for (long group = groups * part / parts; group < groups * (part + 1) / parts; group++)
            for (long row = 0; row < height; row += rows_at_once, anew = 0) {
                Band band = band_at(row, rows_at_once, height);
                long from = group * GROUP * pixels, count = images - group * GROUP;
                pack_pixels(input + (from + band.first_input_row * width) * inputs, right, count, pixels,
                            band.input_rows * width, inputs, 0);
                pack_pixels(gradient + (from + row * width) * outputs, left, count, pixels, band.rows * width, outputs,
                            1);
                add_band(sums + part * TAPS * out_blocks * in_blocks, anew, left, right, band, height, width,
                         out_blocks, in_blocks);
            }
        give_tiles_back(&others);
    }
    add_up(sums, result, parts, inputs, outputs, threads);
}
#else
int has_amx(void) { return 0; }
#endif
