// The convolution of ocp_faenet.nn.convolution in one pass, so that the filters z never leave the
// registers, and its backward pass but for the products. Compiled by ocp_faenet.nn.native at first use.
//
//   z = M_cell^T phi + sum_a A[atom_rows] + sum_k w_k R[radial_rows]
//   out[target] += x[source] * z * sigmoid(z)
//
// All rows have C floats, C a multiple of LANES. Threads share the channels, so that no two of
// them add to the same number.
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#define LANES 16
#define TILE 8
#else
#define LANES 8
#define TILE 4
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

// exp(-z) by 2^n * polynomial, n the nearest integer; relative error 2e-7. Beyond 87 clipped.
static inline vec exp_minus(vec z) {
    vec x = -z;
    x = x > all(87.0f) ? all(87.0f) : x;
    x = x < all(-87.0f) ? all(-87.0f) : x;
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vec shifted = x * all(1.44269504f) + magic;
    const vec n = shifted - magic;
    vec r = x - n * all(0.693359375f);
    r = r - n * all(-2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
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
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < NV; ++v) acc[i][v] = vec{};
    for (int64_t k = 0; k < K; ++k, strip += NV * LANES) {
        vec row[NV];
        for (int v = 0; v < NV; ++v) row[v] = load(strip + v * LANES);
        for (int i = 0; i < ROWS; ++i) {
            const vec factor = all(features[i * K + k]);
            for (int v = 0; v < NV; ++v) acc[i][v] += factor * row[v];
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < NV; ++v) store(z + i * C + v * LANES, acc[i][v]);
}

// The strip of the matrix is copied first: rows far apart would meet in the same cache sets.
template <int NV>
static inline void product_panel(int64_t n, int64_t C, int64_t K, const float *features,
                                 const float *matrix, float *strip, float *z) {
    for (int64_t k = 0; k < K; ++k)
        std::memcpy(strip + k * NV * LANES, matrix + k * C, NV * LANES * sizeof(float));
    int64_t e = 0;
    for (; e + TILE <= n; e += TILE)
        product_tile<TILE, NV>(C, K, features + e * K, strip, z + e * C);
    for (; e < n; ++e) product_tile<1, NV>(C, K, features + e * K, strip, z + e * C);
}

// n messages of one cell, channels [c0, c1).
static void product(int64_t n, int64_t c0, int64_t c1, int64_t C, int64_t K, const float *features,
                    const float *matrix, float *strip, float *z) {
    int64_t c = c0;
    for (; c + PANEL * LANES <= c1; c += PANEL * LANES)
        product_panel<PANEL>(n, C, K, features, matrix + c, strip, z + c);
    for (; c < c1; c += LANES) product_panel<1>(n, C, K, features, matrix + c, strip, z + c);
}

// Messages [begin, end), channels [c0, c1): what follows the product. Completes z to keep it.
template <int KA, int KR>
static void gather_and_add(int64_t begin, int64_t end, int64_t c0, int64_t c1, int64_t C,
                           const Tables &t, float *z, bool keep, float *out) {
    for (int64_t e = begin; e < end; ++e, z += C) {
        const float *xe = t.x + t.source[e] * C;
        float *oe = out + t.target[e] * C;
        const float *a[KA], *r[KR > 0 ? KR : 1];
        float w[KR > 0 ? KR : 1];
        for (int k = 0; k < KA; ++k) a[k] = t.atoms + t.atom_rows[e * KA + k] * C;
        for (int k = 0; k < KR; ++k) {
            r[k] = t.radial + t.radial_rows[e * KR + k] * C;
            w[k] = t.radial_weights[e * KR + k];
        }
        for (int64_t c = c0; c < c1; c += LANES) {
            vec v = load(z + c);
            for (int k = 0; k < KA; ++k) v += load(a[k] + c);
            for (int k = 0; k < KR; ++k) v += w[k] * load(r[k] + c);
            if (keep) store(z + c, v);
            store(oe + c, load(oe + c) + load(xe + c) * v * sigmoid(v));
        }
    }
}

// Channels [c0, c1) of all messages, a piece of a cell at a time.
template <int KA, int KR>
static void forward_channels(int64_t c0, int64_t c1, int64_t cells, const int64_t *ends, int64_t C,
                             int64_t K, const float *features, const float *matrices,
                             const Tables &t, float *saved, float *out) {
    std::vector<float> scratch(saved ? 0 : PIECE * C), strip(PANEL * LANES * K);
    int64_t e = 0;
    for (int64_t cell = 0; cell < cells; ++cell, matrices += K * C) {
        while (e < ends[cell]) {
            const int64_t end = e + PIECE < ends[cell] ? e + PIECE : ends[cell];
            float *z = saved ? saved + e * C : scratch.data();
            product(end - e, c0, c1, C, K, features + e * K, matrices, strip.data(), z);
            gather_and_add<KA, KR>(e, end, c0, c1, C, t, z, saved != nullptr, out);
            e = end;
        }
    }
}

template <int KA, int KR>
static void backward_rows(int64_t n, int64_t C, int64_t c0, int64_t c1, const float *z,
                          const float *grad, const float *x, const Tables &g, float *dz, float *dx,
                          float *datoms, float *dradial) {
    for (int64_t e = 0; e < n; ++e) {
        const float *xe = x + g.source[e] * C, *ge = grad + g.target[e] * C, *ze = z + e * C;
        float *dxe = dx + g.source[e] * C, *dze = dz + e * C;
        float *a[KA], *r[KR > 0 ? KR : 1];
        float w[KR > 0 ? KR : 1];
        for (int k = 0; k < KA; ++k) a[k] = datoms + g.atom_rows[e * KA + k] * C;
        for (int k = 0; k < KR; ++k) {
            r[k] = dradial + g.radial_rows[e * KR + k] * C;
            w[k] = g.radial_weights[e * KR + k];
        }
        for (int64_t c = c0; c < c1; c += LANES) {
            const vec v = load(ze + c), up = load(ge + c), s = sigmoid(v), f = v * s;
            store(dxe + c, load(dxe + c) + up * f);
            const vec d = up * load(xe + c) * (s + f * (all(1.0f) - s));
            store(dze + c, d);
            for (int k = 0; k < KA; ++k) store(a[k] + c, load(a[k] + c) + d);
            for (int k = 0; k < KR; ++k) store(r[k] + c, load(r[k] + c) + w[k] * d);
        }
    }
}

// Channels of thread t of T: whole cache lines.
static inline void share(int64_t C, int t, int T, int64_t *c0, int64_t *c1) {
    const int64_t lines = (C + 15) / 16, lo = lines * t / T * 16, hi = lines * (t + 1) / T * 16;
    *c0 = lo < C ? lo : C;
    *c1 = hi < C ? hi : C;
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

void faenet_forward(int64_t C, int threads, int ka, int kr, int64_t K, int64_t cells,
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
    forward_channels<KA, KR>(c0, c1, cells, ends, C, K, features, matrices, t, z, out)
        DISPATCH(FORWARD)
    }
}

void faenet_backward(int64_t n, int64_t C, int threads, int ka, int kr, const float *z,
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
    backward_rows<KA, KR>(n, C, c0, c1, z, grad, x, g, dz, dx, datoms, dradial)
        DISPATCH(BACKWARD)
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
