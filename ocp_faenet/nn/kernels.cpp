// The convolution of ocp_faenet.nn.convolution in one pass, so that the filters z never leave the
// registers, and its backward pass but for the products. Compiled by ocp_faenet.nn.native_build.
//
//   z = M_cell^T phi + sum_a A[atom_rows] + sum_k w_k R[radial_rows]
//   out[target] += x[source] * z * sigmoid(z)
//
// G messages that follow each other share features phi and radial rows: frames that differ in
// signs, with matrices (K, G, C).
//
// All rows have C floats, C a multiple of LANES. Threads share the channels, so that no two of
// them add to the same number.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define TILE 8
#else
#define LANES 8
#define TILE 4
#endif
#define UNROLL _Pragma("GCC unroll 8")
// Loaded once, not again by each product that takes it: loads are what limits a tile otherwise.
#if defined(__AVX__)
#define IN_REGISTER(v) asm("" : "+x"(v))
#else
#define IN_REGISTER(v) (void)v
#endif
#define MAX_DEGREE 8
#define PANEL 3  // vectors of channels; TILE * PANEL sums stay in registers
#define PIECE 96  // messages whose filters stay in cache

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline vec load(const float *p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, vec v) { std::memcpy(p, &v, sizeof v); }
static inline vec all(float f) { return f - vec{}; }

// The nearer of z and +-87; NaN stays NaN.
static inline vec clipped(vec z) {
#if defined(__AVX512F__)
    return _mm512_max_ps(all(-87.0f), _mm512_min_ps(all(87.0f), z));
#elif defined(__AVX__)
    return _mm256_max_ps(all(-87.0f), _mm256_min_ps(all(87.0f), z));
#else
    z = z > all(87.0f) ? all(87.0f) : z;
    return z < all(-87.0f) ? all(-87.0f) : z;
#endif
}

// exp(-z) = 2^n exp(-r), n the integer nearest to -z / ln 2 and r = z + n ln 2, by the polynomial of
// degree 5 that is nearest in relative error on |r| <= ln 2 / 2: 1e-7. Beyond 87 clipped.
static inline vec exp_minus(vec z) {
    z = clipped(z);
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vec shifted = magic - z * all(1.44269504f);
    const vec n = shifted - magic;
    const vec r = z + n * all(0.69314718f);
    vec p = all(-0.00829029748f);
    p = p * r + all(0.0418979674f);
    p = p * r + all(-0.166676366f);
    p = p * r + all(0.499991493f);
    p = p * r + all(-0.999999707f);
    p = p * r + all(1.0f);
    ivec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    // The low bits of `shifted` hold n in two's complement.
    ivec scale = (bits << 23) + (127 << 23);
    vec power;
    std::memcpy(&power, &scale, sizeof power);
    return p * power;
}
static inline vec sigmoid(vec z) { return all(1.0f) / (all(1.0f) + exp_minus(z)); }

struct Tables {
    const float *x, *atoms, *radial;
    const int64_t *source, *target, *atom_rows, *radial_rows;
    const float *radial_weights;
};

// z = features * matrix: ROWS messages by NV vectors of channels.
template <int ROWS, int NV>
static inline void product_tile(int64_t C, int64_t K, const float *features, const float *strip,
                                float *z) {
    vec acc[ROWS][NV];
    UNROLL for (int i = 0; i < ROWS; ++i)
        UNROLL for (int v = 0; v < NV; ++v) acc[i][v] = vec{};
    for (int64_t k = 0; k < K; ++k, strip += NV * LANES) {
        vec row[NV];
        UNROLL for (int v = 0; v < NV; ++v) {
            row[v] = load(strip + v * LANES);
            IN_REGISTER(row[v]);
        }
        UNROLL for (int i = 0; i < ROWS; ++i) {
            const vec factor = all(features[i * K + k]);
            UNROLL for (int v = 0; v < NV; ++v) acc[i][v] += factor * row[v];
        }
    }
    UNROLL for (int i = 0; i < ROWS; ++i)
        UNROLL for (int v = 0; v < NV; ++v) store(z + i * C + v * LANES, acc[i][v]);
}

// Columns [c0, c1) of a matrix (K, width) in strips of PANEL vectors and then of one, read once from
// end to end: rows far apart would meet in the same cache sets.
static void pack(int64_t c0, int64_t c1, int64_t K, int64_t width, const float *matrix,
                 float *packed) {
    for (int64_t k = 0; k < K; ++k, matrix += width) {
        int64_t c = c0;
        for (; c + PANEL * LANES <= c1; c += PANEL * LANES)
            std::memcpy(packed + (c - c0) * K + k * PANEL * LANES, matrix + c,
                        PANEL * LANES * sizeof(float));
        for (; c < c1; c += LANES)
            std::memcpy(packed + (c - c0) * K + k * LANES, matrix + c, LANES * sizeof(float));
    }
}

// The last tile overlaps the one before it: some rows are computed twice, none one by one.
template <int NV>
static inline void product_panel(int64_t n, int64_t stride, int64_t K, const float *features,
                                 const float *strip, float *z) {
    if (n >= TILE) {
        for (int64_t e = 0; e < n; e += TILE) {
            const int64_t first = e + TILE <= n ? e : n - TILE;
            product_tile<TILE, NV>(stride, K, features + first * K, strip, z + first * stride);
        }
    } else {
        for (int64_t e = 0; e < n; ++e)
            product_tile<1, NV>(stride, K, features + e * K, strip, z + e * stride);
    }
}

// n rows of features of one cell, by channels [c0, c1) of a packed matrix.
static void product(int64_t n, int64_t c0, int64_t c1, int64_t stride, int64_t K,
                    const float *features, const float *packed, float *z) {
    int64_t c = c0;
    for (; c + PANEL * LANES <= c1; c += PANEL * LANES)
        product_panel<PANEL>(n, stride, K, features, packed + (c - c0) * K, z + c);
    for (; c < c1; c += LANES)
        product_panel<1>(n, stride, K, features, packed + (c - c0) * K, z + c);
}

// sum_k w_k R[rows_k], channels [c0, c1).
template <int KR>
static inline void radial_row(int64_t c0, int64_t c1, int64_t C, const float *radial,
                              const int64_t *rows, const float *weights, float *sum) {
    const float *r[KR > 0 ? KR : 1];
    vec w[KR > 0 ? KR : 1];
    for (int k = 0; k < KR; ++k) r[k] = radial + rows[k] * C, w[k] = all(weights[k]);
    for (int64_t c = c0; c < c1; c += LANES) {
        vec v = vec{};
        for (int k = 0; k < KR; ++k) v += w[k] * load(r[k] + c);
        store(sum + c, v);
    }
}

// Rows [begin, end) of features with G messages each, channels [c0, c1): what follows the product.
// Completes z to keep it.
template <int KA, int KR>
static void gather_and_add(int64_t begin, int64_t end, int64_t c0, int64_t c1, int64_t C, int G,
                           const Tables &t, float *z, bool keep, float *sum, float *out) {
    for (int64_t m = begin * G; m < end * G; ++m, z += C) {
        if (KR > 0 && m % G == 0)
            radial_row<KR>(c0, c1, C, t.radial, t.radial_rows + m / G * KR,
                           t.radial_weights + m / G * KR, sum);
        const float *xm = t.x + t.source[m] * C, *a[KA];
        float *om = out + t.target[m] * C;
        for (int k = 0; k < KA; ++k) a[k] = t.atoms + t.atom_rows[m * KA + k] * C;
        const int64_t next = m + 1 < end * G ? m + 1 : m;
        const float *xn = t.x + t.source[next] * C, *on = out + t.target[next] * C, *an[KA];
        for (int k = 0; k < KA; ++k) an[k] = t.atoms + t.atom_rows[next * KA + k] * C;
        for (int64_t c = c0; c < c1; c += LANES) {
            if (c % 16 == 0) {
                __builtin_prefetch(xn + c);
                __builtin_prefetch(on + c, 1);
                for (int k = 0; k < KA; ++k) __builtin_prefetch(an[k] + c);
            }
            vec v = load(z + c);
            for (int k = 0; k < KA; ++k) v += load(a[k] + c);
            if (KR > 0) v += load(sum + c);
            if (keep) store(z + c, v);
            store(om + c, load(om + c) + load(xm + c) * v * sigmoid(v));
        }
    }
}

// Channels [c0, c1) of all messages, a piece of a cell at a time.
template <int KA, int KR>
static void forward_channels(int64_t c0, int64_t c1, int G, int64_t cells, const int64_t *ends,
                             int64_t C, int64_t K, const float *features, const float *matrices,
                             const Tables &t, float *saved, float *out) {
    const int64_t piece = PIECE > G ? PIECE / G : 1, width = G * C, wide = (c1 - c0) * K;
    std::vector<float> scratch(saved ? 0 : piece * width), packed(G * wide), sum(C);
    int64_t e = 0;
    for (int64_t cell = 0; cell < cells; ++cell, matrices += K * width) {
        if (e < ends[cell])
            for (int g = 0; g < G; ++g)
                pack(g * C + c0, g * C + c1, K, width, matrices, packed.data() + g * wide);
        while (e < ends[cell]) {
            const int64_t end = e + piece < ends[cell] ? e + piece : ends[cell];
            float *z = saved ? saved + e * width : scratch.data();
            for (int g = 0; g < G; ++g)
                product(end - e, c0, c1, width, K, features + e * K, packed.data() + g * wide,
                        z + g * C);
            gather_and_add<KA, KR>(e, end, c0, c1, C, G, t, z, saved != nullptr, sum.data(), out);
            e = end;
        }
    }
}

// n rows of features with G messages each; z and dz (n, G, C).
template <int KA, int KR>
static void backward_rows(int64_t n, int64_t C, int G, int64_t c0, int64_t c1, const float *z,
                          const float *grad, const float *x, const Tables &g, float *dz, float *dx,
                          float *datoms, float *dradial) {
    std::vector<float> sum(KR > 0 ? C : 0);
    for (int64_t m = 0; m < n * G; ++m) {
        const float *xm = x + g.source[m] * C, *gm = grad + g.target[m] * C, *zm = z + m * C;
        float *dxm = dx + g.source[m] * C, *dzm = dz + m * C, *a[KA];
        for (int k = 0; k < KA; ++k) a[k] = datoms + g.atom_rows[m * KA + k] * C;
        const bool first = m % G == 0;
        for (int64_t c = c0; c < c1; c += LANES) {
            const vec v = load(zm + c), up = load(gm + c), s = sigmoid(v), f = v * s;
            store(dxm + c, load(dxm + c) + up * f);
            const vec d = up * load(xm + c) * (s + f * (all(1.0f) - s));
            store(dzm + c, d);
            for (int k = 0; k < KA; ++k) store(a[k] + c, load(a[k] + c) + d);
            if (KR > 0) store(sum.data() + c, first ? d : load(sum.data() + c) + d);
        }
        if (KR > 0 && m % G == G - 1) {
            const int64_t e = m / G;
            float *r[KR > 0 ? KR : 1];
            vec w[KR > 0 ? KR : 1];
            for (int k = 0; k < KR; ++k) {
                r[k] = dradial + g.radial_rows[e * KR + k] * C;
                w[k] = all(g.radial_weights[e * KR + k]);
            }
            for (int64_t c = c0; c < c1; c += LANES)
                for (int k = 0; k < KR; ++k)
                    store(r[k] + c, load(r[k] + c) + w[k] * load(sum.data() + c));
        }
    }
}

// Channels of thread t of T: whole cache lines.
static inline void share(int64_t C, int t, int T, int64_t *c0, int64_t *c1) {
    const int64_t lines = (C + 15) / 16, lo = lines * t / T * 16, hi = lines * (t + 1) / T * 16;
    *c0 = lo < C ? lo : C;
    *c1 = hi < C ? hi : C;
}

// A weight (width, K) of a linear layer as `pack` leaves its transpose (K, width).
static void pack_weight(int64_t K, int64_t width, const float *weight, float *packed) {
    for (int64_t c = 0; c < width;) {
        const int64_t step = c + PANEL * LANES <= width ? PANEL * LANES : LANES;
        float *strip = packed + c * K;
        for (int64_t j = 0; j < step; ++j)
            for (int64_t k = 0; k < K; ++k) strip[k * step + j] = weight[(c + j) * K + k];
        c += step;
    }
}

// z = silu(z + bias), rows of C.
static void bias_and_silu(int64_t n, int64_t C, const float *bias, float *z) {
    for (int64_t e = 0; e < n; ++e, z += C)
        for (int64_t c = 0; c < C; c += LANES) {
            const vec v = load(z + c) + load(bias + c);
            store(z + c, v * sigmoid(v));
        }
}

// y = silu((x - mean_scale * mean) * weight / sqrt(variance + eps) + bias) in place, n rows of one
// graph; the variance is the mean square of what the weight takes.
static void norm_and_silu(int64_t n, int64_t C, const float *weight, const float *bias,
                          const float *mean_scale, float eps, float *x, float *shift,
                          float *scale) {
    const vec share = all(1.0f / n);
    std::memset(shift, 0, C * sizeof(float));
    std::memset(scale, 0, C * sizeof(float));
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < C; c += LANES) store(shift + c, load(shift + c) + load(x + i * C + c));
    for (int64_t c = 0; c < C; c += LANES)
        store(shift + c, load(shift + c) * share * load(mean_scale + c));
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < C; c += LANES) {
            const vec v = load(x + i * C + c) - load(shift + c);
            store(scale + c, load(scale + c) + v * v);
        }
    for (int64_t c = 0; c < C; ++c) scale[c] = weight[c] / std::sqrt(scale[c] / n + eps);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < C; c += LANES) {
            float *at = x + i * C + c;
            const vec v = (load(at) - load(shift + c)) * load(scale + c) + load(bias + c);
            store(at, v * sigmoid(v));
        }
}

struct Residual {
    std::vector<float> first, second;
    const float *first_bias, *second_bias;
};

// n rows x of C channels through layers (x + silu(W2 silu(W1 x))) / sqrt 2.
static void residual_layers(int64_t n, int64_t C, int64_t width, const std::vector<Residual> &layers,
                            float *x, float *inner, float *update) {
    const vec half = all(0.70710678f);
    for (const Residual &layer : layers) {
        product(n, 0, width, width, C, x, layer.first.data(), inner);
        bias_and_silu(n, width, layer.first_bias, inner);
        product(n, 0, C, C, width, inner, layer.second.data(), update);
        bias_and_silu(n, C, layer.second_bias, update);
        for (int64_t i = 0; i < n * C; i += LANES)
            store(x + i, (load(x + i) + load(update + i)) * half);
    }
}

#define DISPATCH(CALL)                                    \
    if (ka == 1 && kr == 0) { CALL(1, 0); }               \
    else if (ka == 1 && kr == 1) { CALL(1, 1); }          \
    else if (ka == 1 && kr == 4) { CALL(1, 4); }          \
    else if (ka == 2 && kr == 0) { CALL(2, 0); }          \
    else if (ka == 2 && kr == 1) { CALL(2, 1); }          \
    else { CALL(2, 4); }

extern "C" {

int faenet_lanes() { return LANES; }

void faenet_forward(int64_t C, int threads, int ka, int kr, int G, int64_t K, int64_t cells,
                    const int64_t *ends, const float *features, const float *matrices,
                    const float *x, const float *atoms, const float *radial,
                    const int64_t *source, const int64_t *target, const int64_t *atom_rows,
                    const int64_t *radial_rows, const float *radial_weights, float *z,
                    float *out) {
    const Tables t{x, atoms, radial, source, target, atom_rows, radial_rows, radial_weights};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int thread = 0; thread < threads; ++thread) {
        int64_t c0, c1;
        share(C, thread, threads, &c0, &c1);
#define FORWARD(KA, KR) \
    forward_channels<KA, KR>(c0, c1, G, cells, ends, C, K, features, matrices, t, z, out)
        DISPATCH(FORWARD)
    }
}

void faenet_backward(int64_t n, int64_t C, int threads, int ka, int kr, int G, const float *z,
                     const float *grad, const float *x, const int64_t *source,
                     const int64_t *target, const int64_t *atom_rows, const int64_t *radial_rows,
                     const float *radial_weights, float *dz, float *dx, float *datoms,
                     float *dradial) {
    const Tables g{x, nullptr, nullptr, source, target, atom_rows, radial_rows, radial_weights};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
        int64_t c0, c1;
        share(C, t, threads, &c0, &c1);
#define BACKWARD(KA, KR) \
    backward_rows<KA, KR>(n, C, G, c0, c1, z, grad, x, g, dz, dx, datoms, dradial)
        DISPATCH(BACKWARD)
    }
}

// Rows up to ends[cell] by that cell's matrix (K, C).
void faenet_products(int threads, int64_t cells, int64_t K, int64_t C, const int64_t *ends,
                     const float *features, const float *matrices, float *out) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t cell = 0; cell < cells; ++cell) {
        const int64_t begin = cell ? ends[cell - 1] : 0;
        if (begin == ends[cell]) continue;
        std::vector<float> packed(K * C);
        pack(0, C, K, C, matrices + cell * K * C, packed.data());
        product(ends[cell] - begin, 0, C, C, K, features + begin * K, packed.data(),
                out + begin * C);
    }
}

// The block of ocp_faenet.nn.ewald for G structures in n slots each: sums over waves, residual
// layers, and the sum with the short-range message. h (H, N, C) and H 1 or F; waves (G, n, K) and
// (G, K, n); filters (G or 1, K, C); weights: for each layer W1 (width, C), b1, W2 (C, width), b2.
void faenet_ewald(int64_t C, int threads, int64_t F, int64_t H, int64_t N, int64_t G, int64_t n,
                  int64_t K, int shared, int layers, int64_t width, const int64_t *atoms,
                  const int64_t *counts, const float *waves, const float *turned,
                  const float *filters, const float *const *weights, const float *h,
                  const float *shorts, float *out) {
    std::vector<Residual> residual(layers);
    for (int l = 0; l < layers; ++l, weights += 4) {
        residual[l] = {std::vector<float>(C * width), std::vector<float>(C * width), weights[1],
                       weights[3]};
        pack_weight(C, width, weights[0], residual[l].first.data());
        pack_weight(width, C, weights[2], residual[l].second.data());
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t task = 0; task < H * G; ++task) {
        const int64_t frame = task / G, g = task % G, most = n > K ? n : K;
        const float *own = filters + (shared ? 0 : g * K * C);
        std::vector<float> packed(most * C), factors(K * C), x(n * C), inner(PIECE * width),
            update(PIECE * C);
        for (int64_t i = 0; i < n; ++i) {  // in the order of `pack`
            const float *row = h + (frame * N + atoms[g * n + i]) * C;
            for (int64_t c = 0; c < C;) {
                const int64_t step = c + PANEL * LANES <= C ? PANEL * LANES : LANES;
                std::memcpy(packed.data() + c * n + i * step, row + c, step * sizeof(float));
                c += step;
            }
        }
        product(K, 0, C, C, n, turned + g * K * n, packed.data(), factors.data());
        for (int64_t i = 0; i < K * C; i += LANES)
            store(factors.data() + i, load(factors.data() + i) * load(own + i));
        pack(0, C, K, C, factors.data(), packed.data());
        product(counts[g], 0, C, C, K, waves + g * n * K, packed.data(), x.data());
        for (int64_t i = 0; i < counts[g]; i += PIECE) {
            const int64_t rows = counts[g] - i < PIECE ? counts[g] - i : PIECE;
            residual_layers(rows, C, width, residual, x.data() + i * C, inner.data(),
                            update.data());
        }
        for (int64_t f = H == 1 ? 0 : frame; f < (H == 1 ? F : frame + 1); ++f)
            for (int64_t i = 0; i < counts[g]; ++i) {
                const int64_t row = (f * N + atoms[g * n + i]) * C;
                for (int64_t c = 0; c < C; c += LANES)
                    store(out + row + c, (load(shorts + row + c) + load(x.data() + i * C + c)) *
                                             all(0.70710678f));
            }
    }
}

// Graph norm over the atoms of each graph, which end at ends[graph], and SiLU: x (F, N, C).
void faenet_norm(int64_t C, int threads, int64_t F, int64_t N, int64_t graphs, const int64_t *ends,
                 const float *weight, const float *bias, const float *mean_scale, float eps,
                 float *x) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t task = 0; task < F * graphs; ++task) {
        const int64_t graph = task % graphs, first = graph ? ends[graph - 1] : 0;
        std::vector<float> shift(C), scale(C);
        norm_and_silu(ends[graph] - first, C, weight, bias, mean_scale, eps,
                      x + (task / graphs * N + first) * C, shift.data(), scale.data());
    }
}

// T_a(x) T_b(y) T_c(z), a + b + c <= degree, of `local` (n, 3): (n, K), c fastest.
void faenet_basis(int64_t n, int degree, int threads, const float *local, float *out) {
    const int64_t K = int64_t(degree + 1) * (degree + 2) * (degree + 3) / 6;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t e = 0; e < n; ++e) {
        float power[3][MAX_DEGREE + 1], *o = out + e * K;
        for (int axis = 0; axis < 3; ++axis) {
            const float x = local[e * 3 + axis];
            power[axis][0] = 1.0f;
            power[axis][1] = x;
            for (int k = 2; k <= degree; ++k)
                power[axis][k] = 2.0f * x * power[axis][k - 1] - power[axis][k - 2];
        }
        for (int a = 0; a <= degree; ++a)
            for (int b = 0; a + b <= degree; ++b) {
                const float both = power[0][a] * power[1][b];
                for (int c = 0; a + b + c <= degree; ++c) *o++ = both * power[2][c];
            }
    }
}

}  // extern "C"
