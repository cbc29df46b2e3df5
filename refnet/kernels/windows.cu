// Windows over images: their copies into rows (unfold) and back (fold).
// x (N, H, W, C) holds all maps; the C / groups of one group start at `first`.
// rows (N, P, Q, L): a window's K K maps cells in order (i, j, c), then one 1, for the bias, then zeros up to L.

// Each thread has V neighbours of a row; with SHARED they are maps of one cell and lie side by side in x too.

extern "C" __global__ void unfold(
    const T* __restrict__ x, Pack* __restrict__ rows, int images, int height, int width, int channels, int first,
    int maps, int p_count, int q_count, int length, int size, int stride, int pad, int q_step)
{
    int packs = length / V, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= packs * q_step) return;
    int start = at % packs * V, cells = size * size * maps;
    int i[V], j[V], c[V];
    for (int e = 0; e < V; e++) {
        int k = start + e;
        i[e] = k / (size * maps), j[e] = k / maps % size, c[e] = first + k % maps;
    }
    for (int line = blockIdx.y; line < images * p_count; line += gridDim.y) {
        int n = line / p_count, top = line % p_count * stride - pad;
        const T* image = x + (long long)n * height * width * channels;
        Pack* to = rows + (long long)line * q_count * packs + at % packs;
        for (int q = at / packs; q < q_count; q += q_step) {
            Pack row;
            int left = q * stride - pad;
            if (SHARED && start < cells) {
                int h = top + i[0], v = left + j[0];
                bool there = h >= 0 && h < height && v >= 0 && v < width;
                row = there ? *(const Pack*)(image + (h * width + v) * channels + c[0]) : Pack{};
            } else
                for (int e = 0; e < V; e++) {
                    int h = top + i[e], v = left + j[e];
                    bool there = start + e < cells && h >= 0 && h < height && v >= 0 && v < width;
                    row.at[e] = there ? image[(h * width + v) * channels + c[e]] : T(start + e == cells);
                }
            to[(long long)q * packs] = row;
        }
    }
}

extern "C" __global__ void fold(
    const Pack* __restrict__ rows, Pack* __restrict__ x, int images, int height, int width, int channels, int first,
    int maps, int p_count, int q_count, int length, int size, int stride, int pad)
{
    int packs = maps / V, at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= height * width * packs) return;
    int c = at % packs, v = at / packs % width, h = at / packs / width;
    int p_last = (h + pad) / stride, q_last = (v + pad) / stride;
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        Pack sum = {};
        for (int p = p_last, i = h + pad - p * stride; i < size && p >= 0; p--, i += stride) {
            if (p >= p_count) continue;
            for (int q = q_last, j = v + pad - q * stride; j < size && q >= 0; q--, j += stride) {
                if (q >= q_count) continue;
                long long row = ((long long)n * p_count + p) * q_count + q;
                Pack value = rows[(row * length + (i * size + j) * maps) / V + c];
                for (int e = 0; e < V; e++) sum.at[e] += value.at[e];
            }
        }
        x[(((long long)n * height + h) * width + v) * (channels / V) + first / V + c] = sum;
    }
}
