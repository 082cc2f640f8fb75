// One batch of activations into the best sites of each channel, both ends, and its statistics.
//
// Formula    top holds the k greatest (value, site) of a channel, bottom those of −value: by value
//            descending, then site ascending; site = image_id · sites + position. per_image: only
//            the best site of an image enters, the first on a tie. Sites that are not finite are
//            counted and left out; −0 counts as +0.
// Layout     x (batch, channels, sites) X_T at strides stride_b, stride_c, stride_s; image_ids
//            (batch) int64, ascending, all after those in the buffers. top and bottom: keys float,
//            sites int64, values float (channels, k), sorted, updated in place; k = 0: not wanted.
//            minimum, maximum float (channels), totals, squares int64 (LIMBS, channels), zeros,
//            finite, nonfinite int64 (channels): running statistics, added to in place. counts
//            unsigned (2 · channels + tiles), all 0 at the start; room (2, channels, places)
//            uint64, with per_image places = batch and all 0.
// Launch     tiles · slices blocks of BLOCK threads: 32 · WIDTH channels × a share of the images,
//            which are cut into parts of `length` sites. A warp takes one part at a time, a lane
//            WIDTH channels side by side: a site touches nothing but its lane's registers.
//            ROWS 0 reads WIDTH channels at once (channels-last maps); ROWS 1 reads rows of sites
//            (NCHW) and turns them round in shared memory, each warp for itself.
// Survivors  are sites before the last kept one as it was when the batch came. They are put into
//            room, in no order; the last block of a tile to finish merges them: one warp a channel
//            and end, or the whole block where there are many. A channel with more of them than
//            places is read again for the number that CAPACITY sites at most reach, digit by
//            digit: at most eight readings, whatever the values. After a few batches next to none
//            survive.
// Shared     dynamic, _plan() in the launcher mirrors it: first sums 2 × LIMBS × tile int64, seen
//            4 × tile ints and (ROWS) per warp 32 × 33 floats; then staged CAPACITY int64, place
//            CAPACITY ints, histogram 256 ints, 2 int64.
// Sums       each part's are made in float64 in the order of its sites and added as integers.
// Cost       an estimate from sm_90's machine code, not a measurement: 12 instructions a site
//            (11 for halves) and some 170 for a part's sums of a channel; of the 12 one widens to
//            float64, two calculate in it. Every value is read once, 64 bytes in flight a lane,
//            512 lanes a multiprocessor.
// Determinism  the buffers depend on the values alone: no two survivors are equal, so the order in
//            which they arrive does not matter. Sums depend on the cut into parts, which depends
//            on the number of sites alone.

#ifndef ROWS
#define ROWS 0
#endif
#ifndef WIDTH
#define WIDTH 2
#endif
#ifndef BLOCK
#define BLOCK 256
#endif
#ifndef CAPACITY
#define CAPACITY 1024
#endif
#ifndef LIMBS
#define LIMBS 11
#endif

#include "floats.cuh"
#include "survivors.cuh"

namespace {

static_assert(WIDTH == 1 || !ROWS, "rows are read by one lane per channel");
#if ROWS
constexpr int kPitch = 33;  // of a row turned round: no two lanes meet in a bank
typedef float Turned;  // what a lane takes from a row turned round
#else
typedef X_T Turned;
#endif
struct __align__(sizeof(Turned) * WIDTH) Pack {
    Turned x[WIDTH];
};

// What a lane knows of a part of an image.
struct Part {
    double total[WIDTH], square[WIDTH];
    float low[WIDTH], high[WIDTH];
    int none[WIDTH];
};

// Take in n sites, in their order; true if one of them may survive.
template <int n>
__device__ __forceinline__ bool take(const Pack (&pack)[kDepth], Part& part,
                                     const float (&ceiling)[WIDTH], const float (&floor)[WIDTH]) {
    bool any = false;
#pragma unroll
    for (int w = 0; w < WIDTH; ++w) {
        float low = infinity(), high = -infinity();
#pragma unroll
        for (int u = 0; u < n; ++u) {
            const float value = widen(pack[u].x[w]);
            const double wide = value;
            part.total[w] += wide;
            part.square[w] += wide * wide;
            part.none[w] += value == 0.0f;
            low = fminf(low, value);
            high = fmaxf(high, value);
        }
        part.low[w] = fminf(part.low[w], low);
        part.high[w] = fmaxf(part.high[w], high);
        any |= high > ceiling[w] || low < floor[w];
    }
    return any;
}

// A part's sums and extremes again, without what is not finite.
__device__ void repair(const Channel& c, int image, int start, int stop, double& total,
                       double& square, float& low, float& high, unsigned* missing) {
    total = square = 0.0;
    low = infinity(), high = -infinity();
    for (int s = start; s < stop; ++s) {
        const float value = widen(c.x[image * c.stride_b + s * c.stride_s]);
        if (!finite(value)) {
            atomicAdd(missing, 1u);
            continue;
        }
        const double wide = value;
        total += wide;
        square += wide * wide;
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
}

// Add a double to integers of 40 bits, the largest first: 2^240 … 2^-160. It covers three at most.
__device__ void add_limbs(u64* limbs, double x) {
    if (x == 0.0) return;
    const int exponent = static_cast<int>(__double_as_longlong(x) >> 52 & 0x7ff) - 1023;
    const int place = (exponent + 1040) / 40 - 26;  // rounded down
    if (place < 7 - LIMBS) return;
    x *= __longlong_as_double((1023LL - 40 * place) << 52);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const long long limb = static_cast<long long>(x);
        const int row = 6 - place + i;
        if (limb != 0 && row < LIMBS) atomicAdd(&limbs[row * kTile], static_cast<u64>(limb));
        x = (x - static_cast<double>(limb)) * 1099511627776.0;
    }
}

// Keep a running extreme. Floats of one sign order as integers do, those below 0 the other way.
__device__ void lower(float* to, float value) {
    if (value >= 0.0f) {
        atomicMin(reinterpret_cast<int*>(to), static_cast<int>(__float_as_uint(value)));
    } else {
        atomicMax(reinterpret_cast<unsigned*>(to), __float_as_uint(value));
    }
}

__device__ void raise(float* to, float value) {
    if (value >= 0.0f) {
        atomicMax(reinterpret_cast<int*>(to), static_cast<int>(__float_as_uint(value)));
    } else {
        atomicMin(reinterpret_cast<unsigned*>(to), __float_as_uint(value));
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(BLOCK, 2)
survey(const X_T* __restrict__ x, long long stride_b, long long stride_c, long long stride_s,
       const long long* __restrict__ image_ids, float* top_keys, long long* top_sites,
       float* top_values, float* bottom_keys, long long* bottom_sites, float* bottom_values,
       float* minimum, float* maximum, u64* totals, u64* squares, u64* zeros, u64* finite_sites,
       u64* nonfinite, unsigned* counts, u64* room, int batch, int channels, int sites, int top_k,
       int bottom_k, int per_image, int length, int slices, unsigned places) {
    extern __shared__ __align__(16) unsigned char shared[];
    u64* sums = reinterpret_cast<u64*>(shared);  // (2, LIMBS, tile)
    unsigned* seen = reinterpret_cast<unsigned*>(sums + 2 * LIMBS * kTile);

    const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
    const int tiles = (channels + kTile - 1) / kTile;
    const int tile = static_cast<int>(blockIdx.x) % tiles;
    const int slice = static_cast<int>(blockIdx.x) / tiles;
    const int first = tile * kTile, own = lane * WIDTH;
    const bool mine = first + own < channels;
    // Each part chosen by itself: an array of two would be put into memory.
    const auto buffer = [&](int end) {
        return Buffer{end ? bottom_keys : top_keys, end ? bottom_sites : top_sites,
                      end ? bottom_values : top_values, end ? bottom_k : top_k};
    };
    const auto channel = [&](int end, int c) {
        const Buffer kept = buffer(end);
        const long long row = static_cast<long long>(end) * channels + c;
        const long long next = static_cast<long long>(c + 1) * kept.k;
        const float border = kept.k > 0 ? kept.keys[next - 1] : infinity();
        return Channel{x + c * stride_c, stride_b, stride_s, end ? -1.0f : 1.0f, border,
                       counts + row, room + row * places, places, sites, per_image};
    };

    // Bits in order: minimum and maximum of each channel; then zeros, sites that are not finite.
    for (int i = t; i < 4 * kTile; i += BLOCK) seen[i] = i < kTile ? kAll : 0u;
    for (int i = t; i < 2 * LIMBS * kTile; i += BLOCK) sums[i] = 0;
    __syncthreads();

    float ceiling[WIDTH], floor[WIDTH];  // beyond them a site, or an image's best, survives
#pragma unroll
    for (int w = 0; w < WIDTH; ++w) {
        const int c = first + own + w;
        ceiling[w] = mine ? channel(0, c).border : infinity();
        floor[w] = mine ? -channel(1, c).border : -infinity();
    }
    const int parts = (sites + length - 1) / length;
    const long long units = static_cast<long long>(batch) * parts;
#if ROWS
    float* turned = reinterpret_cast<float*>(seen + 4 * kTile) + warp * 32 * kPitch;
    const int rows = channels - first < 32 ? channels - first : 32;
#endif
    for (long long unit = slice * kWarps + warp; unit < units; unit += slices * kWarps) {
        const int image = static_cast<int>(unit / parts);
        const int start = static_cast<int>(unit % parts) * length;
        const int stop = start + length < sites ? start + length : sites;
        Part part;
#pragma unroll
        for (int w = 0; w < WIDTH; ++w) {
            part.total[w] = part.square[w] = 0.0;
            part.low[w] = infinity(), part.high[w] = -infinity(), part.none[w] = 0;
        }
        const X_T* base = x + image * stride_b + static_cast<long long>(first) * stride_c;
        for (int s = start, n; s < stop; s += n) {
            const int left = stop - s;
            n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            Pack pack[kDepth];
#if ROWS
            if ((s - start) % 32 == 0) {  // the next 32 sites of each row, spread over all lanes
                const int columns = left < 32 ? left : 32;
                int row = lane / columns, column = lane % columns;
                __syncwarp();
                for (int i = lane; i < rows * columns;) {
                    X_T got[kDepth];
                    int to[kDepth];
#pragma unroll
                    for (int u = 0; u < kDepth; ++u, i += 32) {
                        to[u] = -1;
                        if (i >= rows * columns) continue;
                        to[u] = row * kPitch + column;
                        got[u] = base[row * stride_c + (s + column) * stride_s];
                        row += 32 / columns, column += 32 % columns;
                        if (column >= columns) column -= columns, ++row;
                    }
#pragma unroll
                    for (int u = 0; u < kDepth; ++u) {
                        if (to[u] >= 0) turned[to[u]] = widen(got[u]);
                    }
                }
                __syncwarp();
            }
            if (!mine) continue;
            const float* at = turned + lane * kPitch + (s - start) % 32;
#pragma unroll
            for (int u = 0; u < kDepth; ++u) {
                if (u < n) pack[u].x[0] = at[u];
            }
#else
            if (!mine) break;
            const X_T* at = base + own * stride_c + s * stride_s;
#pragma unroll
            for (int u = 0; u < kDepth; ++u) {
                if (u < n) pack[u] = *reinterpret_cast<const Pack*>(at + u * stride_s);
            }
#endif
            const bool any = n == 8   ? take<8>(pack, part, ceiling, floor)
                             : n == 4 ? take<4>(pack, part, ceiling, floor)
                             : n == 2 ? take<2>(pack, part, ceiling, floor)
                                      : take<1>(pack, part, ceiling, floor);
            if (!any || per_image) continue;
            for (int end = 0; end < 2; ++end) {
                for (int w = 0; w < WIDTH; ++w) {
                    const Channel c = channel(end, first + own + w);
                    for (int u = s; u < s + n; ++u) {
                        if (const u64 number = c.number(image, u)) c.keep(number);
                    }
                }
            }
        }
        if (!mine) continue;
#pragma unroll
        for (int w = 0; w < WIDTH; ++w) {
            const int c = first + own + w;
            if (!(fabs(part.total[w]) < 1e300)) {  // one site that is not finite spoils it
                repair(channel(0, c), image, start, stop, part.total[w], part.square[w],
                       part.low[w], part.high[w], &seen[3 * kTile + own + w]);
            }
            add_limbs(sums + own + w, part.total[w]);
            add_limbs(sums + LIMBS * kTile + own + w, part.square[w]);
            atomicMin(&seen[own + w], ordered(part.low[w]));
            atomicMax(&seen[kTile + own + w], ordered(part.high[w]));
            atomicAdd(&seen[2 * kTile + own + w], static_cast<unsigned>(part.none[w]));
            if (!per_image) continue;
            if (part.high[w] > ceiling[w]) {
                channel(0, c).keep_best(image, start, stop, part.high[w] + 0.0f);
            }
            if (part.low[w] < floor[w]) {
                channel(1, c).keep_best(image, start, stop, -part.low[w] + 0.0f);
            }
        }
    }
    __syncthreads();
    for (int i = t; i < kTile && first + i < channels; i += BLOCK) {
        lower(minimum + first + i, restored(seen[i]) + 0.0f);
        raise(maximum + first + i, restored(seen[kTile + i]) + 0.0f);
        const u64 missing = seen[3 * kTile + i];
        atomicAdd(&zeros[first + i], static_cast<u64>(seen[2 * kTile + i]));
        atomicAdd(&nonfinite[first + i], missing);
        atomicAdd(&finite_sites[first + i],
                  (slice == 0 ? static_cast<u64>(batch) * sites : 0) - missing);
    }
    for (int i = t; i < 2 * LIMBS * kTile; i += BLOCK) {
        const int limb = i / kTile, c = first + i % kTile;
        if (c >= channels || sums[i] == 0) continue;
        u64* to = limb < LIMBS ? totals : squares;
        atomicAdd(&to[static_cast<long long>(limb % LIMBS) * channels + c], sums[i]);
    }

    // The last block of the tile finds the survivors of all of them.
    __threadfence();
    __syncthreads();
    int last = 0;
    if (t == 0) {
        last = atomicAdd(&counts[2LL * channels + tile], 1u) == static_cast<unsigned>(slices - 1);
    }
    if (!__syncthreads_or(last)) return;
    __threadfence();
    u64* staged = reinterpret_cast<u64*>(shared);
    int* place = reinterpret_cast<int*>(staged + CAPACITY);
    unsigned* histogram = reinterpret_cast<unsigned*>(place + CAPACITY);
    u64* shown = reinterpret_cast<u64*>(histogram + kDigits);
    // A lane asks for one count: one after the other they would cost more than the batch's reading.
    const auto survivors = [&](int e) {
        const int end = e / kTile, c = first + e % kTile;
        const bool wanted = e < 2 * kTile && c < channels && buffer(end).k > 0;
        return wanted ? counts[static_cast<long long>(end) * channels + c] : 0u;
    };
    const auto many = [&](unsigned n) { return n > kFew || (!per_image && n > places); };
    static_assert(2 * kTile <= BLOCK, "a lane has one channel and end");
    const unsigned own_count = survivors(warp + lane * kWarps);
    const bool busy = many(own_count);
    unsigned left = __ballot_sync(kAll, own_count != 0 && !busy);
    for (; left != 0; left &= left - 1) {
        const int from_lane = __ffs(static_cast<int>(left)) - 1;
        const unsigned n = __shfl_sync(kAll, own_count, from_lane);
        const int e = warp + from_lane * kWarps, end = e / kTile, c = first + e % kTile;
        const Buffer kept = buffer(end);
        const Channel from = channel(end, c);
        u64* few = staged + warp * kFew;
        unsigned found = 0;
        for (unsigned i = 0; i < (per_image ? places : n); i += 32) {
            const u64 number = i + lane < (per_image ? places : n) ? from.room[i + lane] : 0;
            const unsigned there = __ballot_sync(kAll, number != 0);
            if (number != 0) few[found + __popc(there & ((1u << lane) - 1))] = number;
            found += __popc(there);
        }
        merge<32>(few, place + warp * kFew, n, kept, c, image_ids, sites, lane);
    }
    if (!__syncthreads_or(busy)) return;
    for (int base = 0; base < 2 * kTile; base += 32) {
        const unsigned count = survivors(base + lane);  // every warp asks the same
        unsigned open = __ballot_sync(kAll, many(count));
        for (; open != 0; open &= open - 1) {
            const int which = __ffs(static_cast<int>(open)) - 1;
            const unsigned n = __shfl_sync(kAll, count, which);
            const int end = (base + which) / kTile, c = first + (base + which) % kTile;
            const Buffer kept = buffer(end);
            const Channel from = channel(end, c);
            const bool again = !per_image && n > places;
            const unsigned span =
                again ? static_cast<unsigned>(batch) * sites : per_image ? places : n;
            const Survivors all = {from, again, span};
            const u64 reach = n > CAPACITY ? threshold(all, static_cast<unsigned>(kept.k),
                                                       histogram, shown)
                                           : 1;
            unsigned* found = reinterpret_cast<unsigned*>(shown);
            if (t == 0) *found = 0;
            __syncthreads();
            visit(all, reach, [=](u64 number) { staged[atomicAdd(found, 1u)] = number; });
            __syncthreads();
            merge<BLOCK>(staged, place, static_cast<int>(*found), kept, c, image_ids, sites, t);
        }
    }
}
