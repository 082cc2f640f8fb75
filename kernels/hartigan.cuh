// One start of spherical K-means by Hartigan's moves, by one warp: seeds, blocks, unions, moves,
// silhouettes. Included by separability.cu, whose head states formula, layout and sources, and which
// defines BLOCKS, RESOLUTION and TOLERANCE.
#pragma once

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

}  // namespace
