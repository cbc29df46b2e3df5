// Boxes of maps: box s of y (S, h, w, C) has its first cell at corner[s] = (row, column) of maps (H, W, C).

struct Place {
    int row, column, c;
    __device__ __forceinline__ Place(int at, int width, int channels)
        : row(at / channels / width), column(at / channels % width), c(at % channels) {}
};

extern "C" __global__ void cut_boxes(
    const T* __restrict__ x, const int* __restrict__ image, const int* __restrict__ corner, T* __restrict__ y,
    int count, int height, int width, int channels, int h, int w, T beyond)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= h * w * channels) return;
    Place box(at, w, channels);
    for (int s = blockIdx.y; s < count; s += gridDim.y) {
        int row = corner[2 * s] + box.row, column = corner[2 * s + 1] + box.column;
        bool there = row >= 0 && row < height && column >= 0 && column < width;
        long long from = (((long long)image[s] * height + row) * width + column) * channels + box.c;
        y[(long long)s * h * w * channels + at] = there ? x[from] : beyond;
    }
}

extern "C" __global__ void paste_boxes(
    const T* __restrict__ y, const int* __restrict__ corner, T* __restrict__ x, int count, int height, int width,
    int channels, int h, int w)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= h * w * channels) return;
    Place box(at, w, channels);
    for (int s = blockIdx.y; s < count; s += gridDim.y) {
        int row = corner[2 * s] + box.row, column = corner[2 * s + 1] + box.column;
        if (row < 0 || row >= height || column < 0 || column >= width) continue;
        long long to = (((long long)s * height + row) * width + column) * channels + box.c;
        x[to] = y[(long long)s * h * w * channels + at];
    }
}

extern "C" __global__ void blank_beyond(
    T* __restrict__ y, const int* __restrict__ corner, int count, int height, int width, int channels, int h, int w)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= h * w * channels) return;
    Place box(at, w, channels);
    for (int s = blockIdx.y; s < count; s += gridDim.y) {
        int row = corner[2 * s] + box.row, column = corner[2 * s + 1] + box.column;
        if (row < 0 || row >= height || column < 0 || column >= width) y[(long long)s * h * w * channels + at] = 0;
    }
}
