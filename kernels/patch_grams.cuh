// Gram matrices in shared memory, made by the whole block: given, of rows of a pool, or rotated.
// Included by separability.cu, whose head states layouts, and which defines WARPS and BOUND.
//
// Products are summed in registers, a tile of outputs a thread, so that a number read from shared
// memory is used several times; what both sides read stands there line by line, so that the threads
// of a warp read neighbours. All sums are exact in double (exact.py, rotated_grams.py): no order of
// theirs changes a bit.
#pragma once

namespace {

constexpr int kThreads = WARPS * 32;

#if ROTATED || POOLED
constexpr double kCosine = 16777216.0;  // 2^24, 1 / exact.GRID

__device__ int smaller(int a, int b) { return a < b ? a : b; }

// On the grid of unit rows and within [-1, 1]; NaN becomes a number, and good becomes false.
__device__ double as_cosine(double value, bool& good) {
    const double cosine = rint(value * kCosine) * (1.0 / kCosine);
    good = good & (cosine == cosine);
    return fmin(fmax(cosine, -1.0), 1.0);
}

// sum[u][v] += Σ_l left[l · left_step + rows[u]] · right[l · right_step + columns[v]], l < length.
template <int R, int C>
__device__ __forceinline__ void accumulate(double (&sum)[R][C], const double* left, int left_step,
                                           const int (&rows)[R], const double* right,
                                           int right_step, const int (&columns)[C], int length) {
#pragma unroll 1
    for (int l = 0; l < length; ++l, left += left_step, right += right_step) {
        double row[R], column[C];
#pragma unroll
        for (int u = 0; u < R; ++u) row[u] = left[rows[u]];
#pragma unroll
        for (int v = 0; v < C; ++v) column[v] = right[columns[v]];
#pragma unroll
        for (int u = 0; u < R; ++u) {
#pragma unroll
            for (int v = 0; v < C; ++v) sum[u][v] += row[u] * column[v];
        }
    }
}
#endif

#if POOLED
constexpr int kSide = 4;  // of a thread's tile

// Cosines of m rows (…, dim) of unit length on the grid; true where all are numbers.
__device__ bool multiply(const float* rows, const long long* members, int dim, double* grid,
                         double* slice, int room, int m, double scale, double step) {
    const int t = static_cast<int>(threadIdx.x), pitch = m | 1;
    const int tiles = (m + kSide - 1) / kSide, count = tiles * (tiles + 1) / 2;
    const int width = smaller(dim, room / pitch);
    bool good = true;
#pragma unroll 1
    for (int base = 0; base < count; base += kThreads) {  // tiles on and below the diagonal
        int top = 0, left = base + t;
        while (left > top) left -= ++top;
        int lines[kSide], columns[kSide];
        double sum[kSide][kSide] = {};
#pragma unroll
        for (int u = 0; u < kSide; ++u) {
            lines[u] = smaller(top + u * tiles, m - 1);
            columns[u] = smaller(left + u * tiles, m - 1);
        }
#pragma unroll 1
        for (int from = 0; from < dim; from += width) {
            const int wide = smaller(width, dim - from);
            __syncthreads();  // the slice before this one is read
#pragma unroll 1
            for (int i = t / 32; i < m; i += WARPS) {
                const float* row = rows + members[i] * dim + from;
#pragma unroll 1
                for (int l = t % 32; l < wide; l += 32) slice[l * pitch + i] = row[l];
            }
            __syncthreads();
            if (base + t < count) {
                accumulate(sum, slice, pitch, lines, slice, pitch, columns, wide);
            }
        }
        if (base + t >= count) continue;
#pragma unroll
        for (int u = 0; u < kSide; ++u) {
#pragma unroll
            for (int v = 0; v < kSide; ++v) {
                if (top + u * tiles >= m || left + v * tiles >= m) continue;
                double value = 1.0;
                if (lines[u] != columns[v]) value = rint(as_cosine(sum[u][v], good) * scale) * step;
                grid[lines[u] * m + columns[v]] = grid[columns[v] * m + lines[u]] = value;
            }
        }
    }
    return good;
}
#elif ROTATED
constexpr int kRows = 3, kColumns = 6;  // of a thread's tile; _cuda_separability.TILE
constexpr double kProduct = 134217728.0;         // 2^27, 1 / rotated_grams.PRODUCT_GRID
constexpr double kTiny = 9.313225746154785e-10;  // 2^-30, rotated_grams.TINY

// Lines [from, from + wide) of the rotation, unless they stand in the slice already.
__device__ void hold(const double* turned, double* slice, int m, int from, int wide, int& held) {
    if (held == from) return;
    held = from;
    __syncthreads();  // the slice before this one is read
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x); e < wide * m; e += kThreads) {
        slice[e] = turned[from * m + e];
    }
    __syncthreads();
}

// One of the two products of QPQᵀ, written where its factor was: a panel of columns (the first) or
// rows (the second) after the other, whose outputs wait in registers until all have read.
template <bool kSecond>
__device__ __forceinline__ void turn(const double* turned, double* grid, double* slice, int width,
                                     int m, const double* size, double shift, int& held) {
    const int t = static_cast<int>(threadIdx.x);
    const int tall = (m + kRows - 1) / kRows, broad = (m + kColumns - 1) / kColumns;
    const int down = kSecond ? smaller(kThreads / broad, tall) : tall;  // tiles of a panel
    const int across = kSecond ? broad : smaller(kThreads / tall, broad);
#pragma unroll 1
    for (int panel = 0; panel < m; panel += kSecond ? down * kRows : across * kColumns) {
        const int top = t / across + (kSecond ? panel : 0);
        const int left = t % across + (kSecond ? 0 : panel);
        const bool live = t < down * across;
        int rows[kRows], columns[kColumns];
        double sum[kRows][kColumns] = {};
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
            rows[u] = smaller(top + u * down, m - 1) * (kSecond ? m : 1);
        }
#pragma unroll
        for (int v = 0; v < kColumns; ++v) columns[v] = smaller(left + v * across, m - 1);
#pragma unroll 1
        for (int from = 0; from < m; from += width) {
            const int wide = smaller(width, m - from);
            hold(turned, slice, m, from, wide, held);
            if (!live) continue;
            if (kSecond) {
                accumulate(sum, grid + from, 1, rows, slice, m, columns, wide);
            } else {
                accumulate(sum, slice, m, rows, grid + from * m, m, columns, wide);
            }
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
#pragma unroll
            for (int v = 0; v < kColumns; ++v) {
                const int i = top + u * down, j = left + v * across;
                if (!live || i >= m || j >= m) continue;
                grid[i * m + j] = kSecond ? sum[u][v] * *size + shift
                                          : rint(sum[u][v] * kProduct) * (1.0 / kProduct);
            }
        }
        __syncthreads();
    }
}

// Cosines of the rows of one channel under one rotation, see rotated_grams; `turned` is the
// rotation's transpose. True where all entries are numbers.
__device__ bool rotate(const double* turned, const double* product, const double* size,
                       double shift, double* grid, double* lengths, double* slice, int room, int m,
                       double scale, double step) {
    const int t = static_cast<int>(threadIdx.x);
    int held = -1;
#pragma unroll 1
    for (int e = t; e < m * m; e += kThreads) grid[e] = product[e];
    turn<false>(turned, grid, slice, smaller(m, room / m), m, size, shift, held);
    turn<true>(turned, grid, slice, smaller(m, room / m), m, size, shift, held);
#pragma unroll 1
    for (int i = t; i < m; i += kThreads) lengths[i] = sqrt(fmax(grid[i * m + i], kTiny));
    __syncthreads();
    bool good = true;
#pragma unroll 1
    for (int i = t / 32; i < m; i += WARPS) {
        for (int j = t % 32; j < i; j += 32) {
            const double length = lengths[i] * lengths[j];
            const double one = as_cosine(grid[i * m + j] / length, good);
            const double other = as_cosine(grid[j * m + i] / length, good);
            grid[i * m + j] = grid[j * m + i] = rint((one + other) * 0.5 * scale) * step;
        }
        if (t % 32 == 0) grid[i * m + i] = 1.0;
    }
    return good;
}
#else
// The m patches `where` of a Gram matrix (patches, patches), made symmetric and put on the grid;
// true where all entries are cosines.
__device__ bool load(const GRAM_T* gram, const int* where, int patches, double* grid, int m,
                     double scale, double step) {
    const int first = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int i = first; i < m; i += WARPS) {
        const GRAM_T* row = gram + static_cast<long long>(where[i]) * patches;
        for (int j = lane; j < m; j += 32) grid[i * m + j] = static_cast<double>(row[where[j]]);
    }
    __syncthreads();
    bool good = true;
#pragma unroll 1
    for (int i = first; i < m; i += WARPS) {
        for (int j = lane; j <= i; j += 32) {
            const double value = (grid[i * m + j] + grid[j * m + i]) * 0.5;
            good = good & (fabs(value) <= BOUND);  // false for NaN
            grid[i * m + j] = grid[j * m + i] = rint(value * scale) * step;
        }
    }
    return good;
}
#endif

}  // namespace
