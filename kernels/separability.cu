// Cluster many small sets of patches for every k, and keep the k that separates best.
//
// Formula    For each k of k_min..k_max: spherical K-means on a Gram matrix G by Hartigan's moves,
//            the best of several starts by Σ_j √(h_j'Gh_j); then the mean cosine silhouette. The
//            score is the greatest mean, at least 0; the smallest k on a tie. A start draws BLOCKS
//            seeds (greedy k-means++), improves the BLOCKS clusters, and unites them into k in the
//            best of all ways before it improves those.
// Layout     grams (n, patches, patches) GRAM_T; valid (n, patches) bytes, 0 = no such patch; keys
//            (n) int64. ROTATED: rotations (replicates, patches, patches) double, products
//            (channels, patches, patches) double and scales (channels) double instead of grams and
//            valid, problem = channel · replicates + replicate: the Gram matrix is that of
//            rotated_grams, made in shared memory and never written.
//            partitions: bytes, all partitions of b blocks into k parts, k bytes each (a part as
//            bits), from offsets[b · (BLOCKS + 1) + k] to offsets[b · (BLOCKS + 1) + k + 1].
//            score (n) double, NaN where no k fits; clusters (n) int64; out (n, patches) int64, −1
//            for none, or null: not wanted; bad (1) int, set to 1 where an entry is no cosine.
// Launch     one block of WARPS warps per problem, each warp one start at a time; grid-stride.
// Shared     dynamic, shared_bytes() in the launcher mirrors it:
//              grid    patches² doubles (TILED; else in `workspace`, patches² doubles a block)
//              mean    BLOCKS doubles, chosen BLOCKS ints, where patches ints
//              per warp, rounded up to 8 bytes: sums and gain BLOCKS × patches doubles, loss patches
//              doubles, length 2^BLOCKS doubles, square, best_value BLOCKS doubles; size, centre,
//              best_start BLOCKS ints; label, block_label and BLOCKS × best_label patches bytes
//            ROTATED needs patches × (patches | 1) doubles for a product in the place of the warps.
// Determinism  cosines are multiples of `step` (fixed_point.py), so all sums are exact in double and
//            free of their order; single IEEE operations elsewhere. The same bits as torch, numba.
// Source     Hartigan, Clustering Algorithms (1975); Arthur, Vassilvitskii, SODA 2007; Rousseeuw, J.
//            Comput. Appl. Math. 20 (1987); Langsrud, Stat. Comput. 15 (2005) for the rotations.

#ifndef GRAM_T
#define GRAM_T float
#endif
#ifndef WARPS
#define WARPS 4
#endif
#ifndef TILED
#define TILED 1
#endif
#ifndef ROTATED
#define ROTATED 0
#endif
#ifndef BLOCKS
#define BLOCKS 7
#endif
#ifndef BOUND
#define BOUND 2.0
#endif
#ifndef RESOLUTION
#define RESOLUTION 9.5367431640625e-07  // 2^-20
#endif
#ifndef TOLERANCE
#define TOLERANCE 1e-11
#endif

#include "hartigan.cuh"

namespace {

// Symmetrise the m × m entries of grid and round them; every thread of the block takes part and
// learns whether its entries are cosines.
__device__ bool to_grid(double* grid, int m, double scale, double step) {
    bool good = true;
    for (int e = static_cast<int>(threadIdx.x); e < m * m; e += WARPS * 32) {
        const int i = e / m, j = e % m;
        if (j > i) continue;
        const double value = (grid[i * m + j] + grid[j * m + i]) * 0.5;
        good = good && fabs(value) <= BOUND;  // false for NaN
        grid[i * m + j] = grid[j * m + i] = rint(value * scale) * step;
    }
    return good;
}

#if ROTATED
constexpr double kCosine = 16777216.0;           // 2^24, 1 / exact.GRID
constexpr double kProduct = 134217728.0;         // 2^27, 1 / rotated_grams.PRODUCT_GRID
constexpr double kTiny = 9.313225746154785e-10;  // 2^-30, rotated_grams.TINY

// Cosines of the rows of one channel under one rotation, see rotated_grams.
__device__ void rotate(const double* rotation, const double* product, double size, double shift,
                       double* grid, double* half, int m) {
    const int t = static_cast<int>(threadIdx.x), pitch = m | 1;
    for (int e = t; e < m * m; e += WARPS * 32) grid[e] = product[e];
    __syncthreads();
    for (int e = t; e < m * m; e += WARPS * 32) {
        const int i = e / m, j = e % m;
        double sum = 0.0;
        for (int l = 0; l < m; ++l) sum += rotation[i * m + l] * grid[l * m + j];
        half[i * pitch + j] = rint(sum * kProduct) / kProduct;
    }
    __syncthreads();
    for (int e = t; e < m * m; e += WARPS * 32) {
        const int i = e % m, j = e / m;  // a warp shares row j of the rotation
        double sum = 0.0;
        for (int l = 0; l < m; ++l) sum += half[i * pitch + l] * rotation[j * m + l];
        grid[i * m + j] = sum * size + shift;
    }
    __syncthreads();
    for (int i = t; i < m; i += WARPS * 32) half[i] = sqrt(fmax(grid[i * m + i], kTiny));
    __syncthreads();
    for (int e = t; e < m * m; e += WARPS * 32) {
        const int i = e / m, j = e % m;
        const double cosine = rint(grid[e] / (half[i] * half[j]) * kCosine) / kCosine;
        const double bound = fmin(fmax(cosine, -1.0), 1.0);
        grid[e] = i == j ? 1.0 : cosine == cosine ? bound : cosine;  // NaN stays: it is refused
    }
}
#endif

}  // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)  // the second number frees ptxas to use registers: no spills
separability(
#if ROTATED
    const double* __restrict__ rotations, const double* __restrict__ products,
    const double* __restrict__ scales, double shift, int replicates,
#else
    const GRAM_T* __restrict__ grams, const unsigned char* __restrict__ valid,
#endif
    const long long* __restrict__ keys, const unsigned char* __restrict__ partitions,
    const int* __restrict__ offsets, double* __restrict__ workspace, double* __restrict__ score,
    long long* __restrict__ clusters, long long* __restrict__ out, int* __restrict__ bad,
    int problems, int patches, int k_min, int k_max, int starts, unsigned long long seeding,
    double scale, double step) {
    extern __shared__ __align__(16) unsigned char shared[];
    double* at = reinterpret_cast<double*>(shared);
#if TILED
    double* grid = at;
    at += patches * patches;
#else
    double* grid = workspace + static_cast<long long>(blockIdx.x) * patches * patches;
#endif
    double* mean = at;
    int* chosen = reinterpret_cast<int*>(mean + BLOCKS);
    int* where = chosen + BLOCKS;
    unsigned char* area = reinterpret_cast<unsigned char*>(where + patches + ((patches + BLOCKS) & 1));

    const int t = static_cast<int>(threadIdx.x);
    const int number = t / 32;
    const int doubles = 2 * BLOCKS * patches + patches + (1 << BLOCKS) + 2 * BLOCKS;
    const int bytes = 8 * doubles + 4 * 3 * BLOCKS + (2 + BLOCKS) * patches;
    const int pitch = (bytes + 7) / 8 * 8;

    Warp warp;
    warp.grid = grid;
    warp.lane = t % 32;

    for (long long problem = blockIdx.x; problem < problems; problem += gridDim.x) {
        int m = 0;
#if ROTATED
        m = patches;
        const long long channel = problem / replicates, turn = problem % replicates;
        const long long square = static_cast<long long>(patches) * patches;
        for (int i = t; i < m; i += WARPS * 32) where[i] = i;
        rotate(rotations + turn * square, products + channel * square, scales[channel], shift, grid,
               reinterpret_cast<double*>(area), m);
#else
        const unsigned char* there = valid + problem * patches;
        for (int i = 0; i < patches; ++i) {
            if (!there[i]) continue;
            if (t == 0) where[m] = i;
            ++m;
        }
        __syncthreads();
        const GRAM_T* gram = grams + problem * patches * patches;
        for (int e = t; e < m * m; e += WARPS * 32) {
            grid[e] = static_cast<double>(
                gram[static_cast<long long>(where[e / m]) * patches + where[e % m]]);
        }
#endif
        __syncthreads();
        if (__syncthreads_or(!to_grid(grid, m, scale, step))) {
            if (t == 0) *bad = 1;  // the launcher raises: the results do not count
            continue;
        }

        // Rows of m, not of `patches`: the sets of a problem lie close together.
        warp.m = m;
        warp.sums = reinterpret_cast<double*>(area + static_cast<long long>(number) * pitch);
        warp.gain = warp.sums + BLOCKS * patches;
        warp.loss = warp.gain + BLOCKS * patches;
        warp.length = warp.loss + patches;
        warp.square = warp.length + (1 << BLOCKS);
        warp.best_value = warp.square + BLOCKS;
        warp.size = reinterpret_cast<int*>(warp.best_value + BLOCKS);
        warp.centre = warp.size + BLOCKS;
        warp.best_start = warp.centre + BLOCKS;
        warp.label = reinterpret_cast<unsigned char*>(warp.best_start + BLOCKS);
        warp.block_label = warp.label + patches;
        warp.best_label = warp.block_label + patches;

        const int top = k_max < m - 1 ? k_max : m - 1;
        const int blocks = BLOCKS < m ? BLOCKS : m;
        if (warp.lane < BLOCKS) warp.best_value[warp.lane] = -infinity();
        __syncwarp();
        const unsigned long long state = extend(
            mix(static_cast<unsigned long long>(keys[problem]) + 0x9E3779B97F4A7C15ULL), seeding);
        for (int start = number; start < starts && top >= k_min; start += WARPS) {
            warp.seed(extend(state, start), blocks, step);
            warp.sum_up(blocks);
            warp.climb(blocks);
            warp.measure(blocks);
            for (int i = warp.lane; i < m; i += 32) warp.block_label[i] = warp.label[i];
            for (int k = k_min; k <= top; ++k) {
                const int* from = offsets + blocks * (BLOCKS + 1) + k;
                warp.unite(partitions + from[0], (from[1] - from[0]) / k, k);
                warp.sum_up(k);
                warp.climb(k);
                const double value = warp.objective(k);
                const bool better = value > warp.best_value[k - k_min];
                __syncwarp();
                if (!better) continue;
                for (int i = warp.lane; i < m; i += 32) {
                    warp.best_label[(k - k_min) * patches + i] = warp.label[i];
                }
                if (warp.lane == 0) {
                    warp.best_value[k - k_min] = value;
                    warp.best_start[k - k_min] = start;
                }
                __syncwarp();
            }
        }
        __syncthreads();

        // The best start of each k, then its mean silhouette; the warps share the k.
        for (int k = k_min + number; k <= top; k += WARPS) {
            const unsigned char* best = nullptr;
            double value = -infinity();
            int start = starts;
            for (int w = 0; w < WARPS; ++w) {
                unsigned char* other = area + static_cast<long long>(w) * pitch;
                const double* values = reinterpret_cast<double*>(other) +
                                       (warp.best_value - warp.sums);
                const int* first = reinterpret_cast<const int*>(values + BLOCKS) + 2 * BLOCKS;
                const double found = values[k - k_min];
                if (found > value || (found == value && first[k - k_min] < start)) {
                    value = found;
                    start = first[k - k_min];
                    best = other + (warp.best_label - reinterpret_cast<unsigned char*>(warp.sums)) +
                           (k - k_min) * patches;
                }
            }
            for (int i = warp.lane; i < m; i += 32) warp.label[i] = best[i];
            warp.sum_up(k);
            double total = 0.0;
            for (int i = warp.lane; i < m; i += 32) total += fine(warp.silhouette(i, k));
            total = warp_sum(total);
            if (warp.lane == 0) {
                mean[k - k_min] = total / m;
                chosen[k - k_min] = start % WARPS;  // the warp that made it
            }
        }
        __syncthreads();

        int winner = 0;
        double highest = -infinity();
        for (int k = k_min; k <= top; ++k) {
            if (mean[k - k_min] > highest) {
                highest = mean[k - k_min];
                winner = k;
            }
        }
        if (t == 0) {
            score[problem] = winner ? fmax(highest, 0.0) : __longlong_as_double(0x7ff8000000000000LL);
            clusters[problem] = winner;
        }
        long long* row = out + problem * patches;
        for (int i = t; out && i < patches; i += WARPS * 32) row[i] = -1;
        __syncthreads();
        if (out && winner) {
            const unsigned char* best = area +
                                        static_cast<long long>(chosen[winner - k_min]) * pitch +
                                        (warp.best_label - reinterpret_cast<unsigned char*>(warp.sums)) +
                                        (winner - k_min) * patches;
            for (int i = t; i < m; i += WARPS * 32) {
                // Clusters are numbered by their first members: how many appear before this one?
                int rank = 0;
                for (int l = 0; l < m && best[l] != best[i]; ++l) {
                    bool again = false;
                    for (int e = 0; e < l; ++e) again = again || best[e] == best[l];
                    rank += !again;
                }
                row[where[i]] = rank;
            }
        }
        __syncthreads();
    }
}
