// Attention of a call over a cache, on all threads.

#pragma once

#include "kernels.hpp"

namespace qwen_edge {

// Keys and values of a call.
struct NewTokens {
    const float* keys;    // [kv_heads, rows, head_dim]
    const float* values;  // the same, or [rows, kv_heads, head_dim]
    bool is_by_row;
};

// Puts the call's tokens into `pages` and attends with its queries.
void attend(const Kernels& kernels, const NewTokens& tokens, const Attention& attention, uint8_t* const* pages);

}  // namespace qwen_edge
