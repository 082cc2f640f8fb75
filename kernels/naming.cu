// D of many channels against each of many sets of texts, both given by few coordinates.
//
// Formula    similarity of cluster j to text c: Σ_q factors[j][q]·bank[q][c]. With GAP the best minus
//            the second best of each cluster; else the best minus the best that another cluster
//            has to that text (`contrast` not 0), or minus the best similarity to a text that is
//            another cluster's best (margin). The first of equal texts is the best. Weighted mean
//            over the clusters of weight above 0; 0 without any and, but for the gap, with one.
// Layout     factors (k, rank, channels) double, weights (k, channels) double: channels last, so
//            that a warp reads in one piece; bank (sets, rank, texts) float; out (channels, sets)
//            double.
// Launch     one block of up to 128 threads per set and as many channels, a thread each; blocks of
//            the same channels follow each other. Grid-stride beyond the grid. A thread takes
//            CLUSTERS clusters at a time through all texts. With RANK above 0 (k = CLUSTERS and
//            rank = RANK then) it keeps its factors in registers and takes text by text; else it
//            reads them again, through the cache, for every 4 texts.
// Shared     dynamic, `plan` in the launcher mirrors it:
//              held    rank × tile doubles       a tile of the set's texts
//              best, rival   k × threads doubles each, name   k × threads ints: a column per thread
//            `tile` is a multiple of kTexts.
// Determinism  products of numbers on the grid 2^-24 are exact in double, and so are their sums, in
//            any order: the bits of torch and numba. The few roundings of the mean are made in
//            their order, without fused multiply-adds.
// Source     the measures are told in psi_engine/ops/naming.py.

#ifndef GAP
#define GAP 0
#endif
#ifndef CLUSTERS
#define CLUSTERS 5
#endif
#ifndef RANK
#define RANK 5
#endif

namespace {

constexpr int kMostThreads = 128, kBlocksPerProcessor = 4;
constexpr int kTexts = RANK > 0 ? 1 : 4, kUnrolled = RANK > 0 ? RANK : 1;

// A thread's factors of CLUSTERS clusters.
struct Factors {
#if RANK > 0
    double own[CLUSTERS][RANK];

    __device__ void open(const double* factors, int, int, int, int channels, int channel) {
#pragma unroll
        for (int j = 0; j < CLUSTERS; ++j) {
#pragma unroll
            for (int q = 0; q < RANK; ++q) {
                own[j][q] = factors[static_cast<long long>(j * RANK + q) * channels + channel];
            }
        }
    }
    __device__ double at(int j, int q) const { return own[j][q]; }
#else
    const double* row[CLUSTERS];
    long long pitch;

    // Beyond the last cluster stands the last one again; what comes of it is not kept.
    __device__ void open(const double* factors, int first, int k, int rank, int channels,
                         int channel) {
        pitch = channels;
#pragma unroll
        for (int j = 0; j < CLUSTERS; ++j) {
            const long long cluster = first + j < k ? first + j : k - 1;
            row[j] = factors + cluster * rank * channels + channel;
        }
    }
    __device__ double at(int j, int q) const { return row[j][q * pitch]; }
#endif
};

// Sum of a thread's column in the order of fold_sum; the column is overwritten.
__device__ double folded(double* column, int size, int width) {
    while (size > 1) {
        const int half = size / 2;
        for (int j = 0; j < half; ++j) {
            double* into = column + j * width;
            *into = __dadd_rn(*into, column[(size - half + j) * width]);
        }
        size -= half;
    }
    return column[0];
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kMostThreads, kBlocksPerProcessor)
naming(const double* __restrict__ factors, const float* __restrict__ bank,
       const double* __restrict__ weights, double* __restrict__ out, int channels, int sets,
       int clusters, int coordinates, int texts, int tile, int contrast) {
    extern __shared__ __align__(16) unsigned char shared[];
    const int k = RANK > 0 ? CLUSTERS : clusters;
    const int rank = RANK > 0 ? RANK : coordinates;
    const int t = static_cast<int>(threadIdx.x), width = static_cast<int>(blockDim.x);
    double* held = reinterpret_cast<double*>(shared);
    double* best = held + static_cast<long long>(rank) * tile + t;
    double* rival = best + k * width;
    int* name = reinterpret_cast<int*>(rival - t + k * width) + t;

    const double infinity = __longlong_as_double(0x7ff0000000000000LL);
    const long long blocks = static_cast<long long>((channels + width - 1) / width) * sets;
    for (long long task = blockIdx.x; task < blocks; task += gridDim.x) {
        const int set = static_cast<int>(task % sets);
        const int own = static_cast<int>(task / sets) * width + t;
        const int channel = own < channels ? own : channels - 1;  // the barriers are for all
        const float* words = bank + static_cast<long long>(set) * rank * texts;
        Factors factor;

        for (int first = 0; first < k; first += CLUSTERS) {
            factor.open(factors, first, k, rank, channels, channel);
            double highest[CLUSTERS], second[CLUSTERS];
            int at[CLUSTERS];
#pragma unroll
            for (int j = 0; j < CLUSTERS; ++j) {
                highest[j] = second[j] = -infinity;
                at[j] = 0;
            }
            for (int start = 0; start < texts; start += tile) {
                const int count = texts - start < tile ? texts - start : tile;
                __syncthreads();  // all are done with the tile before
                for (int q = 0; q < rank; ++q) {
                    const float* source = words + static_cast<long long>(q) * texts + start;
                    for (int c = t; c < count; c += width) held[q * tile + c] = source[c];
                }
                __syncthreads();
                for (int c = 0; c < count; c += kTexts) {
                    double sum[CLUSTERS][kTexts];
#pragma unroll
                    for (int j = 0; j < CLUSTERS; ++j) {
#pragma unroll
                        for (int i = 0; i < kTexts; ++i) sum[j][i] = 0.0;
                    }
#pragma unroll(kUnrolled)
                    for (int q = 0; q < rank; ++q) {
#pragma unroll
                        for (int j = 0; j < CLUSTERS; ++j) {
                            const double mine = factor.at(j, q);
#pragma unroll
                            for (int i = 0; i < kTexts; ++i) {
                                sum[j][i] += mine * held[q * tile + c + i];
                            }
                        }
                    }
#pragma unroll
                    for (int i = 0; i < kTexts; ++i) {
#pragma unroll
                        for (int j = 0; j < CLUSTERS; ++j) {
                            // beyond the last text nothing was read that counts
                            const double value = c + i < count ? sum[j][i] : -infinity;
                            const bool better = value > highest[j];
#if GAP
                            const double runner = value > second[j] ? value : second[j];
                            second[j] = better ? highest[j] : runner;
#else
                            at[j] = better ? start + c + i : at[j];
#endif
                            highest[j] = better ? value : highest[j];
                        }
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < CLUSTERS; ++j) {
                if (first + j >= k) continue;
                best[(first + j) * width] = highest[j];
                rival[(first + j) * width] = second[j];
                name[(first + j) * width] = at[j];
            }
        }

#if !GAP
        // rival is −∞ everywhere: now the similarities of every cluster to the name of every other
        for (int other = 0; other < k; ++other) {
            if (!(weights[static_cast<long long>(other) * channels + channel] > 0.0)) continue;
            const float* word = words + name[other * width];
            for (int first = 0; first < k; first += CLUSTERS) {
                if (RANK == 0) factor.open(factors, first, k, rank, channels, channel);
                double sum[CLUSTERS];
#pragma unroll
                for (int j = 0; j < CLUSTERS; ++j) sum[j] = 0.0;
#pragma unroll(kUnrolled)
                for (int q = 0; q < rank; ++q) {
                    const double x = word[static_cast<long long>(q) * texts];
#pragma unroll
                    for (int j = 0; j < CLUSTERS; ++j) sum[j] += factor.at(j, q) * x;
                }
#pragma unroll
                for (int j = 0; j < CLUSTERS; ++j) {
                    const int cluster = first + j;
                    if (cluster >= k || cluster == other) continue;
                    if (!(weights[static_cast<long long>(cluster) * channels + channel] > 0.0)) {
                        continue;
                    }
                    double* against = rival + (contrast ? other : cluster) * width;
                    if (sum[j] > *against) *against = sum[j];
                }
            }
        }
#endif

        int present = 0;
        for (int j = 0; j < k; ++j) {
            const double weight = weights[static_cast<long long>(j) * channels + channel];
            const bool there = weight > 0.0;
            const double value = there ? best[j * width] - rival[j * width] : 0.0;
            best[j * width] = __dmul_rn(value, weight);
            rival[j * width] = weight;
            present += there;
        }
        const double total = folded(rival, k, width);
        const double value = folded(best, k, width) / (total > 0.0 ? total : 1.0);
        if (own < channels) {
            const long long place = static_cast<long long>(own) * sets + set;
            out[place] = GAP || present > 1 ? value : 0.0;
        }
    }
}
