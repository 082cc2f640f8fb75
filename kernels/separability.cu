// Cluster many small sets of patches for every k, and keep the k that separates best.
//
// Formula    For each k of k_min..k_max: spherical K-means on a Gram matrix G by Hartigan's moves,
//            the best of several starts by Σ_j √(h_j'Gh_j); then the mean cosine silhouette. The
//            score is the greatest mean, at least 0; the smallest k on a tie. A start draws BLOCKS
//            seeds (greedy k-means++), improves the BLOCKS clusters, and unites them into k in the
//            best of all ways before it improves those.
// Layout     grams (n, patches, patches) GRAM_T; valid (n, patches) bytes, 0 = no such patch; keys
//            (n) int64. Instead of grams and valid, so that no Gram matrix is ever written:
//            ROTATED: turned (replicates, patches, patches) double, transposes of the rotations,
//            products (channels, patches, patches) double and scales (channels) double; problem =
//            channel · replicates + replicate; the Gram matrix is that of rotated_grams.
//            POOLED: rows (…, dim) float and members (n, patches) int64, numbers of rows; the Gram
//            matrix is that of exact.gram. clarity (n) double: its mean off the diagonal.
//            partitions: int64, all partitions of b blocks into k parts, a part as the bits of a
//            byte, from offsets[b · (BLOCKS + 1) + k] to offsets[b · (BLOCKS + 1) + k + 1].
//            score (n) double, NaN where no k fits; clusters (n) int64; out (n, patches) int64, −1
//            for none, or null: not wanted; bad (1) int, set to 1 where an entry is no cosine.
// Launch     one block of WARPS warps per problem, each warp one start at a time; grid-stride.
//            ROTATED takes up to 96 · WARPS patches.
// Shared     dynamic, plan() in the launcher mirrors it:
//              grid    patches² doubles (TILED; else in `workspace`, patches² doubles a block)
//              norms   patches doubles, mean BLOCKS doubles, chosen BLOCKS ints, where patches ints
//              per warp, rounded up to 8 bytes: sums and gain BLOCKS × patches doubles, length
//              2^BLOCKS doubles, square, best_value BLOCKS doubles; size, centre, best_start BLOCKS
//              ints; label, block_label and BLOCKS × best_label patches bytes
//            While Gram matrices are made, a slice of rows or of a rotation lies where the warps'
//            arrays will be.
// Determinism  cosines are multiples of `step` (fixed_point.py), so all sums are exact in double and
//            free of their order; single IEEE operations elsewhere. The same bits as torch, numba.
// Source     Hartigan, Clustering Algorithms (1975); Arthur, Vassilvitskii, SODA 2007; Rousseeuw, J.
//            Comput. Appl. Math. 20 (1987); Langsrud, Stat. Comput. 15 (2005) for the rotations.

#ifndef GRAM_T
#define GRAM_T float
#endif
#ifndef WARPS
#define WARPS 5
#endif
#ifndef TILED
#define TILED 1
#endif
#ifndef ROTATED
#define ROTATED 0
#endif
#ifndef POOLED
#define POOLED 0
#endif
#ifndef RESIDENT
#define RESIDENT 20  // warps of a Hopper processor that registers must do for
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

#include "hashing.cuh"
#include "hartigan.cuh"
#include "patch_grams.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocks = RESIDENT * 3 / 4 / WARPS;  // less shared memory than Hopper's: fewer fit
#else
constexpr int kBlocks = RESIDENT / WARPS;
#endif

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) separability(
#if ROTATED
    const double* __restrict__ turned, const double* __restrict__ products,
    const double* __restrict__ scales, double shift, int replicates,
#elif POOLED
    const float* __restrict__ rows, const long long* __restrict__ members,
    double* __restrict__ clarity, int dim,
#else
    const GRAM_T* __restrict__ grams, const unsigned char* __restrict__ valid,
#endif
    const long long* __restrict__ keys, const unsigned long long* __restrict__ partitions,
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
    double* norms = at;
    double* mean = norms + patches;
    int* chosen = reinterpret_cast<int*>(mean + BLOCKS);
    int* where = chosen + BLOCKS;
    unsigned char* area = reinterpret_cast<unsigned char*>(where + patches + ((patches + BLOCKS) & 1));

    const int t = static_cast<int>(threadIdx.x);
    const int number = t / 32;
    const int doubles = 2 * BLOCKS * patches + (1 << BLOCKS) + 2 * BLOCKS;
    const int bytes = 8 * doubles + 4 * 3 * BLOCKS + (2 + BLOCKS) * patches;
    const int pitch = (bytes + 7) / 8 * 8;

    Warp warp;
    warp.grid = grid;
    warp.norms = norms;
    warp.lane = t % 32;

    for (unsigned turn = blockIdx.x; turn < static_cast<unsigned>(problems); turn += gridDim.x) {
        const long long problem = turn;
#if ROTATED || POOLED
        const int m = patches, room = WARPS * pitch / 8;
        double* slice = reinterpret_cast<double*>(area);
#pragma unroll 1
        for (int i = t; i < m; i += kThreads) where[i] = i;
#endif
#if ROTATED
        const unsigned channel = turn / replicates, replicate = turn % replicates;
        const long long square = static_cast<long long>(m) * m;
        const bool good = rotate(turned + replicate * square, products + channel * square,
                                 scales + channel, shift, grid, norms, slice, room, m, scale, step);
#elif POOLED
        const bool good =
            multiply(rows, members + problem * m, dim, grid, slice, room, m, scale, step);
#else
        const unsigned char* there = valid + problem * patches;
        int m = 0;
#pragma unroll 1
        for (int base = 0; base < patches; base += 32) {  // every warp counts, the first one writes
            const int i = base + warp.lane;
            const bool is = i < patches && there[i];
            const unsigned who = __ballot_sync(kAll, is);
            if (is && number == 0) where[m + __popc(who & ((1u << warp.lane) - 1u))] = i;
            m += __popc(who);
        }
        __syncthreads();
        const bool good =
            load(grams + problem * patches * patches, where, patches, grid, m, scale, step);
#endif
        if (__syncthreads_or(!good)) {
            if (t == 0) *bad = 1;  // the launcher raises: the results do not count
            continue;
        }
#pragma unroll 1
        for (int i = t; i < m; i += kThreads) norms[i] = grid[i * m + i];
        __syncthreads();
#if POOLED
        if (number == WARPS - 1) {
            double total = 0.0;
#pragma unroll 1
            for (int e = warp.lane; e < m * m; e += 32) total += grid[e];
            total = warp_sum(total);
            if (warp.lane == 0) {
                clarity[problem] = (total - m) / (static_cast<double>(m) * (m - 1));
            }
        }
#endif

        // Rows of m, not of `patches`: the sets of a problem lie close together.
        warp.m = m;
        warp.sums = reinterpret_cast<double*>(area + static_cast<long long>(number) * pitch);
        warp.gain = warp.sums + BLOCKS * patches;
        warp.length = warp.gain + BLOCKS * patches;
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
        const unsigned long long state =
            extend(extend(0, static_cast<unsigned long long>(keys[problem])), seeding);
        for (int start = number; start < starts && top >= k_min; start += WARPS) {
            warp.seed(extend(state, start), blocks, step);
            for (int round = k_min - 1; round <= top; ++round) {  // the blocks, then every k
                const bool forming = round < k_min;
                const int k = forming ? blocks : round;
                if (!forming) {
                    const int* from = offsets + blocks * (BLOCKS + 1) + k;
                    warp.unite(partitions + from[0], from[1] - from[0], k);
                }
                warp.sum_up(k);
                warp.climb(k);
                if (forming) {
                    warp.measure(blocks);
#pragma unroll 1
                    for (int i = warp.lane; i < m; i += 32) warp.block_label[i] = warp.label[i];
                    continue;
                }
                const double value = warp.objective(k);
                const bool better = value > warp.best_value[k - k_min];
                __syncwarp();
                if (!better) continue;
#pragma unroll 1
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
#pragma unroll 1
        for (int k = k_min + number; k <= top; k += WARPS) {
            const unsigned char* best = nullptr;
            double value = -infinity();
            int start = starts;
#pragma unroll 1
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
#pragma unroll 1
            for (int i = warp.lane; i < m; i += 32) warp.label[i] = best[i];
            warp.sum_up(k);
            double total = 0.0;
#pragma unroll 1
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
#pragma unroll 1
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
#pragma unroll 1
        for (int i = t; out && i < patches; i += kThreads) row[i] = -1;
        __syncthreads();
        if (out && winner && number == 0) {
            const unsigned char* best = area +
                                        static_cast<long long>(chosen[winner - k_min]) * pitch +
                                        (warp.best_label - reinterpret_cast<unsigned char*>(warp.sums)) +
                                        (winner - k_min) * patches;
            // Clusters are numbered by their first members; lane j knows that of cluster j.
            int first = m, rank = 0;
#pragma unroll 1
            for (int i = m; i-- > 0;) first = best[i] == warp.lane ? i : first;
#pragma unroll 1
            for (int j = 0; j < winner; ++j) rank += __shfl_sync(kAll, first, j) < first;
#pragma unroll 1
            for (int base = 0; base < m; base += 32) {
                const int i = base + warp.lane;
                const int number_of = __shfl_sync(kAll, rank, i < m ? best[i] : 0);
                if (i < m) row[where[i]] = number_of;
            }
        }
        __syncthreads();
    }
}
