// v = momentum v - rate (g + decay w); w = w + v.
extern "C" __global__ void update(
    Pack* __restrict__ w, const Pack* __restrict__ g, Pack* __restrict__ v, T rate, T momentum, T decay,
    long long packs)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= packs) return;
    Pack weight = w[at], gradient = g[at], next = v[at];
    for (int e = 0; e < V; e++) {
        next.at[e] = momentum * next.at[e] - rate * (gradient.at[e] + decay * weight.at[e]);
        weight.at[e] += next.at[e];
    }
    v[at] = next;
    w[at] = weight;
}

// part (parts, M): sums of squares of w (rows, M) over `height` rows each; one order of addition, so the same bits.
extern "C" __global__ void square_sums(const T* __restrict__ w, T* __restrict__ part, int rows, int columns, int height)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= columns) return;
    for (int i = blockIdx.y; i * height < rows; i += gridDim.y) {
        T sum = 0;
        for (int row = i * height; row < min((i + 1) * height, rows); row++) {
            T value = w[(long long)row * columns + m];
            sum += value * value;
        }
        part[i * columns + m] = sum;
    }
}

// w (rows, M): each filter m whose RMS exceeds `clip` is scaled back to it; over (M) says which.
extern "C" __global__ void clip(
    T* __restrict__ w, const T* __restrict__ part, unsigned char* __restrict__ over, int rows, int columns, int parts,
    T clip)
{
    int m = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= columns) return;
    T sum = 0;
    for (int i = 0; i < parts; i++) sum += part[i * columns + m];
    T rms = sqrt(sum / rows);
    if (blockIdx.y == 0) over[m] = rms > clip;
    if (!(rms > clip)) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) w[(long long)row * columns + m] *= clip / rms;
}
