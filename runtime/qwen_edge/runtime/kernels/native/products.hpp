// Products of activations with several matrices at once, on all threads.

#pragma once

#include <vector>

#include "choices.hpp"
#include "kernels.hpp"

namespace qwen_edge {

// outputs[i] [rows, products[i].rows] = source [rows, columns] times products[i]; all have the same
// columns and bits.
void multiply(
    const Choice& choice, const std::vector<Weights>& products, const float* source, int rows,
    const std::vector<float*>& outputs);

}  // namespace qwen_edge
