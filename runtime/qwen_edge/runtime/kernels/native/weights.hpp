// Compressed matrices as the graph holds them.

#pragma once

#include <string>

#include <openvino/core/shape.hpp>

#include "kernels.hpp"

namespace qwen_edge {

// Sets rows, columns, group and bits of `weights` by the shapes of codes [rows, bytes], scales
// [rows, 2 * groups] in bytes and, where not null, zero points [rows, 1].
// Returns what is wrong with them; nothing where the kernels can compute with them.
std::string read_shapes(const ov::Shape& codes, const ov::Shape& scales, const ov::Shape* zero_points, int64_t columns, Weights& weights);

}  // namespace qwen_edge
