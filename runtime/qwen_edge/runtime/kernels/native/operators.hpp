// The operators of the library, as the engine takes them.

#pragma once

#include <openvino/core/extension.hpp>

namespace qwen_edge {

ov::Extension::Ptr compressed_matmul_extension();
ov::Extension::Ptr cached_attention_extension();
ov::Extension::Ptr decoder_layers_extension();

}  // namespace qwen_edge
