// One batch of activations into the best sites of each channel, both ends, and its statistics.
//
// Formula    top holds the k greatest (value, site) of a channel, bottom those of −value: ordered by
//            value descending, then site ascending; site = image_id · sites + position. per_image:
//            only the best site of an image enters, the first on a tie. Sites that are not finite
//            are counted and left out; −0 counts as +0.
// Layout     x (batch, channels, sites) X_T at strides stride_b, stride_c, stride_s; image_ids (batch)
//            int64, ascending, none of them in the buffers. top and bottom: keys float, sites int64, values float (channels, k),
//            sorted, updated in place; k = 0: not wanted. low, high float (channels); totals,
//            squares int64 (LIMBS, channels), sums of x and x² of each image as integers of 40 bits
//            (moments.to_limbs), zeros, nonfinite int64 (channels): of this batch.
// Launch     one block of BLOCK threads per TILE channels; a warp takes one image at a time, its lanes
//            TILE channels × 32/TILE sites. TILE 1 reads rows of sites (NCHW), TILE 8 (float) or 16
//            (halves) reads whole 32-byte sectors of channels (channels_last).
// Shared     dynamic, shared_bytes() in the launcher mirrors it:
//              staged  2 × TILE × CAPACITY int64    survivors: ordered value bits above ~position
//              sums    2 × TILE × LIMBS int64, counters 2 × TILE int64
//              border_site 2 × TILE int64, merged_site k int64
//              border  2 × TILE floats, merged k floats, count 2 × TILE ints, extreme 2 × TILE ints
//            A survivor beats the k-th entry; survivors are sorted and merged when half of the room
//            is used, and at the end. After a few batches nearly every site costs one comparison.
// Determinism  the buffers depend on the values alone: no two staged numbers are equal, so the order
//            in which they arrive does not matter. Sums are made in a fixed tree per image and added
//            as integers.

#ifndef FORMAT
#define FORMAT 0  // of x: 0 float32, 1 float16, 2 bfloat16
#endif
#ifndef TILE
#define TILE 8
#endif
#ifndef BLOCK
#define BLOCK 256
#endif
#ifndef CAPACITY
#define CAPACITY 512
#endif
#ifndef LIMBS
#define LIMBS 11
#endif

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = BLOCK / 32, kSiteLanes = 32 / TILE, kHalf = CAPACITY / 2;

#if FORMAT == 0
typedef float X_T;
__device__ float widen(float x) { return x; }
#else
typedef unsigned short X_T;
__device__ float widen(unsigned short x) {
#if FORMAT == 1
    const unsigned size = (x & 0x7fffu) << 13;
    const float value = (x & 0x7c00u) == 0x7c00u ? __uint_as_float(size | 0x7f800000u)
                                                 : __uint_as_float(size) * 5.192296858534828e33f;
    return (x & 0x8000u) ? -value : value;  // the factor is 2^112: subnormal halves come out right
#else
    return __uint_as_float(static_cast<unsigned>(x) << 16);
#endif
}
#endif

__device__ bool finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// Bits that order as the floats do, never 0 for a number.
__device__ unsigned ordered(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float restored(unsigned bits) {
    return __uint_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits);
}

__device__ unsigned long long packed(float key, unsigned position) {
    return static_cast<unsigned long long>(ordered(key)) << 32 | ~position;
}

struct Buffer {
    float* keys;
    long long* sites;
    float* values;
    int k;
};

// Does (key, site) come before (other, at)?
__device__ bool before(float key, long long site, float other, long long at) {
    return key > other || (key == other && site < at);
}

// Sort n staged numbers, greatest first; every thread of the block takes part.
__device__ void sort(unsigned long long* staged, int n) {
    const int t = static_cast<int>(threadIdx.x);
    int size = 2;
    while (size < n) size *= 2;
    for (int i = n + t; i < size; i += BLOCK) staged[i] = 0;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
        for (int by = run / 2; by > 0; by /= 2) {
            for (int i = t; i < size; i += BLOCK) {
                const int other = i ^ by;
                if (other < i) continue;
                const unsigned long long a = staged[i], b = staged[other];
                if ((i & run) == 0 ? a < b : a > b) {
                    staged[i] = b;
                    staged[other] = a;
                }
            }
            __syncthreads();
        }
    }
}

// A block's survivors and what merging them needs; see the head of the file.
struct Room {
    unsigned long long* staged;
    long long *border_site, *merged_site;
    float *border, *merged;
    int* count;
};

// Merge the survivors of one channel and end into its buffer; every thread of the block takes part.
__device__ void merge(const Room& room, int e, const Buffer& kept, int channel,
                      const long long* image_ids, int sites) {
    const int t = static_cast<int>(threadIdx.x), n = room.count[e];
    const long long first = static_cast<long long>(channel) * kept.k;
    unsigned long long* staged = room.staged + e * CAPACITY;
    float* keys = kept.keys + first;
    long long* at = kept.sites + first;
    sort(staged, n);
    for (int j = t; j < n && j < kept.k; j += BLOCK) {
        const float key = restored(static_cast<unsigned>(staged[j] >> 32));
        const unsigned position = ~static_cast<unsigned>(staged[j]);
        const long long site = image_ids[position / sites] * sites + position % sites;
        int low = 0, high = kept.k;  // how many kept entries come before
        while (low < high) {
            const int middle = (low + high) / 2;
            if (before(keys[middle], at[middle], key, site)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low + j < kept.k) {
            room.merged[low + j] = key;
            room.merged_site[low + j] = site;
        }
    }
    for (int i = t; i < kept.k; i += BLOCK) {
        int low = 0, high = n;  // how many staged entries come before
        while (low < high) {
            const int middle = (low + high) / 2;
            const float key = restored(static_cast<unsigned>(staged[middle] >> 32));
            const unsigned position = ~static_cast<unsigned>(staged[middle]);
            const long long site = image_ids[position / sites] * sites + position % sites;
            if (before(key, site, keys[i], at[i])) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low + i < kept.k) {
            room.merged[low + i] = keys[i];
            room.merged_site[low + i] = at[i];
        }
    }
    __syncthreads();
    for (int i = t; i < kept.k; i += BLOCK) {
        if (at[i] == room.merged_site[i]) continue;  // an empty entry keeps its NaN
        keys[i] = room.merged[i];
        at[i] = room.merged_site[i];
        kept.values[first + i] = room.merged_site[i] == 0x7fffffffffffffffLL
                                     ? __uint_as_float(0x7fc00000u) : room.merged[i];
    }
    if (t == 0) {
        room.border[e] = room.merged[kept.k - 1];
        room.border_site[e] = room.merged_site[kept.k - 1];
        room.count[e] = 0;
    }
    __syncthreads();
}

// Merge what has more than `full` survivors. Nobody adds one before all have left the loop: the
// threads must agree on what is full.
__device__ void drain(const Room& room, int full, const Buffer* kept, int first,
                      const long long* image_ids, int sites) {
    const int t = static_cast<int>(threadIdx.x);
    __syncthreads();  // counts are complete
    if (!__syncthreads_or(t < 2 * TILE && room.count[t] > full)) return;
    for (int e = 0; e < 2 * TILE; ++e) {
        if (room.count[e] > full) {
            merge(room, e, kept[e / TILE], first + e % TILE, image_ids, sites);
        }
    }
    __syncthreads();
}

// Add a double to integers of 40 bits, the largest first: 2^240 … 2^-160.
__device__ void add_limbs(unsigned long long* limbs, double x) {
    double weight = 1.7668470647783843e72;
    for (int i = 0; i < LIMBS; ++i, weight *= 9.094947017729282e-13) {
        if (fabs(x) < weight) continue;
        const double limb = trunc(x / weight);
        x -= limb * weight;
        atomicAdd(&limbs[i], static_cast<unsigned long long>(static_cast<long long>(limb)));
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(BLOCK, 4)
survey(const X_T* __restrict__ x, long long stride_b, long long stride_c, long long stride_s,
       const long long* __restrict__ image_ids, float* top_keys, long long* top_sites, float* top_values, float* bottom_keys,
       long long* bottom_sites, float* bottom_values, float* __restrict__ low,
       float* __restrict__ high, long long* __restrict__ totals, long long* __restrict__ squares,
       long long* __restrict__ zeros, long long* __restrict__ nonfinite, int batch, int channels,
       int sites, int top_k, int bottom_k, int per_image) {
    extern __shared__ __align__(16) unsigned char shared[];
    const int most = top_k > bottom_k ? top_k : bottom_k;
    unsigned long long* staged = reinterpret_cast<unsigned long long*>(shared);
    unsigned long long* sums = staged + 2 * TILE * CAPACITY;
    unsigned long long* counters = sums + 2 * TILE * LIMBS;
    long long* border_site = reinterpret_cast<long long*>(counters + 2 * TILE);
    long long* merged_site = border_site + 2 * TILE;
    float* border = reinterpret_cast<float*>(merged_site + most);
    float* merged = border + 2 * TILE;
    int* count = reinterpret_cast<int*>(merged + most);
    unsigned* extreme = reinterpret_cast<unsigned*>(count + 2 * TILE);
    const Room room = {staged, border_site, merged_site, border, merged, count};

    const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
    const int own = lane % TILE, site_lane = lane / TILE;
    const int first = static_cast<int>(blockIdx.x) * TILE;
    const bool mine = first + own < channels;
    const Buffer kept[2] = {{top_keys, top_sites, top_values, top_k},
                            {bottom_keys, bottom_sites, bottom_values, bottom_k}};
    const X_T* row = x + (mine ? first + own : 0) * stride_c;

    for (int e = t; e < 2 * TILE; e += BLOCK) {
        const Buffer& buffer = kept[e / TILE];
        const bool used = first + e % TILE < channels && buffer.k > 0;
        const long long last = static_cast<long long>(first + e % TILE + 1) * buffer.k - 1;
        border[e] = used ? buffer.keys[last] : 0.0f;
        border_site[e] = used ? buffer.sites[last] : 0;
        count[e] = 0;
        counters[e] = 0;
        extreme[e] = e < TILE ? kAll : 0u;  // ordered bits of the minimum, then the maximum
    }
    for (int e = t; e < 2 * TILE * LIMBS; e += BLOCK) sums[e] = 0;
    __syncthreads();

    const int span = per_image ? sites : kHalf / kWarps;  // sites of a warp between two looks
    float least = __uint_as_float(0x7f800000u), most_seen = -least;
    unsigned none = 0, missing = 0;
    for (int base = 0; base < batch; base += kWarps) {
        const int image = base + warp;
        const bool here = mine && image < batch;
        const X_T* values = row + (image < batch ? image : 0) * stride_b;
        double total = 0.0, square = 0.0;
        unsigned long long best = 0, worst = 0;  // packed; 0 = no finite site yet
        for (int from = 0; from < sites; from += span) {
            const int stop = from + span < sites ? from + span : sites;
            for (int s = from + site_lane; here && s < stop; s += kSiteLanes) {
                const float value = widen(values[s * stride_s]);
                if (!finite(value)) {
                    ++missing;
                    continue;
                }
                total += value;
                square += static_cast<double>(value) * value;
                none += value == 0.0f;
                least = fminf(least, value);
                most_seen = fmaxf(most_seen, value);
                const unsigned position = static_cast<unsigned>(image) * sites + s;
                for (int end = 0; end < 2; ++end) {
                    const float key = (end ? -value : value) + 0.0f;
                    if (per_image) {
                        const unsigned long long number = packed(key, position);
                        if (end == 0 && number > best) best = number;
                        if (end == 1 && number > worst) worst = number;
                        continue;
                    }
                    const int e = end * TILE + own;
                    if (kept[end].k == 0 || key < border[e]) continue;
                    if (key == border[e] && image_ids[image] * sites + s >= border_site[e]) continue;
                    staged[e * CAPACITY + atomicAdd(&count[e], 1)] = packed(key, position);
                }
            }
            if (!per_image) drain(room, kHalf, kept, first, image_ids, sites);
        }
        for (int by = TILE; by < 32; by *= 2) {
            total += __shfl_xor_sync(kAll, total, by);
            square += __shfl_xor_sync(kAll, square, by);
            const unsigned long long other = __shfl_xor_sync(kAll, best, by);
            const unsigned long long another = __shfl_xor_sync(kAll, worst, by);
            best = other > best ? other : best;
            worst = another > worst ? another : worst;
        }
        if (here && site_lane == 0) {
            add_limbs(sums + own * LIMBS, total);
            add_limbs(sums + (TILE + own) * LIMBS, square);
            for (int end = 0; per_image && end < 2; ++end) {
                const unsigned long long number = end ? worst : best;
                const int e = end * TILE + own;
                if (kept[end].k == 0 || number == 0) continue;
                const float key = restored(static_cast<unsigned>(number >> 32));
                const long long site =
                    image_ids[image] * sites + ~static_cast<unsigned>(number) % sites;
                if (!before(key, site, border[e], border_site[e])) continue;
                staged[e * CAPACITY + atomicAdd(&count[e], 1)] = number;
            }
        }
        if (per_image) drain(room, kHalf, kept, first, image_ids, sites);
    }
    drain(room, 0, kept, first, image_ids, sites);
    if (mine) {
        atomicMin(&extreme[own], ordered(least));
        atomicMax(&extreme[TILE + own], ordered(most_seen));
        atomicAdd(&counters[own], static_cast<unsigned long long>(none));
        atomicAdd(&counters[TILE + own], static_cast<unsigned long long>(missing));
    }
    __syncthreads();
    for (int e = t; e < TILE && first + e < channels; e += BLOCK) {
        const int channel = first + e;
        low[channel] = restored(extreme[e]) + 0.0f;
        high[channel] = restored(extreme[TILE + e]) + 0.0f;
        zeros[channel] = static_cast<long long>(counters[e]);
        nonfinite[channel] = static_cast<long long>(counters[TILE + e]);
        for (int i = 0; i < LIMBS; ++i) {
            const long long place = static_cast<long long>(i) * channels + channel;
            totals[place] = static_cast<long long>(sums[e * LIMBS + i]);
            squares[place] = static_cast<long long>(sums[(TILE + e) * LIMBS + i]);
        }
    }
}
