// Vectors of AVX2, without the dot products of 8-bit codes, which differ.

#pragma once

#include <cstdint>

#include <immintrin.h>

namespace qwen_edge {
namespace {

struct Avx2Vectors {
    using Ints = __m256i;
    using Floats = __m256;
    static constexpr int kLanes = 8, kFewRows = 2, kManyRows = 2, kWeightRows = 2;

    static Ints load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
    static Ints fill(int32_t v) { return _mm256_set1_epi32(v); }
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
    static float sum(Floats v) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
    }
};

}  // namespace
}  // namespace qwen_edge
