// Normalisation across maps. All arrays (positions, C); `reach` maps on both sides count.

__device__ __forceinline__ T power(T scale, T beta)
{
    if (beta != T(0.75)) return pow(scale, beta);
    T root = sqrt(scale);
    return root * sqrt(root);
}

extern "C" __global__ void lrn_forward(
    const T* __restrict__ x, T* __restrict__ y, T* __restrict__ scale, int channels, int reach, T k, T alpha, T beta,
    long long count)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int c = (int)(at % channels);
    T sum = 0;
    for (int d = max(-reach, -c); d <= min(reach, channels - 1 - c); d++) sum += x[at + d] * x[at + d];
    T s = sum * alpha + k;
    scale[at] = s;
    y[at] = x[at] / power(s, beta);
}

// x and scale repeat after `period` values: one image's serve every dy.
extern "C" __global__ void lrn_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ scale, T* __restrict__ dx, int channels,
    int reach, T alpha, T beta, long long count, long long period)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int c = (int)(at % channels);
    const T* xs = x + at % period;
    const T* scales = scale + at % period;
    T own = 0, sum = 0;
    for (int d = max(-reach, -c); d <= min(reach, channels - 1 - c); d++) {
        T part = dy[at + d] / power(scales[d], beta);
        if (d == 0) own = part;
        sum += part / scales[d] * xs[d];
    }
    dx[at] = own - 2 * alpha * beta * xs[0] * sum;
}
