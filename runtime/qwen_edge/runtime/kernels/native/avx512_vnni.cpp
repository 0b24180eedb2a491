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
    static constexpr int kLanes = 16, kCodeBias8 = 128, kFewRows = 4, kManyRows = 6, kWeightRows = 4;

    static Ints load(const void* p) { return _mm512_loadu_si512(p); }
    static void store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
    static Ints fill(int32_t v) { return _mm512_set1_epi32(v); }
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
    static float sum(Floats v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace

#include "vector_kernels.inl"

const Kernels* avx512_vnni_kernels() { return &kKernels; }

}  // namespace qwen_edge
