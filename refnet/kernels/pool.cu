// Max pooling with switches, and unpooling. x (N, H, W, C), y and switches (N, P, Q, C); channels come in packs of V.

struct alignas(V) Bytes { unsigned char at[V]; };

extern "C" __global__ void pool_forward(
    const Pack* __restrict__ x, Pack* __restrict__ y, Bytes* __restrict__ switches, int images, int height, int width,
    int packs, int p_count, int q_count, int size, int stride, int pad, int keep)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x, cells = p_count * q_count * packs;
    if (at >= cells) return;
    int c = at % packs, q = at / packs % q_count, p = at / packs / q_count;
    int top = p * stride - pad, left = q * stride - pad;
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const Pack* image = x + (long long)n * height * width * packs + c;
        Pack best;
        Bytes where;
        bool first = true;
        for (int i = max(-top, 0); i < min(size, height - top); i++)
            for (int j = max(-left, 0); j < min(size, width - left); j++) {
                Pack cell = image[((top + i) * width + left + j) * packs];
                for (int e = 0; e < V; e++) {
                    T value = cell.at[e];
                    // Of equal values the first wins; what is no number wins, and stays.
                    if (first || value > best.at[e] || value != value) {
                        best.at[e] = value;
                        where.at[e] = (unsigned char)(i * size + j);
                    }
                }
                first = false;
            }
        y[(long long)n * cells + at] = best;
        if (keep) switches[(long long)n * cells + at] = where;
    }
}

// x (N, H, W, C): of each cell, the sum of r over the regions whose switch points at it. Switches of one image serve all.
extern "C" __global__ void unpool(
    const Pack* __restrict__ r, const Bytes* __restrict__ switches, Pack* __restrict__ x, int images, int height,
    int width, int packs, int p_count, int q_count, int size, int stride, int pad, int shared)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x, outputs = p_count * q_count * packs;
    if (at >= height * width * packs) return;
    int c = at % packs, v = at / packs % width, h = at / packs / width;
    // The regions that reach the cell, from the first one on: the order in which the CPU adds.
    int bottom = h + pad, right = v + pad;
    int p_first = bottom < size ? 0 : (bottom - size) / stride + 1, p_last = min(bottom / stride, p_count - 1);
    int q_first = right < size ? 0 : (right - size) / stride + 1, q_last = min(right / stride, q_count - 1);
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const Pack* signal = r + (long long)n * outputs + c;
        const Bytes* map = switches + (shared ? 0 : (long long)n * outputs) + c;
        Pack sum = {};
        for (int p = p_first; p <= p_last; p++)
            for (int q = q_first; q <= q_last; q++) {
                int region = (p * q_count + q) * packs, switched = (bottom - p * stride) * size + right - q * stride;
                Bytes where = map[region];
                Pack value = signal[region];
                for (int e = 0; e < V; e++) if (where.at[e] == switched) sum.at[e] += value.at[e];
            }
        x[(long long)n * height * width * packs + at] = sum;
    }
}
