// Normalisation across maps: REACH of them on both sides count. All arrays (positions, C), channels in packs of V.

__device__ __forceinline__ T power(T scale, T beta)
{
    if (beta != T(0.75)) return pow(scale, beta);
    T root = sqrt(scale);
    return root * sqrt(root);
}

extern "C" __global__ void lrn_forward(
    const T* __restrict__ x, Pack* __restrict__ y, Pack* __restrict__ scale, int channels, T k, T alpha, T beta,
    long long packs)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= packs) return;
    int c = (int)(at * V % channels);
    T near[V + 2 * REACH];
    #pragma unroll
    for (int e = -REACH; e < V + REACH; e++) near[e + REACH] = c + e >= 0 && c + e < channels ? x[at * V + e] : T(0);
    Pack s, out;
    #pragma unroll
    for (int e = 0; e < V; e++) {
        T sum = 0;
        #pragma unroll
        for (int d = 0; d <= 2 * REACH; d++) sum += near[e + d] * near[e + d];
        s.at[e] = sum * alpha + k;
        out.at[e] = near[e + REACH] / power(s.at[e], beta);
    }
    scale[at] = s;
    y[at] = out;
}

// x and scale repeat after `period` values: one image's serve every dy.
extern "C" __global__ void lrn_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ scale, Pack* __restrict__ dx, int channels,
    T alpha, T beta, long long packs, long long period)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= packs) return;
    int c = (int)(at * V % channels);
    long long kept = at * V < period ? at * V : at * V % period;
    T own[V + 2 * REACH], part[V + 2 * REACH];
    #pragma unroll
    for (int e = -REACH; e < V + REACH; e++) {
        bool there = c + e >= 0 && c + e < channels;
        T s = there ? scale[kept + e] : T(1);
        own[e + REACH] = there ? dy[at * V + e] / power(s, beta) : T(0);
        part[e + REACH] = there ? own[e + REACH] / s * x[kept + e] : T(0);
    }
    Pack out;
    #pragma unroll
    for (int e = 0; e < V; e++) {
        T sum = 0;
        #pragma unroll
        for (int d = 0; d <= 2 * REACH; d++) sum += part[e + d];
        out.at[e] = own[e + REACH] - 2 * alpha * beta * x[kept + e] * sum;
    }
    dx[at] = out;
}
