// Products of activations with compressed weights: what each instruction set has to offer.
//
// Weights stay as they lie in the model's file: row after row, 4-bit codes two to a byte (the even
// column in the low half, two's complement), or 8-bit codes; one float16 scale per row and group
// of columns. Nothing is repacked beforehand, so a mapped file is used as it is.

#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen_edge {

// Columns that share the scale of their activations, after they were rounded to 8 bits.
constexpr int kActivationGroup = 32;
// Columns are taken in steps of this; a matrix whose columns are no multiple is not ours.
constexpr int kColumnStep = 128;
// Activation rows up to which the kernels of vectors compute also where there are matrix tiles.
constexpr int kMostFewRows = 16;

struct Weights {
    const uint8_t* codes;    // [rows, columns * bits / 8]
    const uint16_t* scales;  // float16 bits [rows, columns / group]
    // uint8 [rows], what 8-bit codes count from; then the codes are unsigned and a row is a group.
    // Null: codes are signed.
    const uint8_t* zero_points;
    int rows;
    int columns;
    int group;  // a multiple of kColumnStep; of 4 bits also 32 or 64
    int bits;   // 4 or 8
};

// Rows of activations as whole numbers of 8 bits, 32 columns with one scale: the 32 neighbours where
// weights have 4 bits; where they have 8, of 128 columns 16 and those 64 further on. Codes lie in the
// order in which 4-bit codes come out of their bytes: of 128 columns the 64 even ones, then the odd
// ones; where weights have 8 bits in order.
struct RoundedActivations {
    int8_t* codes;         // [rows, padded columns]
    float* scales;         // [rows, padded columns / kActivationGroup]
    int32_t* starts;       // the same shape: what takes off the offset of unsigned weight codes
    float* lane_scales;    // the same, each twice, in the order of a pair's sums
    int32_t* lane_starts;
    float* totals;  // [rows]: sum of the rounded activations
    int rows;
    int columns;
};

// ---- attention over a cache of rounded keys and values

// A cache grows by pages of tokens; in a page each head has blocks of tokens, first keys, then
// values: whole numbers of 8 bits and a scale for 32 of them, the upper half of a float32.
//   keys    int8 [head_dim][kCacheBlock tokens], scales uint16 [head_dim / 32][kCacheBlock]
//   values  int8 [kCacheBlock tokens][head_dim], scales uint16 [head_dim / 32][kCacheBlock]
// So products with keys have tokens in the lanes of vectors, and those with values dimensions.
constexpr int kCacheBlock = 16;
constexpr int kCachePage = 256;
constexpr int kCacheGroup = 32;

// Bytes of the keys, or of the values, of a block.
static inline size_t cache_half_bytes(int head_dim) {
    return static_cast<size_t>(head_dim) * kCacheBlock + static_cast<size_t>(head_dim / kCacheGroup) * kCacheBlock * 2;
}

static inline size_t cache_page_bytes(int kv_heads, int head_dim) {
    return static_cast<size_t>(kv_heads) * (kCachePage / kCacheBlock) * 2 * cache_half_bytes(head_dim);
}

// Where the block with `token` (of its page) of a head begins.
static inline size_t cache_block_place(int head, int token, int head_dim) {
    return (static_cast<size_t>(head) * (kCachePage / kCacheBlock) + token / kCacheBlock) * 2 * cache_half_bytes(head_dim);
}

struct Attention {
    const float* queries;         // [heads, rows, head_dim]
    float* outputs;               // [rows, heads, head_dim]
    const uint8_t* const* pages;  // of the layer
    int past;                     // tokens before the first row
    int rows;
    int heads;
    int kv_heads;
    int head_dim;  // a multiple of kCacheGroup
    float scale;   // of the products of queries and keys
};
// Rows that are attended with at once: what is widened of the cache then serves all of them.
constexpr int kAttentionRows = 8;

// Files of kernels use no templates or inline functions of the standard library: the linker keeps one
// copy of these for all files, and it may be one with instructions that the processor lacks.
struct Kernels {
    const char* name;
    // Columns with which rounded activations are stored.
    int (*padded_columns)(int columns);
    // Rounds row `row` of `source` [columns] into `target`.
    void (*round_row)(const float* source, const RoundedActivations& target, int row, int bits);
    // outputs [activations.rows, stride], columns `begin` to `end` (rows of weights), `begin` a multiple
    // of rows_per_turn. A number is the same to the bit whatever is computed with it. `scratch` holds
    // scratch_bytes.
    void (*multiply)(
        const Weights& weights, const RoundedActivations& activations, int begin, int end,
        float* outputs, size_t stride, void* scratch);
    // Rows of weights that are taken together with so many rows of activations.
    int (*rows_per_turn)(int rows);
    size_t (*scratch_bytes)(const Weights& weights, int rows);
    // Rounds key and value [head_dim] of a head into a page, as its token `token`.
    void (*store_token)(const float* key, const float* value, uint8_t* page, int head, int token, int head_dim);
    // Rows [first, first + count) of all queries that share a head of keys; count is at most
    // kAttentionRows. A row's numbers are the same to the bit whatever other rows there are.
    // `scratch` holds attention_scratch_bytes.
    void (*attend)(const Attention& attention, int kv_head, int first, int count, void* scratch);
    // Counts are multiples of kCacheGroup. Root mean square norm; `target` may be `source`.
    void (*normalise)(const float* source, const float* weights, float epsilon, int count, float* target);
    // Rotary embedding of a head in place; cosines and sines [head_dim].
    void (*rotate)(float* head, const float* cosines, const float* sines, int head_dim);
    // gate = gate * sigmoid(gate) * up
    void (*gate)(float* gate, const float* up, int count);
    // target = first + second
    void (*add)(const float* first, const float* second, int count, float* target);
};

static inline size_t attention_scratch_bytes(const Attention& attention) {
    const size_t queries = static_cast<size_t>(attention.heads / attention.kv_heads) * kAttentionRows;
    const size_t head_dim = attention.head_dim;
    return (queries * (2 * head_dim + kCachePage + 2) + 2 * kCacheBlock * head_dim + 64) * sizeof(float);
}

// Each is null where it was not built for this processor's family.
const Kernels* avx2_kernels();
const Kernels* avx2_vnni_kernels();
const Kernels* avx512_vnni_kernels();

// Matrix tiles (AMX) on bfloat16: for many rows. Activations need no rounding to 8 bits.
namespace amx {
constexpr int kBlockRows = 64;   // rows of weights to a task
constexpr int kTileRows = 16;    // activation rows in a tile
// Asks the system for leave to use tiles; false where there are none or it refuses.
bool is_available();
size_t packed_bytes(int rows, int columns);
// Packs activation rows [16 * panel, 16 * panel + 16) of `source` [rows, columns] as tiles read them.
void pack_panel(const float* source, int rows, int columns, int panel, void* packed);
size_t scratch_bytes(int rows);
// outputs [rows, stride]: columns `begin` to at most begin + kBlockRows.
void multiply(
    const Weights& weights, const void* packed, int rows, int begin, float* outputs, size_t stride,
    void* scratch);
}  // namespace amx

}  // namespace qwen_edge
