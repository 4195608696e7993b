// Winograd convolution F(4x4, 3x3) for processors: float32, stride 1, padding 1, channels last.
//
// A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, 2015 (arXiv:1509.09308), section 4:
//
//     Y = A^T [ sum over input channels of (G g G^T) . (B^T d B) ] A
//
// with d a 6x6 tile of the input, g a 3x3 filter, and Y the 4x4 tile of the output at the same place; . multiplies the 36
// entries one by one. Taken over all tiles, the sum is 36 products of matrices [tiles, inputs] x [inputs, outputs], with
// a quarter of the multiplications of the definition.
//
// The polynomials are taken at 0, +-1/c, +-c and infinity with c = sqrt 2, not at Lavin and Gray's 0, +-1, +-2 and
// infinity: the same work, a third of the error. Points of this form: S. A. Alam, A. Anderson, B. Barabasz, D. Gregg:
// Winograd Convolution for Deep Neural Networks: Efficient Point Selection, ACM TECS 21(6), 2022.
//
// One vector holds neighbouring channels of a pixel. For a block of tiles, the transformed input U lies as
// [36][inputs / LANES][tiles][LANES], so that the innermost loop finds the tiles of a group at constant distances, and
// the products M as [36][panels][tiles][2 * LANES]; a panel is two vectors of output channels (the last may be one).
//
// Every output is summed in one order, over the input channels from first to last, by the same operations, whichever
// block, group or thread its tile falls to: an image's bits depend on nothing but the image and the weights.

#include <cstdint>
#include <cstdlib>

#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifdef _OPENMP
extern "C" int omp_get_max_threads();
#endif

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#define SPLAT(f) vec{f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f}
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 6
#define SPLAT(f) vec{f, f, f, f, f, f, f, f}
#else
#define LANES 4
#if defined(__aarch64__)
#define ROWS 12
#else
#define ROWS 6
#endif
#define SPLAT(f) vec{f, f, f, f}
#endif

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float loose __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));  // a caller's memory

namespace {

constexpr int64_t INNER = 6, OUTER = 4, POINTS = INNER * INNER;
constexpr float NEAR = 0.70710678118654752f, FAR = 1.4142135623730950f;

inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }
inline vec load_loose(const float* from) { return *reinterpret_cast<const loose*>(from); }
inline void store_loose(float* to, vec value) { *reinterpret_cast<loose*>(to) = value; }

// c + a * b, rounded once where the processor can. Said outright: compilers fuse a sum in a loop or not as they see fit,
// and the kernels for 1, 2, 3, ... tiles must agree to the bit.
inline vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (vec)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return c + a * b;
#endif
}

// Memory that a thread keeps from call to call.
struct Scratch {
    float* memory = nullptr;
    size_t size = 0;
    float* at_least(size_t floats) {
        if (floats > size) {
            std::free(memory);
            memory = static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64));
            size = memory ? floats : 0;
        }
        return memory;
    }
    ~Scratch() { std::free(memory); }
};
thread_local Scratch scratch;

// B^T d for one column of six.
inline void transform_input(const vec d[6], vec out[6]) {
    vec even = d[4] - 2.0f * d[2], odd = NEAR * (d[3] - 2.0f * d[1]);
    vec even2 = d[4] - 0.5f * d[2], odd2 = FAR * (d[3] - 0.5f * d[1]);
    out[0] = d[0] - 2.5f * d[2] + d[4];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = even2 + odd2;
    out[4] = even2 - odd2;
    out[5] = d[1] - 2.5f * d[3] + d[5];
}

// G g for one column of three.
inline void transform_filter(const vec g[3], vec out[6]) {
    vec ends = g[0] + 0.5f * g[2], ends2 = g[0] + 2.0f * g[2];
    out[0] = g[0];
    out[1] = (ends + NEAR * g[1]) / -1.5f;
    out[2] = (ends - NEAR * g[1]) / -1.5f;
    out[3] = (ends2 + FAR * g[1]) / 6.0f;
    out[4] = (ends2 - FAR * g[1]) / 6.0f;
    out[5] = g[2];
}

// A^T m for one column of six.
inline void transform_output(const vec m[6], vec out[4]) {
    vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    out[0] = m[0] + sum + sum2;
    out[1] = NEAR * (difference + 2.0f * difference2);
    out[2] = 0.5f * (sum + 4.0f * sum2);
    out[3] = NEAR * (0.5f * difference + 4.0f * difference2) + m[5];
}

// m[R][P] = sum over channels of u[channel][R] * v[channel][P]: R tiles, P vectors of output channels.
template <int R, int P>
void multiply(const float* u, int64_t u_step, const float* v, int64_t vectors, float* m) {
    vec sum[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) sum[r][p] = vec{};
    for (int64_t c = 0; c < vectors; c++, u += u_step)
        for (int lane = 0; lane < LANES; lane++, v += P * LANES) {
            vec w[P];
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) w[p] = load(v + p * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                float f = u[r * LANES + lane];
                vec all = SPLAT(f);
#pragma GCC unroll 2
                for (int p = 0; p < P; p++) sum[r][p] = fused(all, w[p], sum[r][p]);
            }
        }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) store(m + (r * P + p) * LANES, sum[r][p]);
}

typedef void (*Multiply)(const float*, int64_t, const float*, int64_t, float*);

template <int P, int... R>
inline Multiply chosen(int rows) {
    static const Multiply all[] = {multiply<R, P>...};
    return all[rows - 1];
}

template <int P>
inline Multiply multiply_of(int rows) {
#if ROWS == 12
    return chosen<P, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>(rows);
#else
    return chosen<P, 1, 2, 3, 4, 5, 6>(rows);
#endif
}

struct Shape {
    int64_t images, height, width, inputs, outputs;
    int64_t down() const { return (height + OUTER - 1) / OUTER; }
    int64_t across() const { return (width + OUTER - 1) / OUTER; }
};

struct Place {
    int64_t image, top, left;
    Place(const Shape& shape, int64_t tile) {
        int64_t row = tile / shape.across();
        left = tile % shape.across() * OUTER;
        top = row % shape.down() * OUTER;
        image = row / shape.down();
    }
};

void take(const Shape& shape, const float* x, const float* zeros, int64_t tile, float* u, int64_t u_step, int64_t point_step) {
    Place at(shape, tile);
    const float* from[POINTS];
    for (int64_t i = 0; i < INNER; i++)
        for (int64_t j = 0; j < INNER; j++) {
            int64_t row = at.top + i - 1, column = at.left + j - 1;
            bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
            from[i * INNER + j] =
                inside ? x + ((at.image * shape.height + row) * shape.width + column) * shape.inputs : zeros;
        }
    for (int64_t c = 0; c < shape.inputs; c += LANES, u += u_step) {
        vec half[INNER][INNER], column[INNER], out[INNER];
#pragma GCC unroll 6
        for (int j = 0; j < INNER; j++) {
#pragma GCC unroll 6
            for (int i = 0; i < INNER; i++) column[i] = load_loose(from[i * INNER + j] + c);
            transform_input(column, out);
#pragma GCC unroll 6
            for (int i = 0; i < INNER; i++) half[i][j] = out[i];
        }
#pragma GCC unroll 6
        for (int i = 0; i < INNER; i++) {
            transform_input(half[i], out);
#pragma GCC unroll 6
            for (int j = 0; j < INNER; j++) store(u + (i * INNER + j) * point_step, out[j]);
        }
    }
}

void give(const Shape& shape, const float* m, int64_t point_step, int64_t tile, int64_t first, int64_t vectors, float* y) {
    Place at(shape, tile);
    for (int64_t p = 0; p < vectors; p++) {
        vec half[INNER][OUTER], row[INNER], out[OUTER];
#pragma GCC unroll 6
        for (int i = 0; i < INNER; i++) {
#pragma GCC unroll 6
            for (int j = 0; j < INNER; j++) row[j] = load(m + (i * INNER + j) * point_step + p * LANES);
            transform_output(row, out);
#pragma GCC unroll 4
            for (int j = 0; j < OUTER; j++) half[i][j] = out[j];
        }
#pragma GCC unroll 4
        for (int j = 0; j < OUTER; j++) {
#pragma GCC unroll 6
            for (int i = 0; i < INNER; i++) row[i] = half[i][j];
            transform_output(row, out);
#pragma GCC unroll 4
            for (int i = 0; i < OUTER; i++) {
                int64_t down = at.top + i, across = at.left + j;
                if (down < shape.height && across < shape.width)
                    store_loose(y + ((at.image * shape.height + down) * shape.width + across) * shape.outputs + first +
                                    p * LANES, out[i]);
            }
        }
    }
}

bool block(const Shape& shape, const float* x, const float* packed, float* y, int64_t start, int64_t tiles) {
    int64_t vectors = shape.inputs / LANES, panels = (shape.outputs + 2 * LANES - 1) / (2 * LANES);
    // One vector more between points: powers of two would all fall on the same lines of a cache.
    int64_t u_point = tiles * shape.inputs + LANES, m_point = tiles * shape.outputs + LANES;
    float* u = scratch.at_least(POINTS * (u_point + m_point) + shape.inputs);
    if (!u) return false;
    float *m = u + POINTS * u_point, *zeros = m + POINTS * m_point;
    for (int64_t c = 0; c < shape.inputs; c++) zeros[c] = 0.0f;
    for (int64_t t = 0; t < tiles; t++) take(shape, x, zeros, start + t, u + t * LANES, tiles * LANES, u_point);

    int64_t groups = (tiles + ROWS - 1) / ROWS;
    for (int64_t point = 0; point < POINTS; point++)
        for (int64_t panel = 0; panel < panels; panel++) {
            bool two = (panel + 1) * 2 * LANES <= shape.outputs;
            const float* v = packed + (point * shape.outputs + panel * 2 * LANES) * shape.inputs;
            for (int64_t group = 0; group < groups; group++) {
                int64_t from = tiles * group / groups, rows = tiles * (group + 1) / groups - from;
                Multiply multiply = two ? multiply_of<2>(rows) : multiply_of<1>(rows);
                multiply(u + point * u_point + from * LANES, tiles * LANES, v, vectors,
                         m + point * m_point + panel * 2 * LANES * tiles + from * (two ? 2 : 1) * LANES);
            }
        }
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t first = panel * 2 * LANES, width = shape.outputs - first >= 2 * LANES ? 2 : 1;
            give(shape, m + first * tiles + t * width * LANES, m_point, start + t, first, width, y);
        }
    return true;
}

}  // namespace

extern "C" {

int demilune_lanes() { return LANES; }

// The number of threads that the OpenMP this was linked to would take, or 0 without OpenMP.
int demilune_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 0;
#endif
}

// A number that changes with any one of the values, and hardly ever stays when several change.
uint64_t demilune_fingerprint(const float* values, int64_t size) {
    constexpr int WAYS = 32;
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(values);
    uint32_t mixed[WAYS];
    for (int i = 0; i < WAYS; i++) mixed[i] = i;
    int64_t at = 0;
    for (; at + WAYS <= size; at += WAYS)
        for (int i = 0; i < WAYS; i++) {
            uint32_t word;
            __builtin_memcpy(&word, bits + at + i, 4);
            mixed[i] = (mixed[i] ^ word) * 0x9E3779B1u;
        }
    uint64_t all = size;
    for (; at < size; at++) all = (all ^ bits[at]) * 0x9E3779B97F4A7C15u;
    for (int i = 0; i < WAYS; i++) all = (all ^ mixed[i]) * 0x9E3779B97F4A7C15u;
    return all ^ all >> 32;
}

// packed[36][panels][inputs][2 * LANES] = G g G^T of the filters g, of which the weight of output o and input c at row i
// and column j lies at w[o * s_out + c * s_in + i * s_row + j * s_column]. With flip, g is turned by 180 degrees:
// with the strides of outputs and inputs exchanged, that is the convolution's own gradient with respect to its input.
void demilune_pack(const float* w, int64_t outputs, int64_t inputs, int64_t s_out, int64_t s_in, int64_t s_row,
                   int64_t s_column, int flip, float* packed, int threads) {
    if (flip) {
        w += 2 * s_row + 2 * s_column;
        s_row = -s_row;
        s_column = -s_column;
    }
    if (threads < 1) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < outputs; first += LANES) {
        int64_t panel = first / (2 * LANES) * 2 * LANES, within = first - panel;
        int64_t width = outputs - panel >= 2 * LANES ? 2 * LANES : LANES;
        for (int64_t c = 0; c < inputs; c++) {
            vec g[3][3], half[6][3], out[6];
            for (int j = 0; j < 3; j++)
                for (int i = 0; i < 3; i++)
                    for (int lane = 0; lane < LANES; lane++)
                        g[j][i][lane] = w[(first + lane) * s_out + c * s_in + i * s_row + j * s_column];
            for (int j = 0; j < 3; j++) {
                transform_filter(g[j], out);
                for (int i = 0; i < 6; i++) half[i][j] = out[i];
            }
            for (int i = 0; i < 6; i++) {
                transform_filter(half[i], out);
                for (int j = 0; j < 6; j++)
                    store(packed + ((i * 6 + j) * outputs + panel) * inputs + c * width + within, out[j]);
            }
        }
    }
}

// y[images, height, width, outputs] = x[images, height, width, inputs] convolved with the packed filters, both dense.
// Returns 0, or 1 where there was no memory.
int demilune_convolve(const float* x, const float* packed, float* y, int64_t images, int64_t height, int64_t width,
                      int64_t inputs, int64_t outputs, int threads) {
    Shape shape{images, height, width, inputs, outputs};
    int64_t tiles = images * shape.down() * shape.across();
    if (threads < 1) threads = 1;
    // Few channels: U and M stay in a core's own cache. Many: the filters are read once for more tiles.
#ifdef BLOCK
    int64_t most = BLOCK;
#else
    int64_t most = inputs + outputs <= 256 ? 24 : 48;
#endif
    int64_t blocks = (tiles + most - 1) / most;
    if (blocks < threads) blocks = threads < tiles ? threads : tiles;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : failed)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t start = tiles * b / blocks;
        failed |= !block(shape, x, packed, y, start, tiles * (b + 1) / blocks - start);
    }
    return failed;
}
}
