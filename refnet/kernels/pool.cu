// Max pooling with switches, and unpooling. x (N, H, W, C), y and switches (N, P, Q, C).

extern "C" __global__ void pool_forward(
    const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ switches, int images, int height, int width,
    int channels, int p_count, int q_count, int size, int stride, int pad, int keep)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x, cells = p_count * q_count * channels;
    if (at >= cells) return;
    int c = at % channels, q = at / channels % q_count, p = at / channels / q_count;
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const T* image = x + (long long)n * height * width * channels + c;
        T best = 0;
        int where = -1;
        for (int i = 0; i < size; i++) {
            int h = p * stride + i - pad;
            if (h < 0 || h >= height) continue;
            for (int j = 0; j < size; j++) {
                int v = q * stride + j - pad;
                if (v < 0 || v >= width) continue;
                T value = image[((long long)h * width + v) * channels];
                // Of equal values the first wins; what is no number wins, and stays.
                if (where < 0 || value > best || value != value) { best = value; where = i * size + j; }
            }
        }
        y[(long long)n * cells + at] = best;
        if (keep) switches[(long long)n * cells + at] = (unsigned char)where;
    }
}

// x (N, H, W, C): of each cell, the sum of r over the regions whose switch points at it. Switches of one image serve all.
extern "C" __global__ void unpool(
    const T* __restrict__ r, const unsigned char* __restrict__ switches, T* __restrict__ x, int images, int height,
    int width, int channels, int p_count, int q_count, int size, int stride, int pad, int shared)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x, outputs = p_count * q_count * channels;
    if (at >= height * width * channels) return;
    int c = at % channels, v = at / channels % width, h = at / channels / width;
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const T* signal = r + (long long)n * outputs + c;
        const unsigned char* map = switches + (shared ? 0 : (long long)n * outputs) + c;
        T sum = 0;
        for (int i = (h + pad) % stride; i < size; i += stride) {
            int p = (h + pad - i) / stride;
            if (h + pad < i || p >= p_count) continue;
            for (int j = (v + pad) % stride; j < size; j += stride) {
                int q = (v + pad - j) / stride;
                if (v + pad < j || q >= q_count) continue;
                int region = (p * q_count + q) * channels;
                if (map[region] == i * size + j) sum += signal[region];
            }
        }
        x[(long long)n * height * width * channels + at] = sum;
    }
}
