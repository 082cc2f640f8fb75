// Runs a CUDA kernel on the CPU, one thread of a block after the other, to test its logic.
//
// Each CUDA thread is a ucontext fibre that runs until a barrier of its warp or its block, or its
// end. It shows wrong indices, missing initialisation, divergent barriers and shared memory written
// past what the launch asked for; threads run in falling order every other time, so that much of
// what leans on their order shows too. Every load and store is watched for data races (races.cpp).
// It cannot show speed. Dynamic shared memory must be named `shared`, as in all kernels of this
// project.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Index3 {
    unsigned x, y, z;
};

alignas(16) unsigned char shared[1 << 19];
static Index3 threadIdx, blockIdx, blockDim, gridDim;

using std::fabs;
using std::fmax;
using std::fmaxf;
using std::fmin;
using std::fminf;
using std::rint;
using std::trunc;

static double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static long long __double_as_longlong(double value) {
    long long bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Out of line, so that no host compiler makes one fused operation of two.
__attribute__((noinline)) static double __dadd_rn(double a, double b) { return a + b; }
__attribute__((noinline)) static double __dmul_rn(double a, double b) { return a * b; }

extern "C" {  // races.cpp
void races_launch(unsigned warps, void* shared, size_t bytes, void* own, size_t own_bytes);
void races_block(int number);
void races_watch(unsigned thread);
void races_rest();
void races_warp_barrier(unsigned warp);
void races_block_barrier();
void races_fence();
void races_atomic(void* where, size_t size);
int races_found();
}

// An atomic is told to the watcher as one, not as the load and the store it is made of here.
#define ATOMIC __attribute__((noinline, no_sanitize("thread")))

template <class T>
ATOMIC static T atomicMin(T* where, T what) {
    races_atomic(where, sizeof(T));
    T old = *where;
    *where = what < old ? what : old;
    return old;
}

template <class T>
ATOMIC static T atomicMax(T* where, T what) {
    races_atomic(where, sizeof(T));
    T old = *where;
    *where = what > old ? what : old;
    return old;
}

template <class T>
ATOMIC static T atomicAdd(T* where, T what) {
    races_atomic(where, sizeof(T));
    T old = *where;
    *where += what;
    return old;
}

namespace shim {

constexpr unsigned char kPoison = 0xff;  // a NaN in every float, −1 in every int
constexpr size_t kStack = 64 << 10;
constexpr unsigned kWarp = 32;
enum class State { running, at_warp, at_block, finished };

static ucontext_t scheduler;
static std::vector<ucontext_t> fibres;
static std::vector<State> states;
static std::vector<int> lines;                     // of the source, where each thread waits
static std::vector<unsigned long long> exchanged;  // what each thread shows to its warp
static std::function<void()> body;
static unsigned current;

static void enter() {
    races_watch(current);
    body();
    races_rest();
    states[current] = State::finished;
    swapcontext(&fibres[current], &scheduler);
}

static void wait(State barrier, int line = 0) {
    const unsigned self = current;
    states[self] = barrier;
    lines[self] = line;
    swapcontext(&fibres[self], &scheduler);
}

// While it lives, what the shim itself loads and stores is not watched.
struct Unwatched {
    Unwatched() { races_rest(); }
    ~Unwatched() { races_watch(current); }
};

static bool all(unsigned first, unsigned last, State state) {
    for (unsigned t = first; t < last; ++t) {
        if (states[t] != state) return false;
    }
    return true;
}

// All threads of the block wait at one and the same barrier.
static bool together(unsigned block) {
    for (unsigned t = 0; t < block; ++t) {
        if (states[t] != State::at_block || lines[t] != lines[0]) return false;
    }
    return true;
}

static void release(unsigned first, unsigned last) {
    for (unsigned t = first; t < last; ++t) states[t] = State::running;
}

// Let the threads [first, last) run up to their next barrier or their end.
static void advance(unsigned first, unsigned last, bool falling) {
    for (unsigned i = first; i < last; ++i) {
        current = falling ? first + last - 1 - i : i;
        if (states[current] == State::running) {
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibres[current]);
        }
    }
}

static bool overrun(size_t shared_bytes) {
    for (size_t i = shared_bytes; i < sizeof shared; ++i) {
        if (shared[i] != kPoison) return true;
    }
    return false;
}

enum Outcome { kGood = 0, kDivergentBarrier = 1, kSharedOverrun = 2, kRace = 3 };

// Run body() for every thread of every block; the kernel reads threadIdx and blockIdx.
static int launch(unsigned grid, unsigned block, size_t shared_bytes, std::function<void()> work) {
    body = std::move(work);
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    std::vector<unsigned char> stacks(block * kStack);
    exchanged.assign(block, 0);
    lines.assign(block, 0);
    races_launch((block + kWarp - 1) / kWarp, shared, sizeof shared, stacks.data(), stacks.size());
    bool falling = false;
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {b, 0, 0};
        races_block(static_cast<int>(b));
        std::memset(shared, kPoison, sizeof shared);
        fibres.assign(block, ucontext_t{});
        states.assign(block, State::running);
        for (unsigned t = 0; t < block; ++t) {
            getcontext(&fibres[t]);
            fibres[t].uc_stack.ss_sp = &stacks[t * kStack];
            fibres[t].uc_stack.ss_size = kStack;
            makecontext(&fibres[t], enter, 0);
        }
        while (!all(0, block, State::finished)) {
            for (unsigned first = 0; first < block; first += kWarp) {
                const unsigned last = first + kWarp < block ? first + kWarp : block;
                for (advance(first, last, falling); all(first, last, State::at_warp);
                     advance(first, last, falling)) {
                    falling = !falling;
                    races_warp_barrier(first / kWarp);
                    release(first, last);
                }
            }
            if (overrun(shared_bytes)) return kSharedOverrun;
            if (races_found()) return kRace;
            if (together(block)) {
                races_block_barrier();
                release(0, block);
            } else if (!all(0, block, State::finished)) {
                return kDivergentBarrier;
            }
        }
    }
    return kGood;
}

// Show a value to the warp and return what `lane` showed.
template <class T>
static T shuffle(T value, unsigned lane) {
    static_assert(sizeof(T) <= sizeof(unsigned long long), "a shuffle moves up to 8 bytes");
    const Unwatched guard;
    const unsigned self = current;
    std::memcpy(&exchanged[self], &value, sizeof value);
    wait(State::at_warp);
    std::memcpy(&value, &exchanged[self / kWarp * kWarp + lane % kWarp], sizeof value);
    wait(State::at_warp);
    return value;
}

}  // namespace shim

static void syncthreads(int line) {
    const shim::Unwatched guard;
    shim::wait(shim::State::at_block, line);
}

static int syncthreads_or(int predicate, int line) {
    const shim::Unwatched guard;
    shim::exchanged[shim::current] = predicate != 0;
    shim::wait(shim::State::at_block, line);
    int any = 0;
    for (unsigned t = 0; t < blockDim.x; ++t) any |= static_cast<int>(shim::exchanged[t]);
    shim::wait(shim::State::at_block, -line);
    return any;
}

// Macros, to know where: threads that wait at different barriers are not together.
#define __syncthreads() syncthreads(__LINE__)
#define __syncthreads_or(predicate) syncthreads_or(predicate, __LINE__)

static void __threadfence() { races_fence(); }

static void __syncwarp(unsigned = ~0u) {
    const shim::Unwatched guard;
    shim::wait(shim::State::at_warp);
}

template <class T>
static T __shfl_sync(unsigned, T value, int lane) {
    return shim::shuffle(value, static_cast<unsigned>(lane));
}

template <class T>
static T __shfl_xor_sync(unsigned, T value, int mask) {
    return shim::shuffle(value, (shim::current % shim::kWarp) ^ static_cast<unsigned>(mask));
}

template <class T>
static T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = shim::current % shim::kWarp;
    return shim::shuffle(value, lane >= by ? lane - by : lane);
}

static unsigned __ballot_sync(unsigned, int predicate) {
    const shim::Unwatched guard;
    const unsigned self = shim::current, first = self / shim::kWarp * shim::kWarp;
    shim::exchanged[self] = predicate != 0;
    shim::wait(shim::State::at_warp);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < shim::kWarp && first + lane < blockDim.x; ++lane) {
        bits |= static_cast<unsigned>(shim::exchanged[first + lane]) << lane;
    }
    shim::wait(shim::State::at_warp);
    return bits;
}

static unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    for (int by = 16; by > 0; by >>= 1) {
        const unsigned other = __shfl_xor_sync(mask, value, by);
        value = other > value ? other : value;
    }
    return value;
}

static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static int __ffs(int bits) { return __builtin_ffs(bits); }
