// Cosine silhouette of every patch of many small clusterings.
//
// Formula    s(i) = (b − a) / max(a, b) with the distance 1 − G, a(i) the mean distance to the
//            other members of i's cluster, b(i) the least mean distance to another cluster.
//            0 for a singleton, for a lone cluster and where max(a, b) < RESOLUTION; NaN where
//            the label is −1.
// Layout     grams (n, patches, patches) GRAM_T, row-major; labels (n, patches) int64, −1 = none,
//            below `clusters`; out (n, patches) float64; bad (1) int, set to 1 where an entry is
//            NaN or beyond BOUND, so no cosine.
// Launch     one block of BLOCK threads per problem, grid n (grid-stride beyond the grid).
//            Thread t takes patches t, t + BLOCK, …
// Shared     dynamic, silhouette_shared_bytes() in the launcher mirrors it:
//              sums    clusters × BLOCK doubles   one column per thread, no bank conflicts
//              labels  patches ints               sizes   clusters ints
//              tile    patches × (patches | 1) GRAM_T, with `tiled` only: the symmetrised read
//                      G[i][l] + G[l][i] then costs one pass over global memory; the odd pitch
//                      keeps column reads free of conflicts. Larger problems read global memory.
// Determinism  cosines are rounded to multiples of step = 1 / scale (2^-31), so the float64 sums are
//            exact: no order of additions changes a bit, and torch and numba give the same.
//            No atomics on floating point.
// Source     Rousseeuw, J. Comput. Appl. Math. 20 (1987).

#ifndef GRAM_T
#define GRAM_T float
#endif
#ifndef BLOCK
#define BLOCK 128
#endif
#ifndef BOUND
#define BOUND 2.0
#endif
#ifndef RESOLUTION
#define RESOLUTION 9.5367431640625e-07  // 2^-20
#endif

namespace {

__device__ double on_grid(GRAM_T one, GRAM_T other, double scale, double step) {
    return rint((static_cast<double>(one) + static_cast<double>(other)) * 0.5 * scale) * step;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(BLOCK)
silhouette(const GRAM_T* __restrict__ grams, const long long* __restrict__ labels,
           double* __restrict__ out, int* __restrict__ bad, int problems, int patches, int clusters, double scale,
           double step, int tiled) {
    extern __shared__ __align__(16) unsigned char shared[];
    double* sums = reinterpret_cast<double*>(shared);
    int* label = reinterpret_cast<int*>(sums + clusters * BLOCK);
    int* size = label + patches;
    GRAM_T* tile = reinterpret_cast<GRAM_T*>(size + clusters + ((patches + clusters) & 1));

    const int t = static_cast<int>(threadIdx.x);
    const int pitch = tiled ? (patches | 1) : patches;
    const double not_a_number = __longlong_as_double(0x7ff8000000000000LL);
    const double infinity = __longlong_as_double(0x7ff0000000000000LL);

    for (int problem = static_cast<int>(blockIdx.x); problem < problems;
         problem += static_cast<int>(gridDim.x)) {
        const long long first = static_cast<long long>(problem) * patches;
        const GRAM_T* gram = grams + first * patches;

        for (int j = t; j < clusters; j += BLOCK) size[j] = 0;
        __syncthreads();
        for (int i = t; i < patches; i += BLOCK) {
            label[i] = static_cast<int>(labels[first + i]);
            if (label[i] >= 0) atomicAdd(&size[label[i]], 1);
        }
        if (tiled) {
            for (int e = t; e < patches * patches; e += BLOCK) {
                tile[(e / patches) * pitch + e % patches] = gram[e];
            }
        }
        __syncthreads();

        const GRAM_T* entries = tiled ? tile : gram;
        for (int i = t; i < patches; i += BLOCK) {
            if (label[i] < 0) {
                out[first + i] = not_a_number;
                continue;
            }
            for (int j = 0; j < clusters; ++j) sums[j * BLOCK + t] = 0.0;
            double norm = 0.0;
            for (int l = 0; l < patches; ++l) {
                if (label[l] < 0) continue;
                const long long row = static_cast<long long>(i) * pitch + l;
                const long long column = static_cast<long long>(l) * pitch + i;
                const double cosine = on_grid(entries[row], entries[column], scale, step);
                if (!(fabs(cosine) <= BOUND)) *bad = 1;  // every writer writes the same
                if (l == i) norm = cosine;
                sums[label[l] * BLOCK + t] += cosine;
            }
            const int own = label[i];
            double between = infinity;
            for (int j = 0; j < clusters; ++j) {
                if (j == own || size[j] == 0) continue;
                between = fmin(between, 1.0 - sums[j * BLOCK + t] / size[j]);
            }
            double value = 0.0;
            if (size[own] > 1 && between < infinity) {
                const double within = 1.0 - (sums[own * BLOCK + t] - norm) / (size[own] - 1);
                const double widest = fmax(within, between);
                if (widest >= RESOLUTION) {
                    value = fmin(fmax((between - within) / widest, -1.0), 1.0);
                }
            }
            out[first + i] = value;
        }
        __syncthreads();
    }
}
