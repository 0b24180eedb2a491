// Attention of a call over a cache, by a team of threads.

#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "team.hpp"

namespace qwen_edge {

// Keys and values of a call.
struct NewTokens {
    const float* keys;    // [kv_heads, rows, head_dim]
    const float* values;  // the same, or [rows, kv_heads, head_dim]
    bool is_by_row;
};

// Tokens of a head's new keys and values that are put into a cache together.
constexpr int kStoredTokens = 64;

// Loops of `attend`.
constexpr int kLoopsPerAttention = 2;

// Puts rows [first, first + count) of a head of keys and values into `pages`.
void store(
    const Kernels& kernels, const NewTokens& tokens, const Attention& attention, uint8_t* const* pages, int head, int first,
    int count);

// Attends with panel `panel` of kAttentionRows rows of the queries that share a head.
void attend_panel(const Kernels& kernels, const Attention& attention, int head, int panel);

// Puts the call's tokens into `pages` and attends with its queries.
// ready(head, first, count) is called before these rows of a head of keys, and of the queries that share it, are read.
template <typename Ready>
void attend(
    Member& member, const Kernels& kernels, const NewTokens& tokens, const Attention& attention, uint8_t* const* pages,
    const Ready& ready) {
    const int heads = attention.kv_heads, panels = (attention.rows + kAttentionRows - 1) / kAttentionRows;
    const int portions = (attention.rows + kStoredTokens - 1) / kStoredTokens;
    const bool is_short = panels == 1;  // then who attends with a head stores its tokens
    const auto take = [&](int head, int first, int count) {
        ready(head, first, count);
        store(kernels, tokens, attention, pages, head, first, count);
    };
    if (!is_short)
        member.share(heads * portions, [&](int begin, int end) {
            for (; begin < end; ++begin) {
                const int first = begin % portions * kStoredTokens;
                take(begin / portions, first, std::min(kStoredTokens, attention.rows - first));
            }
        });
    member.share(heads * panels, [&](int begin, int end) {
        for (; begin < end; ++begin) {
            if (is_short) take(begin, 0, attention.rows);
            // The last rows see most tokens: they begin first.
            attend_panel(kernels, attention, begin % heads, panels - 1 - begin / heads);
        }
    });
}

}  // namespace qwen_edge
