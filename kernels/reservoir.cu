// One random site of each image of a batch into the sites that every channel keeps by priority.
//
// Formula    priority = hash(channel key, image id), a signed integer; position = ⌊sites · u⌋ with u
//            the uniform number of hash(priority, 1); site = image id · sites + position. A channel
//            keeps the k sites of the greatest priorities. Sites that are not finite do not enter;
//            −0 counts as +0.
// Layout     x (batch, channels, sites) X_T at strides stride_b, stride_c, stride_s; image_ids
//            (batch) int64, none of which the buffers hold; channel_keys (channels) int64. keys,
//            kept_sites int64, values float (channels, k): the buffers, sorted, updated in place.
// Launch     a warp per channel, 32 images at a time, a lane each.
// Shared     none.
// Cost       a hash of some 30 integer instructions for each channel and image. Only sites with a
//            priority above the last kept one are read: after a few batches next to none.
// Determinism  the hash is a bijection of the image id, so no two priorities of a channel are equal.

#ifndef BLOCK
#define BLOCK 128
#endif

#include "floats.cuh"
#include "hashing.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK)
reservoir(const X_T* __restrict__ x, long long stride_b, long long stride_c, long long stride_s,
          const long long* __restrict__ image_ids, const long long* __restrict__ channel_keys,
          long long* keys, long long* kept_sites, float* values, int batch, int channels, int sites,
          int k) {
    constexpr unsigned kAll = 0xffffffffu;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int channel = static_cast<int>((blockIdx.x * BLOCK + threadIdx.x) / 32);
    if (channel >= channels) return;
    const unsigned long long state =
        extend(0, static_cast<unsigned long long>(channel_keys[channel]));
    x += channel * stride_c;
    keys += static_cast<long long>(channel) * k;
    kept_sites += static_cast<long long>(channel) * k;
    values += static_cast<long long>(channel) * k;

    long long border = keys[k - 1];
    for (int first = 0; first < batch; first += 32) {
        const int image = first + lane;
        const long long id = image < batch ? image_ids[image] : 0;
        const unsigned long long hash = extend(state, static_cast<unsigned long long>(id));
        const long long priority = static_cast<long long>(hash);
        long long site = 0;
        float value = 0.0f;
        bool enters = image < batch && priority > border;
        if (enters) {
            const long long position =
                static_cast<long long>(unit(extend(extend(0, hash), 1)) * sites);
            site = id * sites + position;
            value = widen(x[image * stride_b + position * stride_s]) + 0.0f;
            enters = finite(value);
        }
        const unsigned entering = __ballot_sync(kAll, enters);
        if (entering == 0) continue;

        int place = 0, high = k;  // kept entries that come before, then new ones too
        while (place < high) {
            const int middle = (place + high) / 2;
            if (keys[middle] > priority) {
                place = middle + 1;
            } else {
                high = middle;
            }
        }
        for (unsigned left = entering; left != 0; left &= left - 1) {
            place += __shfl_sync(kAll, priority, __ffs(static_cast<int>(left)) - 1) > priority;
        }
        // Entries move down, the last ones first: none is written over before it is read.
        for (int from = (k - 1) / 32 * 32; from >= 0; from -= 32) {
            const int at = from + lane;
            long long key = 0, old_site = 0;
            float old_value = 0.0f;
            if (at < k) key = keys[at], old_site = kept_sites[at], old_value = values[at];
            int to = at;
            for (unsigned left = entering; left != 0; left &= left - 1) {
                to += __shfl_sync(kAll, priority, __ffs(static_cast<int>(left)) - 1) > key;
            }
            __syncwarp();
            if (to < k && to != at) {
                keys[to] = key, kept_sites[to] = old_site, values[to] = old_value;
            }
            __syncwarp();
        }
        if (enters && place < k) {
            keys[place] = priority, kept_sites[place] = site, values[place] = value;
        }
        __syncwarp();
        border = keys[k - 1];
    }
}
