// The kernels of one instruction set; included by the file that defines `V`, its vectors.
//
// V: Ints and Floats of kLanes 32-bit lanes; kCodeBias8, what is added to 8-bit weight codes to
// make them unsigned (0 where products of two signed codes exist); kManyRows, rows of activations
// that a block of weights is multiplied with at once, as the registers allow.
//
// Columns are taken by units, what fits a vector: of kBytes columns each in two halves of a step of
// 128 columns. A group of activations is 16 bytes of either half. All sums are formed in the same
// order, whether a pair of weights' rows is computed or a block of them, for one row of activations
// or for many: whole numbers within a group; then by phases, every kPhases-th group; then phases.

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

// The largest magnitude of twice 16 floats; not a number where one of the values is none.
inline float largest_of_32(const float* first, const float* second) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), is_none = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
        const __m256 next = _mm256_andnot_ps(sign, _mm256_loadu_ps((i < 2 ? first : second) + i % 2 * 8));
        is_none = _mm256_or_ps(is_none, _mm256_cmp_ps(next, next, _CMP_UNORD_Q));
        most = _mm256_max_ps(most, next);
    }
    if (_mm256_movemask_ps(is_none)) return __builtin_nanf("");
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

inline int32_t sum_of_16(__m128i bytes) {
    __m128i sums = _mm_madd_epi16(_mm_maddubs_epi16(_mm_set1_epi8(1), bytes), _mm_set1_epi16(1));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xB1)));
}

constexpr int kUnitsPerStep = kColumnStep / 2 / kBytes;
constexpr int kGroupsPerUnit = V::kLanes / 4;
constexpr int kPhases = 2 * kGroupsPerUnit;
constexpr int kPeriod = kPhases * kActivationGroup;  // columns

inline int periods_of(int columns) { return (columns + kPeriod - 1) / kPeriod; }

// A row of activations takes whole periods, its end filled with zeros.
int padded_columns(int columns) { return periods_of(columns) * kPeriod; }

// Where the numbers of a phase are among the lanes of a pair's sums: those of the pair's second row
// come after those of its first.
inline int lane_of(int phase) { return phase % kGroupsPerUnit * 4 + phase / kGroupsPerUnit * 2; }

void round_row(const float* source, const RoundedActivations& target, int row, int bits) {
    const int padded = padded_columns(target.columns), groups = padded / kActivationGroup;
    int8_t* codes = target.codes + static_cast<size_t>(row) * padded;
    float* scales = target.scales + static_cast<size_t>(row) * groups;
    int32_t* starts = target.starts + static_cast<size_t>(row) * groups;
    const int bias = bits == 4 ? kBias4 : V::kCodeBias8;
    const __m128i halves =
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    // From one half of a group to the other: 8-bit codes of weights lie in the order of columns.
    const int apart = bits == 4 ? 16 : kColumnStep / 2;
    float sum_of_row = 0.0f;
    for (int group = 0; group < groups; ++group) {
        int8_t* low = codes + group / 4 * kColumnStep + group % 4 * 16;
        __m128i first = _mm_setzero_si128(), second = first;
        int32_t total = 0;
        float scale = 0.0f;
        if (group * kActivationGroup < target.columns) {
            const float* values = source + group / 4 * kColumnStep + group % 4 * (bits == 4 ? 32 : 16);
            const float most = largest_of_32(values, values + apart);
            const bool is_finite = most <= 3.402823466e38f;
            // Not a number in: not a number out, so that whoever reads the logits finds out.
            scale = is_finite ? most / 127.0f : __builtin_nanf("");
            if (is_finite && most > 1e-30f) {
                const __m256 factor = _mm256_set1_ps(127.0f / most);
                first = round_16(values, factor);
                second = round_16(values + apart, factor);
            }
            total = sum_of_16(first) + sum_of_16(second);
        }
        scales[group] = scale;
        starts[group] = -bias * total;
        for (int twice = 0; twice < 2; ++twice) {
            const size_t lane = static_cast<size_t>(row) * groups * 2 + group / kPhases * V::kLanes + lane_of(group % kPhases) + twice;
            target.lane_scales[lane] = scale;
            target.lane_starts[lane] = -bias * total;
        }
        sum_of_row += scale * static_cast<float>(total);
        if (bits == 4) {  // even columns to the low half, odd ones to the high half
            first = _mm_shuffle_epi8(first, halves);
            second = _mm_shuffle_epi8(second, halves);
            const __m128i even = _mm_unpacklo_epi64(first, second);
            second = _mm_unpackhi_epi64(first, second);
            first = even;
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(low), first);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(low + kColumnStep / 2), second);
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

// Where the low codes of a unit are in a row of weights; the high ones of 8 bits kHalfBytes behind.
template <int kBits>
inline size_t place_of(int unit) {
    if (kBits == 4) return static_cast<size_t>(unit) * kBytes;
    return static_cast<size_t>(unit / kUnitsPerStep) * kColumnStep + unit % kUnitsPerStep * kBytes;
}

template <int kBits, bool kIsUnsigned>
inline Ints prepare_low(Ints bytes) {
    return kBits == 4 ? V::low_codes(bytes) : V::template prepare_8<kIsUnsigned>(bytes);
}

// `bytes`: of 4 bits those of the low codes as well.
template <int kBits, bool kIsUnsigned>
inline Ints prepare_high(Ints bytes) {
    return kBits == 4 ? V::high_codes(bytes) : V::template prepare_8<kIsUnsigned>(bytes);
}

template <int kBits>
inline Ints dot_of(Ints sum, Ints codes, Ints activations) {
    return kBits == 4 ? V::dot(sum, codes, activations) : V::dot_8(sum, codes, activations);
}

// ---- few rows of activations: they wait for memory, which likes to be read in two places at once

// How far ahead weights are asked for, into the second cache. Measured with weights in memory
// (AVX-512, 2 cores, 26 GB/s for plain reading): two rows at once and 16 KB 24.0 GB/s, four rows
// 22.5, 8 KB 20, into the first cache 20, without any 8 to 13.
constexpr int kPrefetchBytes = 12288;
// And from there into the first: a step of Qwen3-4B 102 ms instead of 110 (medians of four runs).
constexpr int kNearBytes = 2048;
constexpr int kFarRows = 96;  // of numbers that a row has one of: lines ahead
constexpr int kPairRows = 3;  // most rows of activations at once

// Scales of two rows of weights: [units / kUnitsPerStep, filled up to a period][2], or where groups
// are shorter than a step of columns one per lane of a pair's sums.
void widen_scales(const Weights& weights, const uint16_t* top, const uint16_t* bottom, float* target) {
    const int groups = weights.columns / weights.group, periods = periods_of(weights.columns);
    if (weights.group < kColumnStep) {
        for (int group = 0; group < periods * kPhases; ++group) {
            const int from = group * kActivationGroup / weights.group;
            float* lane = target + group / kPhases * V::kLanes + lane_of(group % kPhases);
            lane[0] = from < groups ? half_to_float(top[from]) : 0.0f;
            lane[1] = from < groups ? half_to_float(bottom[from]) : 0.0f;
        }
        return;
    }
    const int each = weights.group / kColumnStep, steps = weights.columns / kColumnStep;
    if (groups == 1) {
        const float high = half_to_float(*top), low = half_to_float(*bottom);
        for (int step = 0; step <= steps; ++step) {
            target[2 * step] = high;
            target[2 * step + 1] = low;
        }
        return;
    }
    int step = 0;
    if (each == 1)
        for (; step + 4 <= steps; step += 4) {
            const __m128i both = _mm_unpacklo_epi16(
                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(top + step)),
                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bottom + step)));
            _mm256_storeu_ps(target + 2 * step, _mm256_cvtph_ps(both));
        }
    for (; step < steps; ++step) {
        target[2 * step] = half_to_float(top[step / each]);
        target[2 * step + 1] = half_to_float(bottom[step / each]);
    }
    target[2 * steps] = target[2 * steps + 1] = 0.0f;  // where half a period is left
}

// Rows `row` and, unless that is 0, `row + below` of weights times `M` rows of activations from `first` on.
template <int kBits, bool kIsUnsigned, bool kIsShort, int M>
void multiply_pair(
    const Weights& weights, const RoundedActivations& activations, int row, int below, int first,
    float* outputs, size_t stride, float* scales) {
    const int columns = weights.columns, padded = padded_columns(columns), groups = columns / weights.group;
    const size_t row_bytes = static_cast<size_t>(columns) * kBits / 8;
    const uint16_t* top_scales = weights.scales + static_cast<size_t>(row) * groups;
    // Scales of the rows whose codes are being asked for, or further ones: far too few for the
    // processor to notice.
    const size_t far_rows = kPrefetchBytes / row_bytes + 1;
    for (int r = 0; r < 2; ++r) {
        const uint16_t* next_scales = top_scales + r * below * groups + (groups == 1 ? kFarRows : far_rows * groups);
        _mm_prefetch(reinterpret_cast<const char*>(next_scales), _MM_HINT_T0);
        if (kIsUnsigned) _mm_prefetch(reinterpret_cast<const char*>(weights.zero_points + row + r * below + kFarRows), _MM_HINT_T0);
    }
    widen_scales(weights, top_scales, top_scales + below * groups, scales);
    const uint8_t* base = weights.codes + row * row_bytes;
    const size_t next_row = below * row_bytes;
    const int8_t* rounded = activations.codes + static_cast<size_t>(first) * padded;
    const size_t lanes = static_cast<size_t>(padded) / 16;
    const float* lane_scales = activations.lane_scales + first * lanes;
    const int32_t* lane_starts = activations.lane_starts + first * lanes;
    const int units = columns / kColumnStep * kUnitsPerStep;
    Floats sums[M];
    for (int m = 0; m < M; ++m) sums[m] = V::zero();
    for (int unit = 0; unit < units; unit += 2) {
        const size_t lane = static_cast<size_t>(unit) / 2 * V::kLanes;
        Ints low[4], high[4];
        for (int half = 0; half < 2; ++half) {
            // Beyond the last unit that one again: its activations are zeros.
            const uint8_t* bytes = base + place_of<kBits>(unit + half < units ? unit + half : unit);
            for (int r = 0; r < 2; ++r, bytes += next_row) {
                const Ints packed = V::load(bytes);
                const Ints other = kBits == 4 ? packed : V::load(bytes + kColumnStep / 2);
                _mm_prefetch(reinterpret_cast<const char*>(bytes) + kPrefetchBytes, _MM_HINT_T1);
                _mm_prefetch(reinterpret_cast<const char*>(bytes) + kNearBytes, _MM_HINT_T0);
                if (kBits == 8) {
                    _mm_prefetch(reinterpret_cast<const char*>(bytes) + kColumnStep / 2 + kPrefetchBytes, _MM_HINT_T1);
                    _mm_prefetch(reinterpret_cast<const char*>(bytes) + kColumnStep / 2 + kNearBytes, _MM_HINT_T0);
                }
                low[2 * half + r] = prepare_low<kBits, kIsUnsigned>(packed);
                high[2 * half + r] = prepare_high<kBits, kIsUnsigned>(other);
            }
        }
        const Floats weight_scale = kIsShort ? V::load_floats(scales + lane)
                                             : V::load_pair(scales + unit / 2 * (kPeriod / kColumnStep * 2));
        for (int m = 0; m < M; ++m) {
            Ints dots[4];
            for (int half = 0; half < 2; ++half) {
                const int8_t* at = rounded + static_cast<size_t>(m) * padded +
                                   (unit + half) / kUnitsPerStep * kColumnStep + (unit + half) % kUnitsPerStep * kBytes;
                const Ints even = V::load(at), odd = V::load(at + kColumnStep / 2);
                for (int i = 2 * half; i < 2 * half + 2; ++i)
                    dots[i] = dot_of<kBits>(dot_of<kBits>(V::fill(0), low[i], even), high[i], odd);
            }
            const Ints first_two = V::add(V::zip_low_32(dots[0], dots[1]), V::zip_high_32(dots[0], dots[1]));
            const Ints last_two = V::add(V::zip_low_32(dots[2], dots[3]), V::zip_high_32(dots[2], dots[3]));
            const Ints whole = V::add(
                V::add(V::zip_low_64(first_two, last_two), V::zip_high_64(first_two, last_two)),
                V::load(lane_starts + m * lanes + lane));
            const Floats scale = V::multiply(V::load_floats(lane_scales + m * lanes + lane), weight_scale);
            sums[m] = V::multiply_add(V::to_floats(whole), scale, sums[m]);
        }
    }
    for (int m = 0; m < M; ++m) {
        alignas(16) float ends[4];
        _mm_store_ps(ends, V::add_quarters(sums[m]));
        for (int r = 0; r <= (below ? 1 : 0); ++r)
            outputs[(first + m) * stride + row + r * below] =
                (ends[r] + ends[2 + r]) - zero_point_share(weights, row + r * below, activations.totals[first + m]);
    }
}

template <int M>
void multiply_pairs(
    const Weights& weights, const RoundedActivations& activations, int begin, int end, int first,
    float* outputs, size_t stride, float* scales) {
    auto* kernel = weights.group < kColumnStep ? multiply_pair<4, false, true, M> : multiply_pair<4, false, false, M>;
    if (weights.bits == 8)
        kernel = weights.zero_points ? multiply_pair<8, true, false, M> : multiply_pair<8, false, false, M>;
    const int half = (end - begin) / 2;
    for (int row = begin; row < begin + half; ++row) kernel(weights, activations, row, half, first, outputs, stride, scales);
    if ((end - begin) % 2) kernel(weights, activations, end - 1, 0, first, outputs, stride, scales);
}

// ---- more rows of activations: weights are unpacked once for all of them, their rows in the lanes

constexpr int kVectors = 2;  // of weight rows at once
constexpr int kBlockRows = kVectors * V::kLanes;
constexpr int kStepsPerGroup = kActivationGroup / 4;  // dot products of four columns
constexpr int kPanelRows = 16;  // of activations whose sums are kept at a time
constexpr int kUnpackedPeriod = kPeriod * kBlockRows;  // bytes

struct Scratch {
    float* scales;   // [groups of weights][kBlockRows]
    float* sums;     // [kPanelRows][kPhases][kBlockRows]
    uint8_t* codes;  // [groups of 32 columns][8 steps][kBlockRows][4 columns], unsigned
};

constexpr size_t kSums = static_cast<size_t>(kPanelRows) * kPhases * kBlockRows;

// Pairs need no blocks; fewer at a time and all threads are done at about the same moment.
constexpr int kPairsPerTurn = 4;

int rows_per_turn(int rows) { return rows >= V::kLeastBlockRows ? kBlockRows : 2 * kPairsPerTurn; }

// For `rows` of activations.
size_t scratch_bytes(const Weights& weights, int rows) {
    const size_t scales = static_cast<size_t>(weights.columns / weights.group) * kBlockRows + weights.columns / 4 + 64;
    const size_t codes = rows <= kPanelRows ? kUnpackedPeriod : static_cast<size_t>(weights.columns) * kBlockRows;
    return (scales + kSums) * sizeof(float) + codes + 192;
}

inline Scratch divide(const Weights& weights, void* memory) {
    float* sums = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    float* scales = sums + kSums;
    const size_t count = static_cast<size_t>(weights.columns / weights.group) * kBlockRows;
    return {scales, sums, reinterpret_cast<uint8_t*>(scales + count)};
}

// Scales of a block's rows, its rows in the lanes.
void turn_scales(const Weights& weights, int begin, float* target) {
    const int groups = weights.columns / weights.group;
    const uint16_t* source = weights.scales + static_cast<size_t>(begin) * groups;
    if (groups == 1) {
        widen(source, kBlockRows, target);
        return;
    }
    alignas(64) int32_t offsets[V::kLanes];
    for (int lane = 0; lane < V::kLanes; ++lane) offsets[lane] = lane * groups * 2;
    const Ints places = V::load(offsets);
    for (int vector = 0; vector < kVectors; ++vector)
        for (int group = 0; group < groups; group += 2) {
            // Two at once; of an odd number the last one with that before it.
            const int from = group + 1 < groups ? group : group - 1;
            const Ints two = V::gather(source + static_cast<size_t>(vector) * V::kLanes * groups + from, places);
            float* at = target + static_cast<size_t>(from) * kBlockRows + vector * V::kLanes;
            V::store_floats(at, V::low_halves(two));
            V::store_floats(at + kBlockRows, V::high_halves(two));
        }
}

// 16 bytes of each of kLanes rows from `bytes` on: four vectors of four columns each.
inline void turn_piece(const uint8_t* bytes, size_t row_bytes, Ints (&columns)[4]) {
    Ints quarters[4];
    for (int i = 0; i < 4; ++i) quarters[i] = V::load_quarters(bytes + i * row_bytes, 4 * row_bytes);
    const Ints a = V::zip_low_32(quarters[0], quarters[1]), b = V::zip_low_32(quarters[2], quarters[3]);
    const Ints c = V::zip_high_32(quarters[0], quarters[1]), d = V::zip_high_32(quarters[2], quarters[3]);
    columns[0] = V::zip_low_64(a, b);
    columns[1] = V::zip_high_64(a, b);
    columns[2] = V::zip_low_64(c, d);
    columns[3] = V::zip_high_64(c, d);
}

// Unpacks units [from, to) of a block's rows.
template <int kBits, bool kIsUnsigned>
void unpack(const Weights& weights, int begin, int from, int to, uint8_t* codes) {
    const size_t row_bytes = static_cast<size_t>(weights.columns) * kBits / 8;
    for (int unit = from; unit < to; ++unit)
        for (int vector = 0; vector < kVectors; ++vector) {
            const uint8_t* bytes = weights.codes + (begin + vector * V::kLanes) * row_bytes + place_of<kBits>(unit);
            for (int group = 0; group < kGroupsPerUnit; ++group) {
                const int first = ((unit - from) * kGroupsPerUnit + group) * kStepsPerGroup;
                uint8_t* target = codes + (static_cast<size_t>(first) * kVectors + vector) * kBytes;
                Ints columns[4];
                turn_piece(bytes + group * 16, row_bytes, columns);
                for (int i = 0; i < 4; ++i)
                    V::store(target + i * kVectors * kBytes, prepare_low<kBits, kIsUnsigned>(columns[i]));
                if (kBits == 8) turn_piece(bytes + group * 16 + kColumnStep / 2, row_bytes, columns);
                for (int i = 0; i < 4; ++i)
                    V::store(target + (4 + i) * kVectors * kBytes, prepare_high<kBits, kIsUnsigned>(columns[i]));
            }
        }
}

// Adds the products of `M` rows of activations from `first` on with groups [from, to) of columns
// of a block to `sums` [M][kPhases][kBlockRows].
template <int kBits, int M>
void multiply_groups(
    const Weights& weights, const RoundedActivations& activations, int first, int from, int to,
    const uint8_t* codes, const float* scales, float* sums, const uint8_t* next) {
    const int padded = padded_columns(weights.columns), groups = padded / kActivationGroup;
    // Bytes of the next block to a step of this one.
    constexpr int kStepBytes = kBlockRows * kActivationGroup * kBits / 8 / kStepsPerGroup;
    for (int group = from; group < to; ++group) {
        const int8_t* rounded =
            activations.codes + static_cast<size_t>(first) * padded + group / 4 * kColumnStep + group % 4 * 16;
        const size_t place = static_cast<size_t>(first) * groups + group;
        Ints dots[M][kVectors];
        for (int m = 0; m < M; ++m) {
            const Ints start = V::fill(activations.starts[place + static_cast<size_t>(m) * groups]);
            for (int v = 0; v < kVectors; ++v) dots[m][v] = start;
        }
        for (int half = 0; half < 2; ++half)
            for (int step = 0; step < kStepsPerGroup / 2; ++step, codes += kVectors * kBytes) {
                if (next) {
                    for (int i = 0; i < kStepBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(next) + i, _MM_HINT_T1);
                    next += kStepBytes;
                }
                for (int m = 0; m < M; ++m) {
                    int32_t four;
                    memcpy(&four, rounded + static_cast<size_t>(m) * padded + half * (kColumnStep / 2) + step * 4, 4);
                    const Ints activation = V::fill(four);
                    for (int v = 0; v < kVectors; ++v)
                        dots[m][v] = dot_of<kBits>(dots[m][v], V::load(codes + v * kBytes), activation);
                }
            }
        const float* weight_scales = scales + static_cast<size_t>(group * kActivationGroup / weights.group) * kBlockRows;
        for (int m = 0; m < M; ++m) {
            const Floats scale = V::fill(activations.scales[place + static_cast<size_t>(m) * groups]);
            float* at = sums + (static_cast<size_t>(m) * kPhases + group % kPhases) * kBlockRows;
            for (int v = 0; v < kVectors; ++v, at += V::kLanes)
                V::store_floats(
                    at, V::multiply_add(
                            V::to_floats(dots[m][v]), V::multiply(scale, V::load_floats(weight_scales + v * V::kLanes)),
                            V::load_floats(at)));
        }
    }
}

template <int kBits, int M>
inline void multiply_up_to(
    int rows, const Weights& weights, const RoundedActivations& activations, int first, int from, int to,
    const uint8_t* codes, const float* scales, float* sums, const uint8_t* next) {
    if (rows == M) {
        multiply_groups<kBits, M>(weights, activations, first, from, to, codes, scales, sums, next);
        return;
    }
    if constexpr (M > 1)
        multiply_up_to<kBits, M - 1>(rows, weights, activations, first, from, to, codes, scales, sums, next);
}

// The same for any number of rows up to kPanelRows, in portions of about the same size.
template <int kBits>
void multiply_panel(
    const Weights& weights, const RoundedActivations& activations, int first, int count, int from, int to,
    const uint8_t* codes, const Scratch& scratch, const uint8_t* next) {
    int portions = (count + V::kManyRows - 1) / V::kManyRows;
    for (int done = 0; portions; --portions) {
        const int rows = (count - done + portions - 1) / portions;
        multiply_up_to<kBits, V::kManyRows>(
            rows, weights, activations, first + done, from, to, codes, scratch.scales,
            scratch.sums + static_cast<size_t>(done) * kPhases * kBlockRows, done ? nullptr : next);
        done += rows;
    }
}

// Adds the phases of a panel's sums as `add_quarters` does, and writes the outputs.
void finish_panel(
    const Weights& weights, const RoundedActivations& activations, int begin, int first, int count,
    const float* sums, float* outputs, size_t stride) {
    for (int m = 0; m < count; ++m)
        for (int v = 0; v < kVectors; ++v) {
            const float* at = sums + static_cast<size_t>(m) * kPhases * kBlockRows + v * V::kLanes;
            Floats halves[2];
            for (int half = 0; half < 2; ++half, at += kGroupsPerUnit * kBlockRows) {
                halves[half] = V::load_floats(at);
                Floats second = V::load_floats(at + kBlockRows);
                if constexpr (kGroupsPerUnit == 4) {
                    halves[half] = V::add_floats(halves[half], V::load_floats(at + 2 * kBlockRows));
                    second = V::add_floats(second, V::load_floats(at + 3 * kBlockRows));
                }
                halves[half] = V::add_floats(halves[half], second);
            }
            float* target = outputs + (first + m) * stride + begin + v * V::kLanes;
            V::store_floats(target, V::add_floats(halves[0], halves[1]));
            if (weights.zero_points)
                for (int lane = 0; lane < V::kLanes; ++lane)
                    target[lane] -= zero_point_share(weights, begin + v * V::kLanes + lane, activations.totals[first + m]);
        }
}

template <int kBits, bool kIsUnsigned>
void multiply_block(
    const Weights& weights, const RoundedActivations& activations, int begin, float* outputs, size_t stride,
    const Scratch& scratch) {
    const int units = weights.columns / kColumnStep * kUnitsPerStep;
    const size_t row_bytes = static_cast<size_t>(weights.columns) * kBits / 8;
    // The next block follows this one in memory, and is asked for in that order while this one is
    // multiplied: all at once would wait for the places that the first cache has for requests.
    const uint8_t* next = weights.codes + (begin + kBlockRows) * row_bytes;
    constexpr size_t kUnitBytes = static_cast<size_t>(kBlockRows) * kBytes * kBits / 4;
    turn_scales(weights, begin, scratch.scales);
    if (activations.rows <= kPanelRows) {  // unpacked codes never leave the first cache
        memset(scratch.sums, 0, static_cast<size_t>(activations.rows) * kPhases * kBlockRows * sizeof(float));
        for (int unit = 0; unit < units; unit += 2) {
            const int to = unit + 2 < units ? unit + 2 : units;
            unpack<kBits, kIsUnsigned>(weights, begin, unit, to, scratch.codes);
            multiply_panel<kBits>(
                weights, activations, 0, activations.rows, unit * kGroupsPerUnit, to * kGroupsPerUnit, scratch.codes, scratch,
                next + unit * kUnitBytes);
        }
        finish_panel(weights, activations, begin, 0, activations.rows, scratch.sums, outputs, stride);
        return;
    }
    unpack<kBits, kIsUnsigned>(weights, begin, 0, units, scratch.codes);
    for (int first = 0; first < activations.rows; first += kPanelRows) {
        const int count = activations.rows - first < kPanelRows ? activations.rows - first : kPanelRows;
        memset(scratch.sums, 0, static_cast<size_t>(count) * kPhases * kBlockRows * sizeof(float));
        multiply_panel<kBits>(
            weights, activations, first, count, 0, units * kGroupsPerUnit, scratch.codes, scratch, first ? nullptr : next);
        finish_panel(weights, activations, begin, first, count, scratch.sums, outputs, stride);
    }
}

void multiply(
    const Weights& weights, const RoundedActivations& activations, int begin, int end, float* outputs,
    size_t stride, void* memory) {
    const Scratch scratch = divide(weights, memory);
    auto* block = multiply_block<4, false>;
    if (weights.bits == 8) block = weights.zero_points ? multiply_block<8, true> : multiply_block<8, false>;
    if (activations.rows >= V::kLeastBlockRows)
        for (; begin + kBlockRows <= end; begin += kBlockRows)
            block(weights, activations, begin, outputs, stride, scratch);
    for (int first = 0; begin < end && first < activations.rows;) {
        const int left = activations.rows - first, rows = left < kPairRows ? left : kPairRows;
        auto* pairs = rows == 1 ? multiply_pairs<1> : rows == 2 ? multiply_pairs<2> : multiply_pairs<kPairRows>;
        pairs(weights, activations, begin, end, first, outputs, stride, scratch.scales);
        first += rows;
    }
}

}  // namespace
