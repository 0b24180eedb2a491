// The kernels of one instruction set; included by the file that defines `V`, its vectors.
//
// V: Ints and Floats of kLanes 32-bit lanes; kCodeBias8, what is added to 8-bit weight codes to
// make them unsigned (0 where products of two signed codes exist).

namespace {

using Ints = V::Ints;
using Floats = V::Floats;

constexpr int kBytes = V::kLanes * 4;
constexpr int kBias4 = 8;

inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }

// Floats of `count` float16 numbers.
inline void widen(const uint16_t* source, int count, float* target) {
    int i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(
            target + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
    if (i + 4 <= count) {
        _mm_storeu_ps(
            target + i, _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source + i))));
        i += 4;
    }
    for (; i < count; ++i) target[i] = half_to_float(source[i]);
}

// Sixteen floats times `factor`, rounded to whole numbers, as bytes in order.
inline __m128i round_16(const float* source, __m256 factor) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(source), factor));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(source + 8), factor));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// The largest magnitude; not a number where one of the values is none.
inline float largest_of_32(const float* source) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), is_none = _mm256_setzero_ps();
    for (int i = 0; i < kActivationGroup; i += 8) {
        const __m256 next = _mm256_andnot_ps(sign, _mm256_loadu_ps(source + i));
        is_none = _mm256_or_ps(is_none, _mm256_cmp_ps(next, next, _CMP_UNORD_Q));
        most = _mm256_max_ps(most, next);
    }
    if (_mm256_movemask_ps(is_none)) return __builtin_nanf("");
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

void round_row(const float* source, const RoundedActivations& target, int row, int bits) {
    const int columns = target.columns, groups = columns / kActivationGroup;
    const int lanes_per_group = kActivationGroup / target.lane;
    int8_t* codes = target.codes + static_cast<size_t>(row) * columns;
    float* lane_scales = target.lane_scales + static_cast<size_t>(row) * (columns / target.lane);
    int32_t* lane_starts = target.lane_starts + static_cast<size_t>(row) * (columns / target.lane);
    const int bias = bits == 4 ? kBias4 : V::kCodeBias8;
    const __m128i halves =
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    float sum_of_row = 0.0f;
    for (int group = 0; group < groups; ++group) {
        const float* values = source + group * kActivationGroup;
        const float most = largest_of_32(values);
        const bool is_finite = most <= 3.402823466e38f;
        // Not a number in: not a number out, so that whoever reads the logits finds out.
        const float scale = is_finite ? most / 127.0f : __builtin_nanf("");
        const float factor = is_finite && most > 1e-30f ? 127.0f / most : 0.0f;
        alignas(16) int8_t ordered[kActivationGroup];
        alignas(16) int32_t sums[kActivationGroup / 4];  // of four columns each
        int32_t total = 0;
        for (int part = 0; part < 2; ++part) {
            __m128i sixteen = round_16(values + 16 * part, _mm256_set1_ps(factor));
            if (!is_finite) sixteen = _mm_setzero_si128();
            _mm_store_si128(reinterpret_cast<__m128i*>(ordered + 16 * part), sixteen);
            const __m128i twos = _mm_maddubs_epi16(_mm_set1_epi8(1), sixteen);
            _mm_store_si128(
                reinterpret_cast<__m128i*>(sums + 4 * part), _mm_madd_epi16(twos, _mm_set1_epi16(1)));
        }
        for (int lane = 0; lane < lanes_per_group; ++lane) {
            const int32_t sum = bits == 4 ? sums[2 * lane] + sums[2 * lane + 1] : sums[lane];
            lane_scales[group * lanes_per_group + lane] = scale;
            lane_starts[group * lanes_per_group + lane] = -bias * sum;
            total += sum;
        }
        target.group_scales[static_cast<size_t>(row) * groups + group] = scale;
        target.group_starts[static_cast<size_t>(row) * groups + group] = -bias * total;
        sum_of_row += scale * static_cast<float>(total);
        if (bits == 8) {
            memcpy(codes + group * kActivationGroup, ordered, kActivationGroup);
            continue;
        }
        int8_t* even = codes + group / 4 * kColumnStep + group % 4 * 16;
        for (int part = 0; part < 2; ++part) {
            const __m128i split = _mm_shuffle_epi8(
                _mm_load_si128(reinterpret_cast<const __m128i*>(ordered + 16 * part)), halves);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(even + 8 * part), split);
            _mm_storel_epi64(
                reinterpret_cast<__m128i*>(even + 64 + 8 * part), _mm_unpackhi_epi64(split, split));
        }
    }
    target.totals[row] = sum_of_row;
}

// What a row of weights owes to its zero point: unsigned codes were taken as counted from 128.
inline float zero_point_share(const Weights& weights, int row, float total) {
    if (!weights.zero_points) return 0.0f;
    const int groups = weights.columns / weights.group;
    const float scale = half_to_float(weights.scales[static_cast<size_t>(row) * groups]);
    return scale * static_cast<float>(weights.zero_points[row] - 128) * total;
}

// How far ahead weights are asked for, into the second cache. Measured with weights in memory
// (AVX-512, 2 cores, 26 GB/s for plain reading): two rows at once and 16 KB 24.0 GB/s, four rows
// 22.5, 8 KB 20, into the first cache 20, without any 8 to 13.
constexpr int kPrefetchBytes = 16384;
// And from there into the first: a step of Qwen3-4B 102 ms instead of 110 (medians of four runs).
constexpr int kNearBytes = 1024;

// Scales of a row as floats: one per group, or where groups are shorter than a step of columns one
// per lane.
inline void widen_scales(const Weights& weights, int row, float* target) {
    const int groups = weights.columns / weights.group;
    const uint16_t* source = weights.scales + static_cast<size_t>(row) * groups;
    // Scales of the rows whose codes are being asked for: far too few for the processor to notice.
    const int ahead = kPrefetchBytes / (weights.columns * weights.bits / 8) + 1;
    _mm_prefetch(reinterpret_cast<const char*>(source + ahead * groups), _MM_HINT_T0);
    if (weights.group >= kColumnStep) {
        widen(source, groups, target);
        return;
    }
    const int lanes = weights.group / (weights.bits == 4 ? 8 : 4);
    for (int group = 0; group < groups; ++group) {
        const float scale = half_to_float(source[group]);
        for (int lane = 0; lane < lanes; ++lane) target[group * lanes + lane] = scale;
    }
}

// `R` rows of 4-bit weights times `M` rows of activations. Weights are unpacked once for all of
// these, and what belongs to a row of activations is loaded once for all rows of weights.
template <int R, int M, bool kIsExpanded>
void multiply_4(
    const Weights& weights, const RoundedActivations& activations, int row, int first, float* outputs,
    size_t stride, const float* scales, int scales_per_row) {
    const int columns = weights.columns, row_bytes = columns / 2, lanes = columns / 8;
    const uint8_t* codes = weights.codes + static_cast<size_t>(row) * row_bytes;
    const int8_t* rounded = activations.codes + static_cast<size_t>(first) * columns;
    const float* lane_scales = activations.lane_scales + static_cast<size_t>(first) * lanes;
    const int32_t* lane_starts = activations.lane_starts + static_cast<size_t>(first) * lanes;
    Floats sums[R][M];
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) sums[r][m] = V::zero();
    const int steps_per_scale = kIsExpanded ? 1 : weights.group / kColumnStep;
    for (int step = 0, scale = 0, left = steps_per_scale; step < columns / kColumnStep; ++step) {
        for (int half = 0; half < kColumnStep / 2 / kBytes; ++half) {
            const int lane = step * 16 + half * V::kLanes;
            const int place = step * kColumnStep + half * kBytes;
            Ints low[R], high[R];
            for (int r = 0; r < R; ++r) {
                const uint8_t* bytes = codes + r * row_bytes + lane * 4;
                const Ints packed = V::load(bytes);
                _mm_prefetch(reinterpret_cast<const char*>(bytes) + kPrefetchBytes, _MM_HINT_T1);
                _mm_prefetch(reinterpret_cast<const char*>(bytes) + kNearBytes, _MM_HINT_T0);
                low[r] = V::low_codes(packed);
                high[r] = V::high_codes(packed);
            }
            for (int m = 0; m < M; ++m) {
                const Ints even = V::load(rounded + m * columns + place);
                const Ints odd = V::load(rounded + m * columns + place + kColumnStep / 2);
                const Ints start = V::load(lane_starts + m * lanes + lane);
                const Floats lane_scale = V::load_floats(lane_scales + m * lanes + lane);
                for (int r = 0; r < R; ++r) {
                    const float* at = scales + r * scales_per_row;
                    const Floats weight_scale = kIsExpanded ? V::load_floats(at + lane) : V::fill(at[scale]);
                    const Ints dot = V::dot(V::dot(start, low[r], even), high[r], odd);
                    sums[r][m] =
                        V::multiply_add(V::to_floats(dot), V::multiply(lane_scale, weight_scale), sums[r][m]);
                }
            }
        }
        if (--left == 0) ++scale, left = steps_per_scale;
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) outputs[(first + m) * stride + row + r] = V::sum(sums[r][m]);
}

// The same for 8-bit weights.
template <int R, int M, bool kIsExpanded, bool kIsUnsigned>
void multiply_8(
    const Weights& weights, const RoundedActivations& activations, int row, int first, float* outputs,
    size_t stride, const float* scales, int scales_per_row) {
    const int columns = weights.columns, lanes = columns / 4;
    const uint8_t* codes = weights.codes + static_cast<size_t>(row) * columns;
    const int8_t* rounded = activations.codes + static_cast<size_t>(first) * columns;
    const float* lane_scales = activations.lane_scales + static_cast<size_t>(first) * lanes;
    const int32_t* lane_starts = activations.lane_starts + static_cast<size_t>(first) * lanes;
    Floats sums[R][M];
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m) sums[r][m] = V::zero();
    for (int lane = 0; lane < lanes; lane += V::kLanes) {
        const int scale = kIsExpanded ? 0 : lane * 4 / weights.group;
        Ints weight[R];
        for (int r = 0; r < R; ++r) {
            const uint8_t* bytes = codes + static_cast<size_t>(r) * columns + lane * 4;
            _mm_prefetch(reinterpret_cast<const char*>(bytes) + kPrefetchBytes, _MM_HINT_T1);
            weight[r] = V::template prepare_8<kIsUnsigned>(V::load(bytes));
        }
        for (int m = 0; m < M; ++m) {
            const Ints activation = V::load(rounded + m * columns + lane * 4);
            const Ints start = V::load(lane_starts + m * lanes + lane);
            const Floats lane_scale = V::load_floats(lane_scales + m * lanes + lane);
            for (int r = 0; r < R; ++r) {
                const float* at = scales + r * scales_per_row;
                const Floats weight_scale = kIsExpanded ? V::load_floats(at + lane) : V::fill(at[scale]);
                const Ints dot = V::dot_8(start, weight[r], activation);
                sums[r][m] = V::multiply_add(V::to_floats(dot), V::multiply(lane_scale, weight_scale), sums[r][m]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int m = 0; m < M; ++m)
            outputs[(first + m) * stride + row + r] =
                V::sum(sums[r][m]) - zero_point_share(weights, row + r, activations.totals[first + m]);
}

template <int R, int M>
inline void multiply_block(
    const Weights& weights, const RoundedActivations& activations, int row, int first, float* outputs,
    size_t stride, const float* scales, int scales_per_row) {
    const bool is_expanded = weights.group < kColumnStep;
    auto* kernel = multiply_4<R, M, false>;
    if (weights.bits == 4 && is_expanded) kernel = multiply_4<R, M, true>;
    if (weights.bits == 8) kernel = is_expanded ? multiply_8<R, M, true, false> : multiply_8<R, M, false, false>;
    if (weights.zero_points) kernel = multiply_8<R, M, false, true>;
    kernel(weights, activations, row, first, outputs, stride, scales, scales_per_row);
}

template <int R>
void multiply_rows(
    const Weights& weights, const RoundedActivations& activations, int row, float* outputs, size_t stride,
    float* scales, int scales_per_row) {
    for (int r = 0; r < R; ++r) widen_scales(weights, row + r, scales + r * scales_per_row);
    int first = 0;
    for (; first + V::kFewRows <= activations.rows; first += V::kFewRows)
        multiply_block<R, V::kFewRows>(weights, activations, row, first, outputs, stride, scales, scales_per_row);
    for (; first + 2 <= activations.rows; first += 2)
        multiply_block<R, 2>(weights, activations, row, first, outputs, stride, scales, scales_per_row);
    for (; first < activations.rows; ++first)
        multiply_block<R, 1>(weights, activations, row, first, outputs, stride, scales, scales_per_row);
}

template <int R>
void multiply_range(
    const Weights& weights, const RoundedActivations& activations, int begin, int end, float* outputs,
    size_t stride, float* scales, int scales_per_row) {
    int row = begin;
    for (; row + R <= end; row += R)
        multiply_rows<R>(weights, activations, row, outputs, stride, scales, scales_per_row);
    for (; row < end; ++row)
        multiply_rows<1>(weights, activations, row, outputs, stride, scales, scales_per_row);
}

inline int scales_per_row(const Weights& weights) {
    if (weights.group >= kColumnStep) return weights.columns / weights.group;
    return weights.columns / (weights.bits == 4 ? 8 : 4);
}

size_t few_scratch_bytes(const Weights& weights) {
    return (static_cast<size_t>(V::kWeightRows) * scales_per_row(weights) + 16) * sizeof(float);
}

void multiply_few(
    const Weights& weights, const RoundedActivations& activations, int begin, int end, float* outputs,
    size_t stride, void* scratch) {
    // A single row of activations waits for memory, which likes two rows; more wait for arithmetic.
    auto* range = activations.rows == 1 ? multiply_range<2> : multiply_range<V::kWeightRows>;
    range(
        weights, activations, begin, end, outputs, stride, static_cast<float*>(scratch), scales_per_row(weights));
}

// ---- many rows of activations: a block of weights is unpacked once, with its rows in the lanes

constexpr int kVectors = 2;  // of weight rows at once
constexpr int kBlockRows = kVectors * V::kLanes;
constexpr int kStepsPerGroup = kActivationGroup / 4;  // dot products of four columns

size_t scratch_bytes(const Weights& weights) {
    return static_cast<size_t>(weights.columns) * kBlockRows +
           static_cast<size_t>(weights.columns / weights.group) * kBlockRows * 4 + 128;
}

// Unpacked: [columns / 32][8 steps][kVectors][kLanes][4 columns], unsigned; scales
// [groups of weights][kBlockRows]. Rows at and beyond `end` repeat the last one.
void unpack_block(const Weights& weights, int begin, int end, uint8_t* codes, float* scales) {
    const int row_bytes = weights.columns * weights.bits / 8, groups = weights.columns / weights.group;
    for (int vector = 0; vector < kVectors; ++vector) {
        alignas(64) int32_t offsets[V::kLanes];
        for (int lane = 0; lane < V::kLanes; ++lane) {
            const int row = begin + vector * V::kLanes + lane;
            const int real = (row < end ? row : end - 1) - begin;
            offsets[lane] = real * row_bytes;
            const uint16_t* source = weights.scales + static_cast<size_t>(begin + real) * groups;
            for (int group = 0; group < groups; ++group)
                scales[group * kBlockRows + vector * V::kLanes + lane] = half_to_float(source[group]);
        }
        const Ints places = V::load(offsets);
        const uint8_t* base = weights.codes + static_cast<size_t>(begin) * row_bytes;
        for (int dword = 0; dword < row_bytes / 4; ++dword) {
            const Ints column = V::gather(base + dword * 4, places);
            if (weights.bits == 8) {
                const Ints prepared =
                    weights.zero_points ? V::template prepare_8<true>(column) : V::template prepare_8<false>(column);
                V::store(codes + (static_cast<size_t>(dword) * kVectors + vector) * kBytes, prepared);
                continue;
            }
            const int group = dword / 4, step = dword % 4;
            uint8_t* target = codes + (static_cast<size_t>(group * kStepsPerGroup + step) * kVectors + vector) * kBytes;
            V::store(target, V::low_codes(column));
            V::store(target + 4 * kVectors * kBytes, V::high_codes(column));
        }
    }
}

// `M` rows of activations times an unpacked block.
template <int M>
void multiply_unpacked(
    const Weights& weights, const RoundedActivations& activations, int first, const uint8_t* codes,
    const float* scales, float (*results)[kBlockRows]) {
    const int groups = weights.columns / kActivationGroup;
    Floats sums[M][kVectors];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < kVectors; ++v) sums[m][v] = V::zero();
    for (int group = 0; group < groups; ++group) {
        Ints dots[M][kVectors];
        const int8_t* a[M];
        for (int m = 0; m < M; ++m) {
            const size_t row = static_cast<size_t>(first + m);
            const Ints start = V::fill(activations.group_starts[row * groups + group]);
            for (int v = 0; v < kVectors; ++v) dots[m][v] = start;
            a[m] = activations.codes + row * weights.columns +
                   (weights.bits == 4 ? group / 4 * kColumnStep + group % 4 * 16 : group * kActivationGroup);
        }
        const uint8_t* at = codes + static_cast<size_t>(group) * kStepsPerGroup * kVectors * kBytes;
        for (int step = 0; step < kStepsPerGroup; ++step, at += kVectors * kBytes) {
            const int place = weights.bits == 4 ? step / 4 * (kColumnStep / 2) + step % 4 * 4 : step * 4;
            for (int m = 0; m < M; ++m) {
                int32_t four;
                memcpy(&four, a[m] + place, 4);
                const Ints activation = V::fill(four);
                for (int v = 0; v < kVectors; ++v)
                    dots[m][v] = weights.bits == 4 ? V::dot(dots[m][v], V::load(at + v * kBytes), activation)
                                                   : V::dot_8(dots[m][v], V::load(at + v * kBytes), activation);
            }
        }
        const float* weight_scales = scales + static_cast<size_t>(group * kActivationGroup / weights.group) * kBlockRows;
        for (int m = 0; m < M; ++m) {
            const Floats scale = V::fill(activations.group_scales[static_cast<size_t>(first + m) * groups + group]);
            for (int v = 0; v < kVectors; ++v)
                sums[m][v] = V::multiply_add(
                    V::to_floats(dots[m][v]), V::multiply(scale, V::load_floats(weight_scales + v * V::kLanes)), sums[m][v]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < kVectors; ++v) V::store_floats(results[m] + v * V::kLanes, sums[m][v]);
}

void multiply_many(
    const Weights& weights, const RoundedActivations& activations, int begin, int end, float* outputs,
    size_t stride, void* scratch) {
    float* scales = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    uint8_t* codes = reinterpret_cast<uint8_t*>(
        scales + static_cast<size_t>(weights.columns / weights.group) * kBlockRows);
    for (int block = begin; block < end; block += kBlockRows) {
        const int stop = block + kBlockRows < end ? block + kBlockRows : end;
        unpack_block(weights, block, stop, codes, scales);
        float results[V::kManyRows][kBlockRows];
        for (int first = 0; first < activations.rows;) {
            const int rows = activations.rows - first >= V::kManyRows ? V::kManyRows : 1;
            auto* kernel = rows == V::kManyRows ? multiply_unpacked<V::kManyRows> : multiply_unpacked<1>;
            kernel(weights, activations, first, codes, scales, results);
            for (int m = 0; m < rows; ++m)
                for (int row = block; row < stop; ++row)
                    outputs[(first + m) * stride + row] =
                        results[m][row - block] - zero_point_share(weights, row, activations.totals[first + m]);
            first += rows;
        }
    }
}

const Kernels kKernels = {
    V::kName, round_row, multiply_few, few_scratch_bytes, multiply_many, kBlockRows, scratch_bytes};

}  // namespace
