// What a decoder layer computes besides products and attention; included after vector_attention.inl.

namespace {

// target = source over the root of the mean of its squares, times `weights`; target may be source.
void normalise(const float* source, const float* weights, float epsilon, int count, float* target) {
    Floats sum = V::zero();
    for (int i = 0; i < count; i += V::kLanes) {
        const Floats value = V::load_floats(source + i);
        sum = V::multiply_add(value, value, sum);
    }
    alignas(16) float ends[4];
    _mm_store_ps(ends, V::add_quarters(sum));
    const float mean = ((ends[0] + ends[1]) + (ends[2] + ends[3])) / static_cast<float>(count);
    const Floats factor = V::fill(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + epsilon))));
    for (int i = 0; i < count; i += V::kLanes)
        V::store_floats(
            target + i, V::multiply(V::multiply(V::load_floats(source + i), factor), V::load_floats(weights + i)));
}

// Rotates numbers i and i + head_dim / 2 of a head by the angles whose cosines and sines are given.
void rotate(float* head, const float* cosines, const float* sines, int head_dim) {
    const int half = head_dim / 2;
    for (int i = 0; i < half; i += V::kLanes) {
        const Floats low = V::load_floats(head + i), high = V::load_floats(head + half + i);
        V::store_floats(
            head + i, V::subtract(
                          V::multiply(low, V::load_floats(cosines + i)), V::multiply(high, V::load_floats(sines + i))));
        V::store_floats(
            head + half + i,
            V::add_floats(
                V::multiply(high, V::load_floats(cosines + half + i)), V::multiply(low, V::load_floats(sines + half + i))));
    }
}

// gate = gate * sigmoid(gate) * up
void gate(float* gate, const float* up, int count) {
    const Floats one = V::fill(1.0f);
    for (int i = 0; i < count; i += V::kLanes) {
        const Floats value = V::load_floats(gate + i);
        // Of -|x|, so that the power stays below 1: the sigmoid is 1 / (1 + e) or e / (1 + e).
        const Floats magnitude = V::larger(value, V::subtract(V::zero(), value));
        const Floats power = exponential(V::subtract(V::zero(), magnitude));
        const Floats top = V::where_negative(value, power, one);
        const Floats share = V::divide(top, V::add_floats(one, power));
        V::store_floats(gate + i, V::multiply(V::multiply(value, share), V::load_floats(up + i)));
    }
}

// target = first + second
void add(const float* first, const float* second, int count, float* target) {
    for (int i = 0; i < count; i += V::kLanes)
        V::store_floats(target + i, V::add_floats(V::load_floats(first + i), V::load_floats(second + i)));
}

const Kernels kKernels = {
    V::kName, padded_columns, round_row, multiply, rows_per_turn, scratch_bytes, store_token, attend, normalise, rotate, gate, add};

}  // namespace
