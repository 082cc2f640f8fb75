// The sites of a batch that come before the last kept one of a channel, and their way into its
// buffer: part of survey.cu, whose head tells the rest.
#pragma once

namespace {

typedef unsigned long long u64;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = BLOCK / 32, kTile = 32 * WIDTH, kFew = CAPACITY / kWarps;
constexpr int kDepth = 8;   // sites read before the first is used
constexpr int kDigits = 256;

// Bits that order as the floats do, never 0 for a number.
__device__ unsigned ordered(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float restored(unsigned bits) {
    return __uint_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits);
}

struct Buffer {
    float* keys;
    long long* sites;
    float* values;
    int k;
};

// One channel's sites and buffer at one end, and the room for its survivors.
struct Channel {
    const X_T* x;
    long long stride_b, stride_s;
    float sign;    // −1 at the bottom
    float border;  // what survivors are greater than
    unsigned* count;
    u64* room;
    unsigned places;
    int sites, per_image;

    __device__ float key(int image, int s) const {
        return sign * widen(x[image * stride_b + s * stride_s]) + 0.0f;
    }
    // A survivor's number: ordered bits of its key above its ~position in the batch; else 0.
    __device__ u64 number(int image, int s) const {
        const float at = key(image, s);
        if (!finite(at) || !(at > border)) return 0;
        const unsigned position = static_cast<unsigned>(image) * sites + s;
        return static_cast<u64>(ordered(at)) << 32 | ~position;
    }
    __device__ void keep(u64 found) const {
        const unsigned at = atomicAdd(count, 1u);
        if (at < places) room[at] = found;
    }
    // The first of the best sites of a part; one place for each image.
    __device__ void keep_best(int image, int start, int stop, float best) const {
        for (int s = start; s < stop; ++s) {
            if (key(image, s) != best) continue;
            if (atomicMax(&room[image], number(image, s)) == 0) atomicAdd(count, 1u);
            return;
        }
    }
};

// Threads of a group wait for each other: a warp or the block.
template <int kThreads>
__device__ void meet() {
    if (kThreads == 32) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

// Sort n staged numbers, greatest first.
template <int kThreads>
__device__ void sort(u64* staged, int n, int t) {
    int size = 2;
    while (size < n) size *= 2;
    for (int i = n + t; i < size; i += kThreads) staged[i] = 0;
    meet<kThreads>();
    for (int run = 2; run <= size; run *= 2) {
        for (int by = run / 2; by > 0; by /= 2) {
            for (int i = t; i < size; i += kThreads) {
                const int other = i ^ by;
                if (other < i) continue;
                const u64 a = staged[i], b = staged[other];
                if ((i & run) == 0 ? a < b : a > b) {
                    staged[i] = b;
                    staged[other] = a;
                }
            }
            meet<kThreads>();
        }
    }
}

// Merge n staged survivors into a channel's buffer, whose entries all come first on a tie.
template <int kThreads>
__device__ void merge(u64* staged, int* place, int n, const Buffer& kept, int channel,
                      const long long* image_ids, int sites, int t) {
    const long long first = static_cast<long long>(channel) * kept.k;
    float *keys = kept.keys + first, *values = kept.values + first;
    long long* at = kept.sites + first;
    sort<kThreads>(staged, n, t);
    for (int j = t; j < n && j < kept.k; j += kThreads) {
        const float key = restored(static_cast<unsigned>(staged[j] >> 32));
        int low = 0, high = kept.k;  // how many kept entries come before
        while (low < high) {
            const int middle = (low + high) / 2;
            if (keys[middle] >= key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        place[j] = low + j;
    }
    meet<kThreads>();
    // Entries move down, the last ones first: none is written over before it is read.
    for (int from = (kept.k - 1) / kThreads * kThreads; from >= 0; from -= kThreads) {
        const int i = from + t;
        float key = 0.0f, value = 0.0f;
        long long site = 0;
        int to = kept.k;
        if (i < kept.k) {
            key = keys[i], value = values[i], site = at[i];
            int low = 0, high = n;  // how many survivors come before
            while (low < high) {
                const int middle = (low + high) / 2;
                if (restored(static_cast<unsigned>(staged[middle] >> 32)) > key) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            to = i + low;
        }
        meet<kThreads>();
        if (to < kept.k && to != i) keys[to] = key, values[to] = value, at[to] = site;
        meet<kThreads>();
    }
    for (int j = t; j < n && j < kept.k; j += kThreads) {
        const int to = place[j];
        if (to >= kept.k) continue;
        const unsigned position = ~static_cast<unsigned>(staged[j]);
        keys[to] = values[to] = restored(static_cast<unsigned>(staged[j] >> 32));
        at[to] = image_ids[position / sites] * sites + position % sites;
    }
    meet<kThreads>();
}

// The survivors of a channel: in its room, or, where they overran it, at all its sites.
struct Survivors {
    const Channel& c;
    bool again;
    unsigned span;

    __device__ u64 operator()(unsigned i) const {
        if (i >= span) return 0;
        if (!again) return c.room[i];
        return c.number(static_cast<int>(i / c.sites), static_cast<int>(i % c.sites));
    }
};

// Visit all survivors that reach `least`, several reads in flight; every thread of the block.
template <class Visit>
__device__ void visit(const Survivors& all, u64 least, Visit see) {
    for (unsigned from = threadIdx.x; from < all.span; from += kDepth * BLOCK) {
        u64 found[kDepth];
#pragma unroll
        for (int i = 0; i < kDepth; ++i) found[i] = all(from + i * BLOCK);
#pragma unroll
        for (int i = 0; i < kDepth; ++i) {
            if (found[i] >= least) see(found[i]);
        }
    }
}

// A number that k survivors or more reach, but no more than CAPACITY; every thread of the block.
__device__ u64 threshold(const Survivors& all, unsigned k, unsigned* histogram, u64* shown) {
    const int t = static_cast<int>(threadIdx.x);
    u64 prefix = 0;
    unsigned above = 0;  // survivors with greater digits so far
    for (int shift = 56; ; shift -= 8) {
        for (int i = t; i < kDigits; i += BLOCK) histogram[i] = 0;
        __syncthreads();
        visit(all, 1, [=](u64 number) {
            const u64 digits = number >> shift;
            if (digits >> 8 == prefix) atomicAdd(&histogram[digits & 255], 1u);
        });
        __syncthreads();
        if (t == 0) {
            int digit = kDigits - 1;
            for (; digit > 0 && above + histogram[digit] < k; --digit) above += histogram[digit];
            shown[0] = prefix << 8 | static_cast<unsigned>(digit);
            shown[1] = static_cast<u64>(above) << 32 | histogram[digit];
        }
        __syncthreads();
        prefix = shown[0];
        above = static_cast<unsigned>(shown[1] >> 32);
        const unsigned reaching = above + static_cast<unsigned>(shown[1]);
        __syncthreads();
        if (reaching <= CAPACITY || shift == 0) return prefix << shift;
    }
}

}  // namespace
