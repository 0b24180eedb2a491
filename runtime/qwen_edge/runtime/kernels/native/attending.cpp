#include "attending.hpp"

#include "choices.hpp"

namespace qwen_edge {

void store(
    const Kernels& kernels, const NewTokens& tokens, const Attention& attention, uint8_t* const* pages, int head, int first,
    int count) {
    for (int row = first; row < first + count; ++row) {
        const size_t by_head = static_cast<size_t>(head) * attention.rows + row;
        const size_t of_value = tokens.is_by_row ? static_cast<size_t>(row) * attention.kv_heads + head : by_head;
        const int place = attention.past + row;
        kernels.store_token(
            tokens.keys + by_head * attention.head_dim, tokens.values + of_value * attention.head_dim,
            pages[place / kCachePage], head, place % kCachePage, attention.head_dim);
    }
}

void attend_panel(const Kernels& kernels, const Attention& attention, int head, int panel) {
    const int first = panel * kAttentionRows;
    kernels.attend(
        attention, head, first, std::min(kAttentionRows, attention.rows - first),
        keep<uint8_t, 3>(attention_scratch_bytes(attention)));
}

}  // namespace qwen_edge
