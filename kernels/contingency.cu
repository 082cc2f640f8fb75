// Normalised mutual information of two labelings, one of them shuffled again and again.
//
// Formula    2·I / (H(A) + H(L)) with N·I = ΣT(n_ij) − ΣT(a_i) − ΣT(b_j) + T(N), N·H = T(N) − ΣT
//            and T(n) = n·log n in fixed point (multiples of 2^-32). 0 where either labeling has
//            no entropy. Replicate m of a channel shuffles its labels by Fisher–Yates with draws
//            hashed from (key, m, position).
// Layout     cluster, order, label (channels, patches) int: the cluster of the patch that stands
//            r-th when sorted by cluster, which patch that is, the label of each patch; known
//            patches first, count (channels) of them. marginals (channels, 3) int64: ΣT(a_i),
//            ΣT(b_j), T(N). keys (channels) int64, hashed as far as they do not depend on the
//            replicate. table (patches + 1) int64: T. out (channels, replicates) double.
// Launch     one block of BLOCK threads per channel and BLOCK replicates; thread t takes one
//            replicate. Grid-stride beyond the grid.
// Shared     dynamic, contingency_shared_bytes() in the launcher mirrors it:
//              step    patches int64     T(n + 1) − T(n)
//              cluster, order, label     patches ints each
//              values  patches × BLOCK COUNT_T, counts  labels × BLOCK COUNT_T: a column per thread
//            COUNT_T must hold `patches`; the patches of one cluster are counted at a time, so that
//            a thread needs one row of the contingency table.
// Determinism  integers throughout and one division: the same bits as torch and numba.
// Source     Vinh, Epps, Bailey, JMLR 11 (2010), NMI_sum.

#ifndef BLOCK
#define BLOCK 128
#endif
#ifndef COUNT_T
#define COUNT_T unsigned char
#endif

#include "hashing.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK)
contingency(const int* __restrict__ cluster, const int* __restrict__ order,
            const int* __restrict__ label, const int* __restrict__ count,
            const long long* __restrict__ marginals, const long long* __restrict__ keys,
            const long long* __restrict__ table, double* __restrict__ out, int channels,
            int patches, int labels, int replicates) {
    extern __shared__ __align__(16) unsigned char shared[];
    long long* step = reinterpret_cast<long long*>(shared);
    int* own_cluster = reinterpret_cast<int*>(step + patches);
    int* own_order = own_cluster + patches;
    int* own_label = own_order + patches;
    COUNT_T* values = reinterpret_cast<COUNT_T*>(own_label + patches);
    COUNT_T* counts = values + static_cast<long long>(patches) * BLOCK;

    const int t = static_cast<int>(threadIdx.x);
    const int groups = (replicates + BLOCK - 1) / BLOCK;
    const long long work = static_cast<long long>(channels) * groups;

    for (int i = t; i < patches; i += BLOCK) step[i] = table[i + 1] - table[i];
    for (int l = 0; l < labels; ++l) counts[l * BLOCK + t] = 0;

    for (long long item = blockIdx.x; item < work; item += gridDim.x) {
        const int channel = static_cast<int>(item / groups);
        const int replicate = static_cast<int>(item % groups) * BLOCK + t;
        const long long first = static_cast<long long>(channel) * patches;
        const int known = count[channel];
        __syncthreads();  // the last item's patches are no longer read
        for (int i = t; i < known; i += BLOCK) {
            own_cluster[i] = cluster[first + i];
            own_order[i] = order[first + i];
            own_label[i] = label[first + i];
        }
        __syncthreads();
        if (replicate >= replicates) continue;

        const long long t_a = marginals[3 * channel];
        const long long t_b = marginals[3 * channel + 1];
        const long long t_all = marginals[3 * channel + 2];
        double value = 0.0;
        if (t_a < t_all && t_b < t_all) {
            const unsigned long long state = extend(
                static_cast<unsigned long long>(keys[channel]),
                static_cast<unsigned long long>(replicate));
            for (int i = 0; i < known; ++i) {
                values[i * BLOCK + t] = static_cast<COUNT_T>(own_label[i]);
            }
            for (int i = known - 1; i > 0; --i) {
                const int at = static_cast<int>(unit(extend(state, i)) * (i + 1));
                const COUNT_T held = values[i * BLOCK + t];
                values[i * BLOCK + t] = values[at * BLOCK + t];
                values[at * BLOCK + t] = held;
            }
            long long joint = 0;
            for (int start = 0, stop; start < known; start = stop) {
                stop = start;
                for (; stop < known && own_cluster[stop] == own_cluster[start]; ++stop) {
                    COUNT_T* seen = &counts[values[own_order[stop] * BLOCK + t] * BLOCK + t];
                    joint += step[*seen];
                    *seen = static_cast<COUNT_T>(*seen + 1);
                }
                for (int r = start; r < stop; ++r) {
                    counts[values[own_order[r] * BLOCK + t] * BLOCK + t] = 0;
                }
            }
            const long long mutual = joint - t_a - t_b + t_all;
            value = static_cast<double>(2 * (mutual > 0 ? mutual : 0)) /
                    static_cast<double>(2 * t_all - t_a - t_b);
        }
        out[static_cast<long long>(channel) * replicates + replicate] = value;
    }
}
