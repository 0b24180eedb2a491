// Keys and values of one sequence, rounded to 8 bits, for all layers of a model.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace qwen_edge {

// Which tokens are in it is the caller's to know: what lies beyond them is written over.
// One call at a time for each layer.
class KvCache {
public:
    KvCache(int layers, int kv_heads, int head_dim);

    int layers() const { return static_cast<int>(pages_.size()); }
    int kv_heads() const { return kv_heads_; }
    int head_dim() const { return head_dim_; }

    // Pages of a layer with room for `tokens`; new ones hold zeros. Throws std::bad_alloc.
    uint8_t* const* reserve(int layer, int tokens);
    // Gives all pages back.
    void clear();
    // Bytes of the blocks with the first `tokens` of a layer: [kv_heads][blocks][keys, values].
    size_t packed_bytes(int tokens) const;
    // Copies these out; numbers of tokens beyond are zeros. False where there are not so many.
    bool read(int layer, int tokens, uint8_t* target) const;
    // Puts these in the place of what is there. Throws std::bad_alloc.
    void write(int layer, int tokens, const uint8_t* source);

private:
    struct Free {
        void operator()(uint8_t* page) const;
    };
    struct Layer {
        std::vector<std::unique_ptr<uint8_t, Free>> owners;
        std::vector<uint8_t*> pages;
    };

    int kv_heads_, head_dim_;
    std::vector<Layer> pages_;
};

// Caches are passed through a graph by their numbers. Null where there is none of this number.
std::shared_ptr<KvCache> find_cache(int32_t number);

}  // namespace qwen_edge
