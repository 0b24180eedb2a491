#include "choices.hpp"

namespace qwen_edge {

const std::vector<Choice>& choices() {
    static const std::vector<Choice> found = [] {
        std::vector<Choice> result;
        __builtin_cpu_init();
        const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vnni");
        const bool has_2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c");
        if (has_512 && amx::is_available()) result.push_back({"amx", avx512_vnni_kernels(), true});
        if (has_512) result.push_back({"avx512-vnni", avx512_vnni_kernels(), false});
        if (has_2 && __builtin_cpu_supports("avxvnni"))
            result.push_back({"avx2-vnni", avx2_vnni_kernels(), false});
        if (has_2) result.push_back({"avx2", avx2_kernels(), false});
        return result;
    }();
    return found;
}

const Choice* find_choice(const std::string& name) {
    for (const Choice& choice : choices())
        if (name == "auto" || name == choice.name) return &choice;
    return nullptr;
}

}  // namespace qwen_edge
