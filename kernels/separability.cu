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

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr double kFine = 1099511627776.0;  // 2^40, fixed_point.FINE

__device__ double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

__device__ double fine(double x) { return rint(x * kFine) / kFine; }

__device__ unsigned long long mix(unsigned long long x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

__device__ unsigned long long extend(unsigned long long state, unsigned long long key) {
    return mix((state ^ key) + 0x9E3779B97F4A7C15ULL);
}

__device__ double unit(unsigned long long state) {
    return static_cast<double>(state >> 11) * 1.1102230246251565e-16;  // 2^-53
}

// Exact terms: the order of the additions changes no bit.
__device__ double warp_sum(double value) {
    for (int by = 16; by > 0; by >>= 1) value += __shfl_xor_sync(kAll, value, by);
    return value;
}

// The greatest value of the warp and the smallest index that has it.
__device__ void warp_best(double& value, int& index) {
    for (int by = 16; by > 0; by >>= 1) {
        const double other = __shfl_xor_sync(kAll, value, by);
        const int at = __shfl_xor_sync(kAll, index, by);
        if (other > value || (other == value && at < index)) {
            value = other;
            index = at;
        }
    }
}

// What one warp works on: one start of one problem. Arrays of patches belong to the lanes patch by
// patch (lane, lane + 32, …), so a lane reads its own without a barrier.
struct Warp {
    const double* grid;
    int m, lane;
    double *sums, *gain, *loss, *length, *square, *best_value;
    int *size, *centre, *best_start;
    unsigned char *label, *block_label, *best_label;

    __device__ __forceinline__ double norm(int i) const { return grid[i * m + i]; }

    // G h_j, h_j'G h_j and the size of each of k clusters.
    __device__ __forceinline__ void sum_up(int k) {
        __syncwarp();  // labels
        for (int i = lane; i < m; i += 32) {
            for (int j = 0; j < k; ++j) sums[j * m + i] = 0.0;
            for (int l = 0; l < m; ++l) sums[label[l] * m + i] += grid[l * m + i];
        }
        for (int j = 0; j < k; ++j) {
            double within = 0.0;
            int members = 0;
            for (int i = lane; i < m; i += 32) {
                if (label[i] == j) {
                    within += sums[j * m + i];
                    ++members;
                }
            }
            within = warp_sum(within);
            members = static_cast<int>(warp_sum(members));
            if (lane == 0) {
                square[j] = within;
                size[j] = members;
            }
        }
        __syncwarp();
    }

    // Make the best single-point move until none gains; sums, square and size are current.
    __device__ __forceinline__ void climb(int k) {
        for (int old = -1, fresh = -1;;) {
            double most = -infinity();
            int at = m;
            for (int j = 0; j < k; ++j) {
                if (old >= 0 && j != old && j != fresh) continue;
                const double root = sqrt(fmax(square[j], 0.0));
                const bool single = size[j] == 1;
                for (int i = lane; i < m; i += 32) {
                    const bool own = label[i] == j;
                    const double twice = 2.0 * sums[j * m + i];
                    const double after = square[j] + (own ? -twice : twice) + norm(i);
                    const double change = sqrt(fmax(after, 0.0)) - root;
                    gain[j * m + i] = own ? -infinity() : change;
                    if (own) loss[i] = single ? infinity() : -change;
                }
            }
            for (int i = lane; i < m; i += 32) {
                double best = gain[i];
                for (int j = 1; j < k; ++j) best = fmax(best, gain[j * m + i]);
                if (best - loss[i] > most) {
                    most = best - loss[i];
                    at = i;
                }
            }
            warp_best(most, at);
            if (!(most > TOLERANCE)) return;
            __syncwarp();  // the gains of patch `at`
            old = label[at];
            fresh = 0;
            for (int j = 1; j < k; ++j) {
                if (gain[j * m + at] > gain[fresh * m + at]) fresh = j;
            }
            const double leaves = sums[old * m + at], joins = sums[fresh * m + at];
            __syncwarp();  // all lanes have read what changes now
            for (int i = lane; i < m; i += 32) {
                sums[old * m + i] -= grid[at * m + i];
                sums[fresh * m + i] += grid[at * m + i];
            }
            if (lane == 0) {
                square[old] += norm(at) - 2.0 * leaves;
                square[fresh] += norm(at) + 2.0 * joins;
                --size[old];
                ++size[fresh];
                label[at] = static_cast<unsigned char>(fresh);
            }
            __syncwarp();
        }
    }

    // Squared distance of patch i to the nearest seed, once patch `seed` is one.
    __device__ __forceinline__ double approach(int i, int seed, double closest) const {
        const double apart = norm(i) + norm(seed) - 2.0 * grid[seed * m + i];
        return fmin(fmax(apart, 0.0), closest);
    }

    // Greedy k-means++: `blocks` seeds; label = the nearest of them.
    __device__ __forceinline__ void seed(unsigned long long drawn, int blocks, double step) {
        double* closest = gain;
        const int first = static_cast<int>(unit(extend(extend(drawn, 0), 0)) * m);
        if (lane == 0) centre[0] = first < m - 1 ? first : m - 1;
        __syncwarp();
        for (int i = lane; i < m; i += 32) {
            closest[i] = approach(i, centre[0], infinity());
            label[i] = 0;
        }
        for (int j = 1; j < blocks; ++j) {
            double total = 0.0;
            for (int i = lane; i < m; i += 32) total += closest[i];
            total = warp_sum(total);
            int pick = -1;
            if (total > 0.0) {
                const unsigned long long state = extend(drawn, j);
                const int trials = j < 2 ? 2 : 3;  // 2 + ⌊ln(j + 1)⌋ for j < 7
                double least = infinity();
                for (int trial = 0; trial < trials; ++trial) {
                    const double at = fmin(unit(extend(state, trial)) * total, total - step);
                    const int tried = locate(closest, at);
                    double after = 0.0;
                    for (int i = lane; i < m; i += 32) after += approach(i, tried, closest[i]);
                    after = warp_sum(after);
                    if (after < least) {
                        least = after;
                        pick = tried;
                    }
                }
            } else {  // every patch coincides with a seed: the first that is none itself
                for (int i = 0; pick < 0; ++i) {
                    bool taken = false;
                    for (int c = 0; c < j; ++c) taken = taken || centre[c] == i;
                    if (!taken) pick = i;
                }
            }
            for (int i = lane; i < m; i += 32) {
                const double now = approach(i, pick, closest[i]);
                if (now < closest[i]) label[i] = static_cast<unsigned char>(j);
                closest[i] = now;
            }
            __syncwarp();
            if (lane == 0) centre[j] = pick;
            __syncwarp();
        }
        if (lane < blocks) label[centre[lane]] = static_cast<unsigned char>(lane);
        __syncwarp();
    }

    // The first patch whose running sum of distances exceeds `at`.
    __device__ __forceinline__ int locate(const double* closest, double at) const {
        double before = 0.0;
        int passed = 0;
        for (int base = 0; base < m; base += 32) {
            const int i = base + lane;
            double up_to = i < m ? closest[i] : 0.0;
            for (unsigned by = 1; by < 32; by <<= 1) {
                const double other = __shfl_up_sync(kAll, up_to, by);
                if (lane >= static_cast<int>(by)) up_to += other;
            }
            passed += __popc(__ballot_sync(kAll, i < m && before + up_to <= at));
            before += __shfl_sync(kAll, up_to, 31);
        }
        return passed < m ? passed : m - 1;
    }

    // Length of the sum of every subset of blocks, subsets as bits.
    __device__ __forceinline__ void measure(int blocks) {
        double* within = gain;  // (blocks, blocks), at most 49 of BLOCKS × m doubles: m > 7 or equal
        for (int pair = lane; pair < blocks * blocks; pair += 32) {
            double sum = 0.0;
            for (int i = 0; i < m; ++i) {
                if (label[i] == pair % blocks) sum += sums[pair / blocks * m + i];
            }
            within[pair] = sum;
        }
        __syncwarp();
        for (int subset = lane; subset < 1 << blocks; subset += 32) {
            double sum = 0.0;
            for (int a = 0; a < blocks; ++a) {
                for (int b = 0; b < blocks; ++b) {
                    if (subset >> a & subset >> b & 1) sum += within[a * blocks + b];
                }
            }
            length[subset] = fine(sqrt(fmax(sum, 0.0)));
        }
        __syncwarp();
    }

    // Unite the blocks into k clusters with the greatest objective.
    __device__ __forceinline__ void unite(const unsigned char* parts, int count, int k) {
        double most = -infinity();
        int at = count;
        for (int p = lane; p < count; p += 32) {
            double value = 0.0;
            for (int j = 0; j < k; ++j) value += length[parts[p * k + j]];
            if (value > most) {
                most = value;
                at = p;
            }
        }
        warp_best(most, at);
        for (int i = lane; i < m; i += 32) {
            int home = 0;
            while (!(parts[at * k + home] >> block_label[i] & 1)) ++home;
            label[i] = static_cast<unsigned char>(home);
        }
    }

    __device__ __forceinline__ double objective(int k) const {
        double value = 0.0;
        for (int j = 0; j < k; ++j) value += fine(sqrt(fmax(square[j], 0.0)));
        return value;
    }

    // Silhouette of patch i among k clusters whose sums are current.
    __device__ __forceinline__ double silhouette(int i, int k) const {
        const int own = label[i];
        double between = infinity();
        for (int j = 0; j < k; ++j) {
            if (j != own && size[j] > 0) between = fmin(between, 1.0 - sums[j * m + i] / size[j]);
        }
        if (size[own] < 2 || !(between < infinity())) return 0.0;
        const double within = 1.0 - (sums[own * m + i] - norm(i)) / (size[own] - 1);
        const double widest = fmax(within, between);
        if (!(widest >= RESOLUTION)) return 0.0;
        return fmin(fmax((between - within) / widest, -1.0), 1.0);
    }
};

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
