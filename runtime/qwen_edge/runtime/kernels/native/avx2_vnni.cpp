// Kernels for AVX2 with VNNI: Intel's laptops since the 12th generation, Core Ultra among them.

#include "kernels.hpp"

#include <cstring>

#include "avx2_vectors.hpp"

namespace qwen_edge {
namespace {

struct V : Avx2Vectors {
    static constexpr const char* kName = "AVX2 VNNI";
    static constexpr int kCodeBias8 = 128;

    static Ints dot(Ints sum, Ints codes, Ints a) { return _mm256_dpbusd_avx_epi32(sum, codes, a); }
    // Makes signed codes unsigned: their value plus 128.
    template <bool kIsUnsigned>
    static Ints prepare_8(Ints v) {
        return kIsUnsigned ? v : _mm256_xor_si256(v, _mm256_set1_epi8(-128));
    }
    static Ints dot_8(Ints sum, Ints codes, Ints a) { return dot(sum, codes, a); }
};

}  // namespace

#include "vector_kernels.inl"

#include "vector_attention.inl"

#include "vector_layer.inl"

const Kernels* avx2_vnni_kernels() { return &kKernels; }

}  // namespace qwen_edge
