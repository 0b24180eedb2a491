// Kernels for AVX2 alone: almost any x86 processor since 2013.

#include "kernels.hpp"

#include <cstring>

#include "avx2_vectors.hpp"

namespace qwen_edge {
namespace {

struct V : Avx2Vectors {
    static constexpr const char* kName = "AVX2";
    static constexpr int kCodeBias8 = 0;

    // Pairs are added in 16 bits with saturation: 2 * 15 * 127 stays far below it.
    static Ints dot(Ints sum, Ints codes, Ints a) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, a), _mm256_set1_epi16(1)));
    }
    // Makes unsigned codes signed: their value minus 128.
    template <bool kIsUnsigned>
    static Ints prepare_8(Ints v) {
        return kIsUnsigned ? _mm256_xor_si256(v, _mm256_set1_epi8(-128)) : v;
    }
    // Unsigned codes of 8 bits could saturate; 2 * 128 * 127 of magnitudes cannot.
    static Ints dot_8(Ints sum, Ints codes, Ints a) {
        return dot(sum, _mm256_abs_epi8(codes), _mm256_sign_epi8(a, codes));
    }
};

}  // namespace

#include "vector_kernels.inl"

#include "vector_attention.inl"

#include "vector_layer.inl"

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace qwen_edge
