// One start of spherical K-means by Hartigan's moves, by one warp: seeds, blocks, unions, moves,
// silhouettes. Included by separability.cu, whose head states formula, layout and sources, and which
// defines BLOCKS, RESOLUTION and TOLERANCE.
#pragma once

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr unsigned kNone = 0xffffffffu;
constexpr double kFine = 1099511627776.0;  // 2^40, fixed_point.FINE
constexpr int kTrials = 3;                 // of a seed, at most: 2 + ⌊ln(j + 1)⌋ for j < 7
static_assert(BLOCKS <= 7, "a partition is a word of bytes, a cluster's number four bits");

__device__ double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

__device__ double fine(double x) { return rint(x * kFine) / kFine; }

// Exact terms: the order of the additions changes no bit.
__device__ double warp_sum(double value) {
    for (int by = 16; by > 0; by >>= 1) value += __shfl_xor_sync(kAll, value, by);
    return value;
}

__device__ unsigned warp_max(unsigned value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    for (int by = 16; by > 0; by >>= 1) {
        const unsigned other = __shfl_xor_sync(kAll, value, by);
        value = other > value ? other : value;
    }
    return value;
#else
    return __reduce_max_sync(kAll, value);
#endif
}

// The smallest tag among the lanes with the greatest value. Values are at least 0, where the order
// of the bits is that of the numbers; a lane that has none to offer says kNone and a value that no
// lane's offer is below: another tag wins where they are equal.
__device__ unsigned warp_best(double value, unsigned tag) {
    const unsigned long long bits = static_cast<unsigned long long>(__double_as_longlong(value));
    const unsigned high = static_cast<unsigned>(bits >> 32), low = static_cast<unsigned>(bits);
    bool best = high == warp_max(high);
    best = best & (low == warp_max(best ? low : 0u));
    return ~warp_max(best ? ~tag : 0u);
}

// What one warp works on: one start of one problem. Arrays of patches belong to the lanes patch by
// patch (lane, lane + 32, …), so a lane reads its own without a barrier.
struct Warp {
    const double *grid, *norms;
    int m, lane;
    double *sums, *gain, *length, *square, *best_value;
    int *size, *centre, *best_start;
    unsigned char *label, *block_label, *best_label;

    // In the place of the gains while there are none: the patches cluster by cluster, and where
    // each cluster begins; behind them the inner products of blocks.
    __device__ __forceinline__ int* order() const { return reinterpret_cast<int*>(gain); }
    __device__ __forceinline__ int* first() const { return order() + m; }
    __device__ __forceinline__ double* within() const { return gain + (m + BLOCKS + 2) / 2; }

    // Sort the patches by cluster.
    __device__ __forceinline__ void arrange(int k) {
        __syncwarp();  // labels; the gains are read
        int passed = 0;
#pragma unroll 1
        for (int j = 0; j < k; ++j) {
            if (lane == 0) first()[j] = passed;
#pragma unroll 1
            for (int base = 0; base < m; base += 32) {
                const int i = base + lane;
                const bool member = i < m && label[i] == j;
                const unsigned who = __ballot_sync(kAll, member);
                if (member) order()[passed + __popc(who & ((1u << lane) - 1u))] = i;
                passed += __popc(who);
            }
        }
        if (lane == 0) first()[k] = passed;
        __syncwarp();
    }

    // The sum up to and with each lane's value; `before` starts it and becomes the whole sum.
    __device__ __forceinline__ double running(double value, double& before) const {
        for (unsigned by = 1; by < 32; by <<= 1) {
            const double other = __shfl_up_sync(kAll, value, by);
            if (lane >= static_cast<int>(by)) value += other;
        }
        value += before;
        before = __shfl_sync(kAll, value, 31);
        return value;
    }

    // G h_j, h_j'G h_j and the size of each of k clusters, none of them empty.
    __device__ __forceinline__ void sum_up(int k) {
        arrange(k);
#pragma unroll 1
        for (int i = lane; i < m; i += 64) {  // two patches at a time: one alone waits for loads
            const int also = i + 32 < m ? i + 32 : i;
#pragma unroll 1
            for (int j = 0; j < k; ++j) {
                const int end = first()[j + 1];
                double one = 0.0, other = 0.0;
#pragma unroll 4
                for (int p = first()[j]; p < end; ++p) {
                    const double* row = grid + order()[p] * m;
                    one += row[i];
                    other += row[also];
                }
                sums[j * m + i] = one;
                sums[j * m + also] = other;
            }
        }
        __syncwarp();
        double before = 0.0;
#pragma unroll 1
        for (int base = 0; base < m; base += 32) {
            const int p = base + lane, i = order()[p < m ? p : 0], j = label[i];
            const double up_to = running(p < m ? sums[j * m + i] : 0.0, before);
            if (p < m && p + 1 == first()[j + 1]) square[j] = up_to;
        }
        __syncwarp();
        double own = 0.0;
        if (lane < k) own = square[lane] - (lane > 0 ? square[lane - 1] : 0.0);
        __syncwarp();
        if (lane < k) {
            square[lane] = own;
            size[lane] = first()[lane + 1] - first()[lane];
        }
        __syncwarp();
    }

    // What the length of a cluster's sum gains when patch i joins it, or when its own patch leaves.
    __device__ __forceinline__ double change(int i, bool own, double sum, double square_of,
                                             double root) const {
        const double twice = 2.0 * sum;
        return sqrt(fmax(square_of + (own ? -twice : twice) + norms[i], 0.0)) - root;
    }

    // Make the best single-point move until none gains; sums, square and size are current.
    __device__ __forceinline__ void climb(int k) {
#pragma unroll 1
        for (int j = 0; j < k; ++j) {
            const double within_it = square[j], root = sqrt(fmax(within_it, 0.0));
#pragma unroll 2
            for (int i = lane; i < m; i += 32) {
                gain[j * m + i] = change(i, label[i] == j, sums[j * m + i], within_it, root);
            }
        }
        for (;;) {
            double most = TOLERANCE;
            unsigned move = kNone;  // patch, its cluster, the other cluster
#pragma unroll 2
            for (int i = lane; i < m; i += 32) {
                const int home = label[i];
                int to = 0;
                double best = -infinity();
                for (int j = 0; j < k; ++j) {
                    const double value = gain[j * m + i];
                    if (j != home && value > best) {
                        best = value;
                        to = j;
                    }
                }
                const double net = best + gain[home * m + i];
                if (size[home] > 1 && net > most) {
                    most = net;
                    move = static_cast<unsigned>(i) << 8 | static_cast<unsigned>(home << 4 | to);
                }
            }
            move = warp_best(most, move);
            if (move == kNone) return;
            const int at = static_cast<int>(move >> 8);
            const int old = static_cast<int>(move >> 4 & 15u), fresh = static_cast<int>(move & 15u);
            __syncwarp();  // all lanes have read the sizes
            if (lane == (at & 31)) {
                square[old] += norms[at] - 2.0 * sums[old * m + at];
                square[fresh] += norms[at] + 2.0 * sums[fresh * m + at];
                --size[old];
                ++size[fresh];
                label[at] = static_cast<unsigned char>(fresh);
            }
            __syncwarp();
            const double left = square[old], joined = square[fresh];
            const double left_root = sqrt(fmax(left, 0.0)), joined_root = sqrt(fmax(joined, 0.0));
#pragma unroll 2
            for (int i = lane; i < m; i += 32) {
                const double cosine = grid[at * m + i];
                const double less = sums[old * m + i] - cosine, more = sums[fresh * m + i] + cosine;
                sums[old * m + i] = less;
                sums[fresh * m + i] = more;
                gain[old * m + i] = change(i, label[i] == old, less, left, left_root);
                gain[fresh * m + i] = change(i, label[i] == fresh, more, joined, joined_root);
            }
        }
    }

    // Squared distance of patch i to the nearest seed, once patch `seed` is one.
    __device__ __forceinline__ double approach(int i, int seed, double closest) const {
        const double apart = norms[i] + norms[seed] - 2.0 * grid[seed * m + i];
        return fmin(fmax(apart, 0.0), closest);
    }

    // Greedy k-means++: `blocks` seeds; label = the nearest of them.
    __device__ __forceinline__ void seed(unsigned long long drawn, int blocks, double step) {
        double *closest = gain, *up_to = sums;
        const int begin = static_cast<int>(unit(extend(extend(drawn, 0), 0)) * m);
        if (lane == 0) centre[0] = begin < m - 1 ? begin : m - 1;
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < m; i += 32) {
            closest[i] = approach(i, centre[0], infinity());
            label[i] = 0;
        }
#pragma unroll 1
        for (int j = 1; j < blocks; ++j) {
            double total = 0.0;
#pragma unroll 1
            for (int base = 0; base < m; base += 32) {
                const int i = base + lane;
                const double sum = running(i < m ? closest[i] : 0.0, total);
                if (i < m) up_to[i] = sum;
            }
            int pick = -1;
            if (total > 0.0) {
                const unsigned long long state = extend(drawn, j);
                double at[kTrials], after[kTrials];
                int tried[kTrials];
#pragma unroll
                for (int trial = 0; trial < kTrials; ++trial) {
                    at[trial] = fmin(unit(extend(state, trial)) * total, total - step);
                    after[trial] = 0.0;
                    tried[trial] = 0;
                }
#pragma unroll 1
                for (int base = 0; base < m; base += 32) {
                    const int i = base + lane;
                    const double sum = i < m ? up_to[i] : infinity();
#pragma unroll
                    for (int trial = 0; trial < kTrials; ++trial) {
                        tried[trial] += __popc(__ballot_sync(kAll, sum <= at[trial]));
                    }
                }
#pragma unroll
                for (int trial = 0; trial < kTrials; ++trial) {
                    tried[trial] = tried[trial] < m ? tried[trial] : m - 1;
                }
#pragma unroll 1
                for (int i = lane; i < m; i += 32) {
#pragma unroll
                    for (int trial = 0; trial < kTrials; ++trial) {
                        after[trial] += approach(i, tried[trial], closest[i]);
                    }
                }
                double least = infinity();
#pragma unroll
                for (int trial = 0; trial < kTrials; ++trial) {
                    const double sum = warp_sum(after[trial]);
                    if (sum < least && (trial < 2 || j > 1)) {  // the second seed has two trials
                        least = sum;
                        pick = tried[trial];
                    }
                }
            } else {  // every patch coincides with a seed: the first that is none itself
#pragma unroll 1
                for (int i = 0; pick < 0; ++i) {
                    bool taken = false;
                    for (int c = 0; c < j; ++c) taken = taken || centre[c] == i;
                    if (!taken) pick = i;
                }
            }
#pragma unroll 1
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

    // Length of the sum of every subset of blocks, subsets as bits; sums and square are current.
    __device__ __forceinline__ void measure(int blocks) {
        arrange(blocks);
#pragma unroll 1
        for (int pair = lane; pair < blocks * (blocks - 1) / 2; pair += 32) {
            int a = pair, b = 1;  // the pairs a < b, b by b
            while (a >= b) a -= b++;
            const bool fewer = size[a] < size[b];  // symmetric: over the members of the smaller one
            const int over = fewer ? a : b, of = fewer ? b : a, end = first()[over + 1];
            double sum = 0.0;
#pragma unroll 1
            for (int p = first()[over]; p < end; ++p) sum += sums[of * m + order()[p]];
            within()[pair] = sum;
        }
        __syncwarp();
#pragma unroll 1
        for (int subset = lane; subset < 1 << blocks; subset += 32) {
            double sum = 0.0;
#pragma unroll 1
            for (int b = 0, pair = 0; b < blocks; ++b) {
                const bool has = subset >> b & 1;
                if (has) sum += square[b];
                for (int a = 0; a < b; ++a, ++pair) {
                    if (has && (subset >> a & 1)) sum += 2.0 * within()[pair];
                }
            }
            length[subset] = fine(sqrt(fmax(sum, 0.0)));
        }
        __syncwarp();
    }

    // Unite the blocks into k clusters with the greatest objective.
    __device__ __forceinline__ void unite(const unsigned long long* ways, int count, int k) {
        double most = 0.0;
        unsigned at = kNone;
#pragma unroll 1
        for (int p = lane; p < count; p += 32) {
            const unsigned long long parts = ways[p];
            double value = 0.0;
#pragma unroll
            for (int j = 0; j < BLOCKS; ++j) {
                if (j < k) value += length[parts >> (8 * j) & 255u];
            }
            if (at == kNone || value > most) {
                most = value;
                at = static_cast<unsigned>(p);
            }
        }
        const unsigned long long parts = ways[warp_best(most, at)];
#pragma unroll 1
        for (int i = lane; i < m; i += 32) {
            int home = 0;
            while (!(parts >> (8 * home + block_label[i]) & 1u)) ++home;
            label[i] = static_cast<unsigned char>(home);
        }
    }

    __device__ __forceinline__ double objective(int k) const {
        return warp_sum(lane < k ? fine(sqrt(fmax(square[lane], 0.0))) : 0.0);
    }

    // Silhouette of patch i among k clusters whose sums are current.
    __device__ __forceinline__ double silhouette(int i, int k) const {
        const int own = label[i];
        double between = infinity();
#pragma unroll 1
        for (int j = 0; j < k; ++j) {
            if (j != own && size[j] > 0) between = fmin(between, 1.0 - sums[j * m + i] / size[j]);
        }
        if (size[own] < 2 || !(between < infinity())) return 0.0;
        const double within = 1.0 - (sums[own * m + i] - norms[i]) / (size[own] - 1);
        const double widest = fmax(within, between);
        if (!(widest >= RESOLUTION)) return 0.0;
        return fmin(fmax((between - within) / widest, -1.0), 1.0);
    }
};

}  // namespace
