// Rectification, in packs of V values; y may be x.

extern "C" __global__ void relu_forward(const Pack* x, Pack* y, long long packs)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= packs) return;
    Pack value = x[at];
    for (int e = 0; e < V; e++) value.at[e] = value.at[e] < 0 ? T(0) : value.at[e];
    y[at] = value;
}

// dx = dy where y > 0, else 0. y repeats after `period` packs: one image's serves every dy.
extern "C" __global__ void relu_backward(
    const Pack* __restrict__ dy, const Pack* __restrict__ y, Pack* __restrict__ dx, long long packs, long long period)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= packs) return;
    Pack signal = dy[at], passed = y[at < period ? at : at % period];
    for (int e = 0; e < V; e++) signal.at[e] = passed.at[e] > 0 ? signal.at[e] : T(0);
    dx[at] = signal;
}
