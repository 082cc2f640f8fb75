// Runs a CUDA kernel on the CPU, one thread of a block after the other, to test its logic.
//
// Each CUDA thread is a ucontext fibre that runs until __syncthreads or its end. It shows wrong
// indices, missing initialisation, divergent barriers and shared memory written past what the
// launch asked for; it cannot show data races or speed. Dynamic shared memory must be named
// `shared`, as in all kernels of this project.
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
using std::fmin;
using std::rint;

static double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
static T atomicAdd(T* where, T what) {
    T old = *where;
    *where += what;
    return old;
}

namespace shim {

constexpr unsigned char kPoison = 0xff;  // a NaN in every float, −1 in every int
constexpr size_t kStack = 64 << 10;
enum class State { running, waiting, finished };

static ucontext_t scheduler;
static std::vector<ucontext_t> fibres;
static std::vector<State> states;
static std::function<void()> body;
static unsigned current;

static void enter() {
    body();
    states[current] = State::finished;
    swapcontext(&fibres[current], &scheduler);
}

enum Outcome { kGood = 0, kDivergentBarrier = 1, kSharedOverrun = 2 };

// Run body() for every thread of every block; the kernel reads threadIdx and blockIdx.
static int launch(unsigned grid, unsigned block, size_t shared_bytes, std::function<void()> work) {
    body = std::move(work);
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    std::vector<unsigned char> stacks(block * kStack);
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {b, 0, 0};
        std::memset(shared, kPoison, sizeof shared);
        fibres.assign(block, ucontext_t{});
        states.assign(block, State::running);
        for (unsigned t = 0; t < block; ++t) {
            getcontext(&fibres[t]);
            fibres[t].uc_stack.ss_sp = &stacks[t * kStack];
            fibres[t].uc_stack.ss_size = kStack;
            makecontext(&fibres[t], enter, 0);
        }
        for (bool alive = true; alive;) {
            unsigned finished = 0;
            for (current = 0; current < block; ++current) {
                if (states[current] != State::finished) {
                    states[current] = State::running;
                    threadIdx = {current, 0, 0};
                    swapcontext(&scheduler, &fibres[current]);
                }
                finished += states[current] == State::finished;
            }
            if (finished != 0 && finished != block) return kDivergentBarrier;
            alive = finished == 0;
        }
        for (size_t i = shared_bytes; i < sizeof shared; ++i) {
            if (shared[i] != kPoison) return kSharedOverrun;
        }
    }
    return kGood;
}

}  // namespace shim

static void __syncthreads() {
    const unsigned self = shim::current;
    shim::states[self] = shim::State::waiting;
    swapcontext(&shim::fibres[self], &shim::scheduler);
    threadIdx = {self, 0, 0};
}
