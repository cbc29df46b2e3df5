// Average pooling and its adjoint. x (N, H, W, C), y and r (N, P, Q, C); channels come in packs of V.

// How many cells a region from ``start`` has along a line of ``cells``, with ``border`` more counted on each side.
__device__ int counted(int start, int size, int cells, int border)
{
    return min(start + size, cells + border) - max(start, -border);
}

extern "C" __global__ void average_forward(
    const Pack* __restrict__ x, Pack* __restrict__ y, int images, int height, int width, int packs, int p_count,
    int q_count, int size, int stride, int pad, int count_pad)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x, cells = p_count * q_count * packs;
    if (at >= cells) return;
    int c = at % packs, q = at / packs % q_count, p = at / packs / q_count;
    int top = p * stride - pad, left = q * stride - pad, border = count_pad ? pad : 0;
    T count = (T)(counted(top, size, height, border) * counted(left, size, width, border));
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const Pack* image = x + (long long)n * height * width * packs + c;
        Pack sum = {};
        for (int j = max(-left, 0); j < min(size, width - left); j++) {
            Pack column = {};
            for (int i = max(-top, 0); i < min(size, height - top); i++) {
                Pack cell = image[((top + i) * width + left + j) * packs];
                for (int e = 0; e < V; e++) column.at[e] += cell.at[e];
            }
            for (int e = 0; e < V; e++) sum.at[e] += column.at[e];
        }
        for (int e = 0; e < V; e++) sum.at[e] /= count;
        y[(long long)n * cells + at] = sum;
    }
}

extern "C" __global__ void average_transpose(
    const Pack* __restrict__ r, Pack* __restrict__ x, int images, int height, int width, int packs, int p_count,
    int q_count, int size, int stride, int pad, int count_pad)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x, outputs = p_count * q_count * packs;
    if (at >= height * width * packs) return;
    int c = at % packs, v = at / packs % width, h = at / packs / width, border = count_pad ? pad : 0;
    int p_last = (h + pad) / stride, q_last = (v + pad) / stride;
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        const Pack* signal = r + (long long)n * outputs + c;
        Pack sum = {};
        for (int p = p_last, i = h + pad - p * stride; i < size && p >= 0; p--, i += stride) {
            if (p >= p_count) continue;
            Pack row = {};
            for (int q = q_last, j = v + pad - q * stride; j < size && q >= 0; q--, j += stride) {
                if (q >= q_count) continue;
                T count = (T)(counted(p * stride - pad, size, height, border)
                              * counted(q * stride - pad, size, width, border));
                Pack value = signal[(p * q_count + q) * packs];
                for (int e = 0; e < V; e++) row.at[e] += value.at[e] / count;
            }
            for (int e = 0; e < V; e++) sum.at[e] += row.at[e];
        }
        x[(long long)n * height * width * packs + at] = sum;
    }
}
