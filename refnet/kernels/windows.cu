// Windows over images: their copies into rows (unfold) and back (fold).
// x (N, H, W, C) holds all maps; the C / groups of one group start at `first`.
// rows (N, P, Q, L): a window's K K maps cells in order (i, j, c), then one 1, for the bias, then zeros up to L.

extern "C" __global__ void unfold(
    const T* __restrict__ x, T* __restrict__ rows, int images, int height, int width, int channels, int first, int maps,
    int p_count, int q_count, int length, int size, int stride, int pad)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= length) return;
    int cells = size * size * maps;
    int i = k / (size * maps), j = k / maps % size, c = k % maps;
    for (int at = blockIdx.y; at < images * p_count; at += gridDim.y) {
        int n = at / p_count, p = at % p_count, h = p * stride + i - pad;
        bool there = k < cells && h >= 0 && h < height;
        const T* from = x + ((long long)n * height + h) * width * channels + first + c;
        T* to = rows + (long long)at * q_count * length + k;
        for (int q = 0; q < q_count; q++) {
            int v = q * stride + j - pad;
            T value = there && v >= 0 && v < width ? from[(long long)v * channels] : T(k == cells);
            to[(long long)q * length] = value;
        }
    }
}

extern "C" __global__ void fold(
    const T* __restrict__ rows, T* __restrict__ x, int images, int height, int width, int channels, int first, int maps,
    int p_count, int q_count, int length, int size, int stride, int pad)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= height * width * maps) return;
    int c = at % maps, v = at / maps % width, h = at / maps / width;
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        T sum = 0;
        for (int i = (h + pad) % stride; i < size; i += stride) {
            int p = (h + pad - i) / stride;
            if (h + pad < i || p >= p_count) continue;
            for (int j = (v + pad) % stride; j < size; j += stride) {
                int q = (v + pad - j) / stride;
                if (v + pad < j || q >= q_count) continue;
                sum += rows[(((long long)n * p_count + p) * q_count + q) * length + (i * size + j) * maps + c];
            }
        }
        x[(((long long)n * height + h) * width + v) * channels + first + c] = sum;
    }
}
