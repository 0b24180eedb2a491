// Attention with the vectors of one instruction set; included after vector_kernels.inl.
//
// Softmax is computed page by page, each with the largest score so far. Pages begin at multiples of
// kCachePage, and within one tokens are added in their order, so what a row is computed with besides
// changes nothing: tokens that it may not see count as exact zeros.

namespace {

constexpr int kSpan = 2 * kCacheBlock;  // tokens that are widened at a time
constexpr int kBlocksAhead = 4;
// Queries whose sums over values are in registers with 32 dimensions.
constexpr int kValueRows = V::kLanes == 16 ? 8 : 2;
// Queries that go straight to what is in the cache, and blocks of keys then: for more it is widened once.
constexpr int kCodedRows = 4, kCachedTogether = V::kLanes == 16 ? 2 : 1;

template <int kCount>
struct Count {
    static constexpr int value = kCount;
};

inline void round_32(const float* source, __m128i (&codes)[2], uint16_t& scale_bits) {
    const float most = largest_of_32(source, source + 16);
    if (!(most <= 3.402823466e38f)) {  // not a number in, not a number out
        codes[0] = codes[1] = _mm_setzero_si128();
        scale_bits = 0x7FC0;
        return;
    }
    float scale = most / 127.0f;
    uint32_t bits;
    memcpy(&bits, &scale, 4);
    bits = (bits + 0xFFFF) & 0xFFFF0000;  // upwards, so that no code exceeds 127
    memcpy(&scale, &bits, 4);
    const __m256 factor = _mm256_set1_ps(most > 1e-30f ? 1.0f / scale : 0.0f);
    codes[0] = round_16(source, factor);
    codes[1] = round_16(source + 16, factor);
    scale_bits = static_cast<uint16_t>(bits >> 16);
}

void store_token(const float* key, const float* value, uint8_t* page, int head, int token, int head_dim) {
    uint8_t* keys = page + cache_block_place(head, token, head_dim);
    uint8_t* values = keys + cache_half_bytes(head_dim);
    uint16_t* key_scales = reinterpret_cast<uint16_t*>(keys + head_dim * kCacheBlock);
    uint16_t* value_scales = reinterpret_cast<uint16_t*>(values + head_dim * kCacheBlock);
    const int place = token % kCacheBlock;
    for (int group = 0; group < head_dim / kCacheGroup; ++group) {
        alignas(16) uint8_t bytes[kCacheGroup];
        __m128i codes[2];
        round_32(key + group * kCacheGroup, codes, key_scales[group * kCacheBlock + place]);
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes[0]);
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes + 16), codes[1]);
        for (int i = 0; i < kCacheGroup; ++i) keys[(group * kCacheGroup + i) * kCacheBlock + place] = bytes[i];
        round_32(value + group * kCacheGroup, codes, value_scales[group * kCacheBlock + place]);
        uint8_t* at = values + place * head_dim + group * kCacheGroup;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), codes[0]);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 16), codes[1]);
    }
}

// Keys of a block as floats: target [head_dim][kSpan], its kCacheBlock columns from `target` on.
inline void widen_keys(const uint8_t* keys, int head_dim, float* target) {
    // Blocks further on, keys and values, are asked for on the way: a step after 500 tokens took
    // 277 us a layer without (one thread), 140 with, 129 with a cache that was near.
    const char* next = reinterpret_cast<const char*>(keys) + kBlocksAhead * 2 * cache_half_bytes(head_dim);
    const size_t each = 2 * cache_half_bytes(head_dim) / head_dim;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(keys + head_dim * kCacheBlock);
    for (int part = 0; part < kCacheBlock; part += V::kLanes)
        for (int group = 0; group < head_dim / kCacheGroup; ++group) {
            const Floats scale = V::load_upper_halves(scales + group * kCacheBlock + part);
            for (int i = group * kCacheGroup; i < (group + 1) * kCacheGroup; ++i) {
                if (part == 0) _mm_prefetch(next + i * each, _MM_HINT_T1);
                V::store_floats(
                    target + i * kSpan + part, V::multiply(V::load_codes(keys + i * kCacheBlock + part), scale));
            }
        }
}

// Values of a block as floats: target [kCacheBlock][head_dim].
inline void widen_values(const uint8_t* values, int head_dim, float* target) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(values + head_dim * kCacheBlock);
    for (int group = 0; group < head_dim / kCacheGroup; ++group) {
        alignas(64) float wide[kCacheBlock];
        for (int part = 0; part < kCacheBlock; part += V::kLanes)
            V::store_floats(wide + part, V::load_upper_halves(scales + group * kCacheBlock + part));
        for (int token = 0; token < kCacheBlock; ++token) {
            const Floats scale = V::fill(wide[token]);
            for (int i = group * kCacheGroup; i < (group + 1) * kCacheGroup; i += V::kLanes)
                V::store_floats(
                    target + token * head_dim + i, V::multiply(V::load_codes(values + token * head_dim + i), scale));
        }
    }
}

// scores [M][kCachePage], kSpan columns of them: products of queries [M][head_dim] with keys.
template <int M>
void multiply_keys(const float* queries, const float* keys, int head_dim, float* scores) {
    for (int part = 0; part < kSpan; part += 2 * V::kLanes) {
        Floats sums[M][2];
        for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = V::zero();
        for (int i = 0; i < head_dim; ++i) {
            const Floats low = V::load_floats(keys + i * kSpan + part);
            const Floats high = V::load_floats(keys + i * kSpan + part + V::kLanes);
            for (int m = 0; m < M; ++m) {
                const Floats query = V::fill(queries[m * head_dim + i]);
                sums[m][0] = V::multiply_add(query, low, sums[m][0]);
                sums[m][1] = V::multiply_add(query, high, sums[m][1]);
            }
        }
        for (int m = 0; m < M; ++m) {
            V::store_floats(scores + m * kCachePage + part, sums[m][0]);
            V::store_floats(scores + m * kCachePage + part + V::kLanes, sums[m][1]);
        }
    }
}

// Adds `count` values [count][head_dim], each times its share [M][kCachePage], to sums [M][head_dim].
template <int M>
void add_values(const float* shares, const float* values, int count, int head_dim, float* sums) {
    constexpr int kWide = kCacheGroup / V::kLanes;
    for (int part = 0; part < head_dim; part += kCacheGroup) {
        Floats wide[M][kWide];
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < kWide; ++i) wide[m][i] = V::load_floats(sums + m * head_dim + part + i * V::kLanes);
        for (int token = 0; token < count; ++token) {
            Floats value[kWide];
            for (int i = 0; i < kWide; ++i) value[i] = V::load_floats(values + token * head_dim + part + i * V::kLanes);
            for (int m = 0; m < M; ++m) {
                const Floats share = V::fill(shares[m * kCachePage + token]);
                for (int i = 0; i < kWide; ++i) wide[m][i] = V::multiply_add(share, value[i], wide[m][i]);
            }
        }
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < kWide; ++i) V::store_floats(sums + m * head_dim + part + i * V::kLanes, wide[m][i]);
    }
}

// The same by few queries [head_dim][M], straight from the blocks of a span: what is widened is used
// once. The numbers are the same to the bit.
template <int M>
inline void multiply_coded_keys(const float* queries, const uint8_t* keys, int head_dim, float* scores) {
    const size_t block_bytes = 2 * cache_half_bytes(head_dim), each = kCachedTogether * block_bytes / head_dim;
    const uint8_t* next = keys + kBlocksAhead * block_bytes;
    constexpr int kVectors = kCachedTogether * kCacheBlock / V::kLanes;  // of tokens
    for (int first = 0; first < kSpan; first += kCachedTogether * kCacheBlock, keys += kCachedTogether * block_bytes) {
        Floats sums[M][kVectors];
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v) sums[m][v] = V::zero();
        const auto codes_of = [&](int v) { return keys + v * V::kLanes / kCacheBlock * block_bytes + v * V::kLanes % kCacheBlock; };
        const auto scales_of = [&](int v, int group) {
            const uint8_t* scales = keys + v * V::kLanes / kCacheBlock * block_bytes + head_dim * kCacheBlock;
            return reinterpret_cast<const uint16_t*>(scales) + group * kCacheBlock + v * V::kLanes % kCacheBlock;
        };
        for (int group = 0; group < head_dim / kCacheGroup; ++group) {
            Floats scale[kVectors];
            for (int v = 0; v < kVectors; ++v) scale[v] = V::load_upper_halves(scales_of(v, group));
            for (int i = group * kCacheGroup; i < (group + 1) * kCacheGroup; ++i) {
                _mm_prefetch(reinterpret_cast<const char*>(next) + i * each, _MM_HINT_T1);
                Floats key[kVectors];
                for (int v = 0; v < kVectors; ++v) key[v] = V::multiply(V::load_codes(codes_of(v) + i * kCacheBlock), scale[v]);
                for (int m = 0; m < M; ++m) {
                    const Floats query = V::fill(queries[i * M + m]);
                    for (int v = 0; v < kVectors; ++v) sums[m][v] = V::multiply_add(query, key[v], sums[m][v]);
                }
            }
        }
        next += kCachedTogether * block_bytes;
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v) V::store_floats(scores + m * kCachePage + first + v * V::kLanes, sums[m][v]);
    }
}

// As `add_values` of the blocks of a span.
template <int M>
inline void add_coded_values(const float* shares, const uint8_t* values, int head_dim, float* sums) {
    constexpr int kWide = kCacheGroup / V::kLanes;
    for (int group = 0; group < head_dim / kCacheGroup; ++group) {
        Floats wide[M][kWide];
        float* at = sums + group * kCacheGroup;
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < kWide; ++i) wide[m][i] = V::load_floats(at + m * head_dim + i * V::kLanes);
        const uint8_t* block = values;
        for (int first = 0; first < kSpan; first += kCacheBlock, block += 2 * cache_half_bytes(head_dim)) {
            const uint16_t* scales = reinterpret_cast<const uint16_t*>(block + head_dim * kCacheBlock) + group * kCacheBlock;
            alignas(64) float scale[kCacheBlock];
            for (int part = 0; part < kCacheBlock; part += V::kLanes) V::store_floats(scale + part, V::load_upper_halves(scales + part));
            const uint8_t* codes = block + group * kCacheGroup;
            for (int token = 0; token < kCacheBlock; ++token, codes += head_dim) {
                Floats value[kWide];
                for (int i = 0; i < kWide; ++i) value[i] = V::multiply(V::load_codes(codes + i * V::kLanes), V::fill(scale[token]));
                for (int m = 0; m < M; ++m) {
                    const Floats share = V::fill(shares[m * kCachePage + first + token]);
                    for (int i = 0; i < kWide; ++i) wide[m][i] = V::multiply_add(share, value[i], wide[m][i]);
                }
            }
        }
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < kWide; ++i) V::store_floats(at + m * head_dim + i * V::kLanes, wide[m][i]);
    }
}

// Calls function of the number of queries, at most M, as a type with it.
template <int M, typename Function>
inline void with_up_to(int queries, const Function& function) {
    if (queries >= M)
        function(Count<M>());
    else if constexpr (M > 1)
        with_up_to<M - 1>(queries, function);
}

// e to the power of `x`, which is not above 0; below -87 as of -87. Error below 2 units of the last bit.
inline Floats exponential(Floats x) {
    x = V::larger(V::fill(-87.0f), x);
    const Ints power = V::to_ints(V::multiply(x, V::fill(1.44269504f)));
    const Floats whole = V::to_floats(power);
    Floats rest = V::multiply_add(whole, V::fill(-0.693359375f), x);
    rest = V::multiply_add(whole, V::fill(2.12194440e-4f), rest);
    Floats sum = V::fill(1.0f / 720);
    const float factors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 6; ++i) sum = V::multiply_add(sum, rest, V::fill(factors[i]));
    return V::scale_by_power(sum, power);
}

// Turns scores into shares, of which the first `count` of `width` count, in relation to the largest
// score so far; brings earlier sums [head_dim] into relation to that.
inline void make_shares(float* scores, int count, int width, float& most, float& total, float* sums, int head_dim) {
    if (count <= 0) {
        memset(scores, 0, width * sizeof(float));
        return;
    }
    Floats largest = V::fill(most);
    for (int i = 0; i < width && i < count; i += V::kLanes)
        largest = V::larger(V::keep_first(V::load_floats(scores + i), count - i, most), largest);
    const float now = V::largest_lane(largest);
    const Floats level = V::fill(now);
    Floats sum = V::zero();
    for (int i = 0; i < width; i += V::kLanes) {
        const Floats share =
            V::keep_first(exponential(V::subtract(V::load_floats(scores + i), level)), count - i, 0.0f);
        V::store_floats(scores + i, share);
        sum = V::add_floats(sum, share);
    }
    alignas(16) float ends[4];
    _mm_store_ps(ends, V::add_quarters(sum));
    const Floats before = exponential(V::subtract(V::fill(most), level));
    total = total * V::first_lane(before) + ((ends[0] + ends[1]) + (ends[2] + ends[3]));
    for (int i = 0; i < head_dim; i += V::kLanes)
        V::store_floats(sums + i, V::multiply(V::load_floats(sums + i), before));
    most = now;
}

// `head_dim` is that of `attention`, for the compiler to know where it can.
inline __attribute__((always_inline)) void attend_of(
    const Attention& attention, int head_dim, int kv_head, int first, int count, void* scratch) {
    const int group = attention.heads / attention.kv_heads;
    const size_t block_bytes = 2 * cache_half_bytes(head_dim);
    const int queries = group * count, past = attention.past + first, end = past + count;
    float* query = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    float* wide = query + static_cast<size_t>(queries) * head_dim;  // [kSpan tokens' numbers]
    float* scores = wide + kSpan * head_dim;
    float* sums = scores + static_cast<size_t>(queries) * kCachePage;
    float* most = sums + static_cast<size_t>(queries) * head_dim;
    float* totals = most + queries;
    for (int i = 0; i < queries; ++i) {  // row by row of each head
        const size_t row = static_cast<size_t>(kv_head * group + i / count) * attention.rows + first + i % count;
        const bool is_coded = queries <= kCodedRows;
        for (int d = 0; d < head_dim; ++d)
            query[is_coded ? d * queries + i : i * head_dim + d] = attention.queries[row * head_dim + d] * attention.scale;
        most[i] = -3.402823466e38f;
        totals[i] = 0.0f;
    }
    memset(sums, 0, static_cast<size_t>(queries) * head_dim * sizeof(float));
    for (int start = 0; start < end; start += kCachePage) {
        const uint8_t* page = attention.pages[start / kCachePage];
        const int tokens = end - start < kCachePage ? end - start : kCachePage;
        const int width = (tokens + kSpan - 1) / kSpan * kSpan;
        for (int span = 0; span < width; span += kSpan) {
            const uint8_t* keys = page + cache_block_place(kv_head, span, head_dim);
            if (queries <= kCodedRows) {
                with_up_to<kCodedRows>(
                    queries, [&](auto number) { multiply_coded_keys<number.value>(query, keys, head_dim, scores + span); });
                continue;
            }
            for (int block = 0; block < kSpan; block += kCacheBlock)
                widen_keys(keys + block / kCacheBlock * block_bytes, head_dim, wide + block);
            for (int i = 0; i < queries; i += V::kManyRows)
                with_up_to<V::kManyRows>(queries - i, [&](auto number) {
                    multiply_keys<number.value>(
                        query + i * head_dim, wide, head_dim, scores + static_cast<size_t>(i) * kCachePage + span);
                });
        }
        for (int i = 0; i < queries; ++i)
            make_shares(
                scores + static_cast<size_t>(i) * kCachePage, past + i % count + 1 - start, width, most[i], totals[i],
                sums + i * head_dim, head_dim);
        for (int span = 0; span < width; span += kSpan) {
            const uint8_t* values = page + cache_block_place(kv_head, span, head_dim) + cache_half_bytes(head_dim);
            if (queries <= kCodedRows) {
                for (int i = 0; i < queries; i += kValueRows)
                    with_up_to<kValueRows>(queries - i, [&](auto number) {
                        add_coded_values<number.value>(scores + i * kCachePage + span, values, head_dim, sums + i * head_dim);
                    });
                continue;
            }
            for (int block = 0; block < kSpan; block += kCacheBlock)
                widen_values(values + block / kCacheBlock * block_bytes, head_dim, wide + block * head_dim);
            for (int i = 0; i < queries; i += kValueRows)
                with_up_to<kValueRows>(queries - i, [&](auto number) {
                    add_values<number.value>(
                        scores + static_cast<size_t>(i) * kCachePage + span, wide, kSpan, head_dim, sums + i * head_dim);
                });
        }
    }
    for (int i = 0; i < queries; ++i) {
        float* target = attention.outputs +
                        (static_cast<size_t>(first + i % count) * attention.heads + kv_head * group + i / count) * head_dim;
        const float factor = 1.0f / totals[i];
        for (int d = 0; d < head_dim; ++d) target[d] = sums[i * head_dim + d] * factor;
    }
}

void attend(const Attention& attention, int kv_head, int first, int count, void* scratch) {
    if (attention.head_dim == 128)
        attend_of(attention, 128, kv_head, first, count, scratch);
    else
        attend_of(attention, attention.head_dim, kv_head, first, count, scratch);
}

}  // namespace
