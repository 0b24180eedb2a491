#include "attending.hpp"

#include <algorithm>

#include <tbb/parallel_for.h>

#include "choices.hpp"

namespace qwen_edge {
namespace {

// Tokens of a head's new keys and values to a task.
constexpr int kStoredTokens = 64;

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

}  // namespace

void attend(const Kernels& kernels, const NewTokens& tokens, const Attention& attention, uint8_t* const* pages) {
    const int panels = (attention.rows + kAttentionRows - 1) / kAttentionRows;
    const int portions = (attention.rows + kStoredTokens - 1) / kStoredTokens;
    const bool is_short = panels == 1;  // then a head's task stores its token itself
    if (!is_short)
        tbb::parallel_for(0, attention.kv_heads * portions, [&](int task) {
            const int first = task % portions * kStoredTokens;
            store(
                kernels, tokens, attention, pages, task / portions, first, std::min(kStoredTokens, attention.rows - first));
        });
    tbb::parallel_for(0, attention.kv_heads * panels, [&](int task) {
        // The last rows see most tokens: they begin first.
        const int head = task % attention.kv_heads, panel = panels - 1 - task / attention.kv_heads;
        const int first = panel * kAttentionRows;
        if (is_short) store(kernels, tokens, attention, pages, head, 0, attention.rows);
        kernels.attend(
            attention, head, first, std::min(kAttentionRows, attention.rows - first),
            keep<uint8_t, 3>(attention_scratch_bytes(attention)));
    });
}

}  // namespace qwen_edge
