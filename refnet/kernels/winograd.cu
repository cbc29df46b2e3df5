// The linear functions of refnet/ops/winograd.py. A[6][4], G[6][3] and B[6][6] are its matrices, put in front.
// A tile is 4 x 4 outputs and meets 6 x 6 blocks of stride x stride cells; block (i, j) of a filter likewise.
// A block's maps are ordered (row, column, map) of its cells: so many are stride^2 C. Points are ordered (i, j).

__device__ __forceinline__ int cell(int block, int inside, int stride, int pad) { return block * stride + inside - pad; }

// v (36, N rows columns, stride^2 C): B x B' of each tile of x (N, H, W, C).
extern "C" __global__ void tiles(
    const T* __restrict__ x, T* __restrict__ v, int height, int width, int channels, int count, int rows, int columns,
    int stride, int pad)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x, maps = stride * stride * channels;
    if (k >= maps) return;
    int c = k % channels, si = k / channels / stride, sj = k / channels % stride;
    for (int tile = blockIdx.y; tile < count; tile += gridDim.y) {
        int column = tile % columns, row = tile / columns % rows, n = tile / columns / rows;
        const T* image = x + (long long)n * height * width * channels + c;
        T half[6][6];
        #pragma unroll
        for (int j = 0; j < 6; j++) {
            T line[6];
            int w = cell(4 * column + j, sj, stride, pad);
            #pragma unroll
            for (int i = 0; i < 6; i++) {
                int h = cell(4 * row + i, si, stride, pad);
                bool there = h >= 0 && h < height && w >= 0 && w < width;
                line[i] = there ? image[((long long)h * width + w) * channels] : T(0);
            }
            #pragma unroll
            for (int a = 0; a < 6; a++) {
                T sum = 0;
                #pragma unroll
                for (int i = 0; i < 6; i++) if (B[a][i] != 0) sum += B[a][i] * line[i];
                half[a][j] = sum;
            }
        }
        T* out = v + (long long)tile * maps + k;
        #pragma unroll
        for (int a = 0; a < 6; a++)
            #pragma unroll
            for (int b = 0; b < 6; b++) {
                T sum = 0;
                #pragma unroll
                for (int j = 0; j < 6; j++) if (B[b][j] != 0) sum += B[b][j] * half[a][j];
                out[(long long)(6 * a + b) * count * maps] = sum;
            }
    }
}

// y (N, H, W, C), where it lies inside: A' z A of products z (36, N rows columns, stride^2 C), plus the bias (C).
extern "C" __global__ void outputs(
    const T* __restrict__ z, const T* __restrict__ bias, T* __restrict__ y, int height, int width, int channels,
    int count, int rows, int columns, int stride, int pad)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x, maps = stride * stride * channels;
    if (k >= maps) return;
    int c = k % channels, si = k / channels / stride, sj = k / channels % stride;
    T b = bias[c];
    for (int tile = blockIdx.y; tile < count; tile += gridDim.y) {
        int column = tile % columns, row = tile / columns % rows, n = tile / columns / rows;
        const T* in = z + (long long)tile * maps + k;
        T half[4][6];
        #pragma unroll
        for (int j = 0; j < 6; j++) {
            T line[6];
            #pragma unroll
            for (int i = 0; i < 6; i++) line[i] = in[(long long)(6 * i + j) * count * maps];
            #pragma unroll
            for (int a = 0; a < 4; a++) {
                T sum = 0;
                #pragma unroll
                for (int i = 0; i < 6; i++) if (A[i][a] != 0) sum += A[i][a] * line[i];
                half[a][j] = sum;
            }
        }
        T* image = y + (long long)n * height * width * channels + c;
        #pragma unroll
        for (int a = 0; a < 4; a++)
            #pragma unroll
            for (int e = 0; e < 4; e++) {
                T sum = b;
                #pragma unroll
                for (int j = 0; j < 6; j++) if (A[j][e] != 0) sum += A[j][e] * half[a][j];
                int h = cell(4 * row + a, si, stride, pad), w = cell(4 * column + e, sj, stride, pad);
                if (h >= 0 && h < height && w >= 0 && w < width) image[((long long)h * width + w) * channels] = sum;
            }
    }
}

// z (36, N rows columns, M): A y A' of each tile of y (N, P, Q, M), the adjoint of `outputs` without strides.
extern "C" __global__ void outputs_adjoint(
    const T* __restrict__ y, T* __restrict__ z, int height, int width, int maps, int count, int rows, int columns)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= maps) return;
    for (int tile = blockIdx.y; tile < count; tile += gridDim.y) {
        int column = tile % columns, row = tile / columns % rows, n = tile / columns / rows;
        const T* image = y + (long long)n * height * width * maps + m;
        T half[6][4];
        #pragma unroll
        for (int e = 0; e < 4; e++) {
            T line[4];
            int w = 4 * column + e;
            #pragma unroll
            for (int a = 0; a < 4; a++) {
                int h = 4 * row + a;
                line[a] = h < height && w < width ? image[((long long)h * width + w) * maps] : T(0);
            }
            #pragma unroll
            for (int i = 0; i < 6; i++) {
                T sum = 0;
                #pragma unroll
                for (int a = 0; a < 4; a++) if (A[i][a] != 0) sum += A[i][a] * line[a];
                half[i][e] = sum;
            }
        }
        T* out = z + (long long)tile * maps + m;
        #pragma unroll
        for (int i = 0; i < 6; i++)
            #pragma unroll
            for (int j = 0; j < 6; j++) {
                T sum = 0;
                #pragma unroll
                for (int e = 0; e < 4; e++) if (A[j][e] != 0) sum += A[j][e] * half[i][e];
                out[(long long)(6 * i + j) * count * maps] = sum;
            }
    }
}

// u (36, stride^2 C, M): G w G' of filters w (K, K, C, M); with `flip` of the filters turned by 180 degrees, in blocks.
extern "C" __global__ void filters(
    const T* __restrict__ w, T* __restrict__ u, int size, int channels, int count, int stride, int flip)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x, maps = stride * stride * channels;
    if (m >= count) return;
    for (int k = blockIdx.y; k < maps; k += gridDim.y) {
        int c = k % channels, si = k / channels / stride, sj = k / channels % stride;
        T half[6][3];
        #pragma unroll
        for (int j = 0; j < 3; j++) {
            T line[3];
            int col = cell(flip ? 2 - j : j, sj, stride, 0);
            #pragma unroll
            for (int i = 0; i < 3; i++) {
                int row = cell(flip ? 2 - i : i, si, stride, 0);
                line[i] = row < size && col < size ? w[(((long long)row * size + col) * channels + c) * count + m] : T(0);
            }
            #pragma unroll
            for (int a = 0; a < 6; a++) half[a][j] = G[a][0] * line[0] + G[a][1] * line[1] + G[a][2] * line[2];
        }
        #pragma unroll
        for (int a = 0; a < 6; a++)
            #pragma unroll
            for (int b = 0; b < 6; b++)
                u[((long long)(6 * a + b) * maps + k) * count + m] =
                    G[b][0] * half[a][0] + G[b][1] * half[a][1] + G[b][2] * half[a][2];
    }
}

// dw (K, K, C, M): G' u G of u (36, stride^2 C, M), the adjoint of `filters`.
extern "C" __global__ void filters_adjoint(
    const T* __restrict__ u, T* __restrict__ dw, int size, int channels, int count, int stride)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x, maps = stride * stride * channels;
    if (m >= count) return;
    for (int k = blockIdx.y; k < maps; k += gridDim.y) {
        int c = k % channels, si = k / channels / stride, sj = k / channels % stride;
        T half[3][6];
        #pragma unroll
        for (int b = 0; b < 6; b++)
            #pragma unroll
            for (int i = 0; i < 3; i++) {
                T sum = 0;
                #pragma unroll
                for (int a = 0; a < 6; a++)
                    if (G[a][i] != 0) sum += G[a][i] * u[((long long)(6 * a + b) * maps + k) * count + m];
                half[i][b] = sum;
            }
        #pragma unroll
        for (int i = 0; i < 3; i++)
            #pragma unroll
            for (int j = 0; j < 3; j++) {
                T sum = 0;
                #pragma unroll
                for (int b = 0; b < 6; b++) if (G[b][j] != 0) sum += G[b][j] * half[i][b];
                int row = cell(i, si, stride, 0), col = cell(j, sj, stride, 0);
                if (row < size && col < size) dw[(((long long)row * size + col) * channels + c) * count + m] = sum;
            }
    }
}
