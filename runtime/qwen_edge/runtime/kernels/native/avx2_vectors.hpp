// Vectors of AVX2, without the dot products of 8-bit codes, which differ.

#pragma once

#include <cstdint>

#include <immintrin.h>

namespace qwen_edge {
namespace {

struct Avx2Vectors {
    using Ints = __m256i;
    using Floats = __m256;
    static constexpr int kLanes = 8, kManyRows = 4, kLeastBlockRows = 4;

    static Ints load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
    static Ints fill(int32_t v) { return _mm256_set1_epi32(v); }
    static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
    // Within each quarter of 128 bits (there are two).
    static Ints zip_low_32(Ints a, Ints b) { return _mm256_unpacklo_epi32(a, b); }
    static Ints zip_high_32(Ints a, Ints b) { return _mm256_unpackhi_epi32(a, b); }
    static Ints zip_low_64(Ints a, Ints b) { return _mm256_unpacklo_epi64(a, b); }
    static Ints zip_high_64(Ints a, Ints b) { return _mm256_unpackhi_epi64(a, b); }
    // 16 bytes each from `p` and `p + apart`.
    static Ints load_quarters(const uint8_t* p, size_t apart) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(p)), load_16(p + apart), 1);
    }
    static Ints gather(const void* base, Ints offsets) {
        return _mm256_i32gather_epi32(static_cast<const int*>(base), offsets, 1);
    }
    // A code with its sign bit flipped is its value plus 8.
    static Ints low_codes(Ints v) {
        return _mm256_and_si256(_mm256_xor_si256(v, _mm256_set1_epi8(8)), _mm256_set1_epi8(15));
    }
    static Ints high_codes(Ints v) { return low_codes(_mm256_srli_epi16(v, 4)); }

    static Floats zero() { return _mm256_setzero_ps(); }
    static Floats fill(float v) { return _mm256_set1_ps(v); }
    static Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
    static void store_floats(float* p, Floats v) { _mm256_storeu_ps(p, v); }
    static Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
    static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static Floats add_floats(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    // A pair of rows' scales of two units, which are in the same step of columns.
    static Floats load_pair(const float* p) {
        return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(p)));
    }
    // Float16 numbers in the lower and the upper halves of lanes.
    static Floats low_halves(Ints v) { return high_halves(_mm256_slli_epi32(v, 16)); }
    static Floats high_halves(Ints v) {
        const __m256i words = _mm256_srli_epi32(v, 16);
        return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
    static __m128 add_quarters(Floats v) {
        return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    }
    static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
    // The second one where either is not a number.
    static Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
    static float largest_lane(Floats v) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
    }
    static float first_lane(Floats v) { return _mm256_cvtss_f32(v); }
    static Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
    // `yes` where `v` has the sign of a negative number.
    static Floats where_negative(Floats v, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, v); }
    static Ints to_ints(Floats v) { return _mm256_cvtps_epi32(v); }
    static Floats scale_by_power(Floats v, Ints power) {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(power, 23)));
    }
    static Floats keep_first(Floats v, int count, float other) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
        return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(kept));
    }
    // Signed bytes, and upper halves of floats.
    static Floats load_codes(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static Floats load_upper_halves(const uint16_t* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
    }

private:
    static __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace
}  // namespace qwen_edge
