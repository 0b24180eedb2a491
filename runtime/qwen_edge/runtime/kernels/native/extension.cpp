// What the engine and the runtime ask the library for first.

#include <string>
#include <vector>

#include <openvino/core/extension.hpp>

#include "choices.hpp"
#include "exported.hpp"
#include "operators.hpp"

// Names of the kernels that this processor can run, best first, with commas between.
QWEN_EDGE_EXPORT const char* qwen_edge_kernels() {
    static const std::string names = [] {
        std::string result;
        for (const auto& choice : qwen_edge::choices()) result += (result.empty() ? "" : ",") + std::string(choice.name);
        return result;
    }();
    return names.c_str();
}

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {qwen_edge::compressed_matmul_extension(), qwen_edge::cached_attention_extension(),
     qwen_edge::decoder_layers_extension()}));
