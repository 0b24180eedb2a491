// Kernels for AVX-512 with VNNI: servers since 2019, some laptops of the 10th and 11th generation.

#include "kernels.hpp"

#include <cstring>

#include <immintrin.h>

namespace qwen_edge {
namespace {

struct V {
    using Ints = __m512i;
    using Floats = __m512;
    static constexpr const char* kName = "AVX-512 VNNI";
    static constexpr int kLanes = 16, kCodeBias8 = 128, kManyRows = 8, kLeastBlockRows = 4;

    static Ints load(const void* p) { return _mm512_loadu_si512(p); }
    static void store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
    static Ints fill(int32_t v) { return _mm512_set1_epi32(v); }
    static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    // Within each quarter of 128 bits.
    static Ints zip_low_32(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
    static Ints zip_high_32(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
    static Ints zip_low_64(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
    static Ints zip_high_64(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
    // 16 bytes each from `p`, `p + apart`, and so on.
    static Ints load_quarters(const uint8_t* p, size_t apart) {
        Ints result = _mm512_castsi128_si512(load_16(p));
        result = _mm512_mask_broadcast_i32x4(result, 0x00F0, load_16(p + apart));
        result = _mm512_mask_broadcast_i32x4(result, 0x0F00, load_16(p + 2 * apart));
        return _mm512_mask_broadcast_i32x4(result, 0xF000, load_16(p + 3 * apart));
    }
    static Ints gather(const void* base, Ints offsets) { return _mm512_i32gather_epi32(offsets, base, 1); }
    // Flips the sign bit of a code (truth table 0x28: (a ^ b) & c), so that it is its value plus 8.
    static Ints low_codes(Ints v) {
        return _mm512_ternarylogic_epi32(v, _mm512_set1_epi8(8), _mm512_set1_epi8(15), 0x28);
    }
    static Ints high_codes(Ints v) { return low_codes(_mm512_srli_epi16(v, 4)); }
    static Ints dot(Ints sum, Ints codes, Ints a) { return _mm512_dpbusd_epi32(sum, codes, a); }
    // Makes signed codes unsigned: their value plus 128.
    template <bool kIsUnsigned>
    static Ints prepare_8(Ints v) {
        return kIsUnsigned ? v : _mm512_xor_si512(v, _mm512_set1_epi8(-128));
    }
    static Ints dot_8(Ints sum, Ints codes, Ints a) { return dot(sum, codes, a); }

    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats fill(float v) { return _mm512_set1_ps(v); }
    static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
    static void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
    static Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
    static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats add_floats(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    // A pair of rows' scales of two units.
    static Floats load_pair(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
    // Float16 numbers in the lower and the upper halves of lanes.
    static Floats low_halves(Ints v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
    static Floats high_halves(Ints v) { return low_halves(_mm512_srli_epi32(v, 16)); }
    static __m128 add_quarters(Floats v) {
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
    // The second one where either is not a number.
    static Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
    static float largest_lane(Floats v) { return _mm512_reduce_max_ps(v); }
    static float first_lane(Floats v) { return _mm512_cvtss_f32(v); }
    static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
    // `yes` where `v` has the sign of a negative number.
    static Floats where_negative(Floats v, Floats yes, Floats no) {
        return _mm512_mask_mov_ps(no, _mm512_movepi32_mask(_mm512_castps_si512(v)), yes);
    }
    static Ints to_ints(Floats v) { return _mm512_cvtps_epi32(v); }
    static Floats scale_by_power(Floats v, Ints power) {
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(power, 23)));
    }
    static Floats keep_first(Floats v, int count, float other) {
        const __mmask16 kept = count >= kLanes ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
        return _mm512_mask_mov_ps(_mm512_set1_ps(other), kept, v);
    }
    // Signed bytes, and upper halves of floats.
    static Floats load_codes(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_16(p))); }
    static Floats load_upper_halves(const uint16_t* p) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }

private:
    static __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace

#include "vector_kernels.inl"

#include "vector_attention.inl"

#include "vector_layer.inl"

const Kernels* avx512_vnni_kernels() { return &kKernels; }

}  // namespace qwen_edge
