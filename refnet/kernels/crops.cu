// Crops of images: cut, resized, mirrored, colours jittered, less the mean, scaled (refnet.images.crop).
// pixels (N, S, S, 3); of crop k: image of[k], box[k] = row, column, height, width, and factors of brightness, contrast
// and saturation in colour[k].

__device__ __forceinline__ float luma(const unsigned char* pixel)
{
    return LUMA[0] * pixel[0] + LUMA[1] * pixel[1] + LUMA[2] * pixel[2];
}

// rows (K, S): the grey of each row of the box, summed.
extern "C" __global__ void grey_rows(
    const unsigned char* __restrict__ pixels, const int* __restrict__ of, const int* __restrict__ box,
    float* __restrict__ rows, int count, int side)
{
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    for (int k = blockIdx.y; k < count; k += gridDim.y) {
        const int* b = box + 4 * k;
        if (row >= b[2]) continue;
        const unsigned char* line = pixels + (((long long)of[k] * side + b[0] + row) * side + b[1]) * 3;
        float sum = 0;
        for (int col = 0; col < b[3]; col++) sum += luma(line + 3 * col);
        rows[k * side + row] = sum;
    }
}

// grey (K): the mean over the box.
extern "C" __global__ void grey_mean(
    const float* __restrict__ rows, const int* __restrict__ box, float* __restrict__ grey, int count, int side)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count) return;
    float sum = 0;
    for (int row = 0; row < box[4 * k + 2]; row++) sum += rows[k * side + row];
    grey[k] = sum / ((float)box[4 * k + 2] * box[4 * k + 3]);
}

// The cells of `length` that output `at` of `size` weighs: a triangle as wide as the step, as Pillow's BILINEAR.
struct Taps {
    int first, last;
    float centre, width, sum;
    __device__ __forceinline__ Taps(int at, int length, int size)
    {
        float step = (float)length / size;
        centre = (at + 0.5f) * step;
        width = step > 1 ? step : 1;
        first = (int)(centre - width + 0.5f);
        last = (int)(centre + width + 0.5f);
        if (first < 0) first = 0;
        if (last > length) last = length;
        sum = 0;
        for (int i = first; i < last; i++) sum += weight(i);
    }
    __device__ __forceinline__ float weight(int i) const
    {
        float off = (i - centre + 0.5f) / width;
        off = off < 0 ? -off : off;
        return off < 1 ? 1 - off : 0;
    }
};

extern "C" __global__ void crops(
    const unsigned char* __restrict__ pixels, const int* __restrict__ of, const int* __restrict__ box,
    const unsigned char* __restrict__ mirror, const float* __restrict__ colour, const float* __restrict__ grey,
    const float* __restrict__ mean, float* __restrict__ x, int count, int side, int size, int jitter, float scale)
{
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size * size) return;
    int row = at / size, col = at % size;
    for (int k = blockIdx.y; k < count; k += gridDim.y) {
        const int* b = box + 4 * k;
        const unsigned char* image = pixels + (long long)of[k] * side * side * 3;
        float brightness = colour[3 * k], contrast = colour[3 * k + 1], saturation = colour[3 * k + 2];
        Taps down(row, b[2], size), across(col, b[3], size);
        float total[3] = {0, 0, 0};
        for (int i = down.first; i < down.last; i++)
            for (int j = across.first; j < across.last; j++) {
                float weight = down.weight(i) / down.sum * (across.weight(j) / across.sum);
                int cell = ((b[0] + i) * side + b[1] + j) * 3;
                float gain = 1, level = 0;
                if (jitter) {
                    gain = contrast * saturation;
                    level = contrast * (1 - saturation) * luma(image + cell) + (1 - contrast) * grey[k];
                }
                for (int c = 0; c < 3; c++) {
                    float value = jitter ? brightness * (image[cell + c] * gain + level) : image[cell + c];
                    total[c] += weight * (value - mean[cell + c]);
                }
            }
        float* out = x + (((long long)k * size + row) * size + (mirror[k] ? size - 1 - col : col)) * 3;
        for (int c = 0; c < 3; c++) out[c] = total[c] * scale;
    }
}
