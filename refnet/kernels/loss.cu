// Softmax and its cross-entropy: each thread has a row of y (N, C), which the first-level cache holds.
// loss (N, 2): -log p of the row's label, and whether that is a class; dy = (p - [c = label]) / N.
extern "C" __global__ void cross_entropy(
    const T* __restrict__ y, const long long* __restrict__ labels, double* __restrict__ loss, T* __restrict__ dy,
    int count, int classes)
{
    int n = blockIdx.y * blockDim.x + threadIdx.x;
    if (n >= count) return;
    const T* row = y + (long long)n * classes;
    T* out = dy + (long long)n * classes;
    T most = row[0];
    for (int c = 1; c < classes; c++) most = row[c] > most || row[c] != row[c] ? row[c] : most;
    double sum = 0;
    for (int c = 0; c < classes; c++) sum += exp(row[c] - most);
    T log_sum = (T)log(sum);
    for (int c = 0; c < classes; c++) out[c] = (exp(row[c] - most - log_sum) - (c == labels[n])) / count;
    bool there = labels[n] >= 0 && labels[n] < classes;
    loss[2 * n] = there ? log_sum - (row[labels[n]] - most) : 0;
    loss[2 * n + 1] = there;
}
