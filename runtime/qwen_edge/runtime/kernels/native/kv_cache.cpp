#include "kv_cache.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "exported.hpp"
#include "kernels.hpp"

namespace qwen_edge {
namespace {

std::mutex& caches_mutex() {
    static std::mutex mutex;
    return mutex;
}

std::map<int32_t, std::shared_ptr<KvCache>>& caches() {
    static std::map<int32_t, std::shared_ptr<KvCache>> all;
    return all;
}

int blocks_of(int tokens) { return (tokens + kCacheBlock - 1) / kCacheBlock; }

// Sets what a block holds of tokens from `first` on to zeros.
void clear_tokens(uint8_t* block, int first, int head_dim) {
    uint8_t* values = block + cache_half_bytes(head_dim);
    for (uint8_t* half : {block, values}) {
        uint16_t* scales = reinterpret_cast<uint16_t*>(half + head_dim * kCacheBlock);
        for (int group = 0; group < head_dim / kCacheGroup; ++group)
            for (int token = first; token < kCacheBlock; ++token) scales[group * kCacheBlock + token] = 0;
    }
    for (int i = 0; i < head_dim; ++i)
        std::memset(block + i * kCacheBlock + first, 0, kCacheBlock - first);
    std::memset(values + first * head_dim, 0, static_cast<size_t>(kCacheBlock - first) * head_dim);
}

}  // namespace

void KvCache::Free::operator()(uint8_t* page) const { std::free(page); }

KvCache::KvCache(int layers, int kv_heads, int head_dim) : kv_heads_(kv_heads), head_dim_(head_dim), pages_(layers) {}

uint8_t* const* KvCache::reserve(int layer, int tokens) {
    Layer& one = pages_[layer];
    const size_t bytes = cache_page_bytes(kv_heads_, head_dim_);
    while (static_cast<int>(one.pages.size()) * kCachePage < tokens) {
        one.pages.reserve(one.pages.size() + 1);
        one.owners.emplace_back(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
        if (!one.owners.back()) {
            one.owners.pop_back();
            throw std::bad_alloc();
        }
        std::memset(one.owners.back().get(), 0, bytes);
        one.pages.push_back(one.owners.back().get());
    }
    return one.pages.data();
}

void KvCache::clear() {
    for (Layer& layer : pages_) layer = Layer();
}

size_t KvCache::packed_bytes(int tokens) const {
    return static_cast<size_t>(kv_heads_) * blocks_of(tokens) * 2 * cache_half_bytes(head_dim_);
}

bool KvCache::read(int layer, int tokens, uint8_t* target) const {
    const Layer& one = pages_[layer];
    if (static_cast<int>(one.pages.size()) * kCachePage < tokens) return false;
    const size_t block_bytes = 2 * cache_half_bytes(head_dim_);
    for (int head = 0; head < kv_heads_; ++head)
        for (int token = 0; token < tokens; token += kCacheBlock, target += block_bytes) {
            const uint8_t* page = one.pages[token / kCachePage];
            std::memcpy(target, page + cache_block_place(head, token % kCachePage, head_dim_), block_bytes);
            if (tokens - token < kCacheBlock) clear_tokens(target, tokens - token, head_dim_);
        }
    return true;
}

void KvCache::write(int layer, int tokens, const uint8_t* source) {
    uint8_t* const* pages = reserve(layer, tokens);
    const size_t block_bytes = 2 * cache_half_bytes(head_dim_);
    for (int head = 0; head < kv_heads_; ++head)
        for (int token = 0; token < tokens; token += kCacheBlock, source += block_bytes)
            std::memcpy(
                pages[token / kCachePage] + cache_block_place(head, token % kCachePage, head_dim_), source, block_bytes);
}

std::shared_ptr<KvCache> find_cache(int32_t number) {
    const std::lock_guard<std::mutex> lock(caches_mutex());
    const auto found = caches().find(number);
    return found == caches().end() ? nullptr : found->second;
}

}  // namespace qwen_edge

using qwen_edge::caches;
using qwen_edge::caches_mutex;
using qwen_edge::find_cache;

// The number of a new, empty cache; 0 where memory ran out.
QWEN_EDGE_EXPORT int32_t qwen_edge_cache_create(int layers, int kv_heads, int head_dim) {
    static std::atomic<int32_t> last{0};
    try {
        auto cache = std::make_shared<qwen_edge::KvCache>(layers, kv_heads, head_dim);
        const std::lock_guard<std::mutex> lock(caches_mutex());
        const int32_t number = ++last;
        caches()[number] = std::move(cache);
        return number;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

// Lets go of a cache; of one that is gone already, too.
QWEN_EDGE_EXPORT void qwen_edge_cache_free(int32_t number) {
    const std::lock_guard<std::mutex> lock(caches_mutex());
    caches().erase(number);
}

QWEN_EDGE_EXPORT void qwen_edge_cache_clear(int32_t number) {
    if (const auto cache = find_cache(number)) cache->clear();
}

// Bytes of a layer's first tokens, as read and written.
QWEN_EDGE_EXPORT int64_t qwen_edge_cache_bytes(int32_t number, int tokens) {
    const auto cache = find_cache(number);
    return cache ? static_cast<int64_t>(cache->packed_bytes(tokens)) : -1;
}

// 1 where it was done, 0 where the cache has not so many tokens, or memory ran out.
QWEN_EDGE_EXPORT int qwen_edge_cache_read(int32_t number, int layer, int tokens, uint8_t* target) {
    const auto cache = find_cache(number);
    return cache && layer < cache->layers() && cache->read(layer, tokens, target);
}

QWEN_EDGE_EXPORT int qwen_edge_cache_write(int32_t number, int layer, int tokens, const uint8_t* source) {
    const auto cache = find_cache(number);
    if (!cache || layer >= cache->layers()) return 0;
    try {
        cache->write(layer, tokens, source);
        return 1;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}
