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

// Files of kernels use no templates or inline functions of the standard library: the linker keeps one
// copy of these for all files, and it may be one with instructions that the processor lacks.
struct Kernels {
    const char* name;
    // Columns with which rounded activations are stored.
    int (*padded_columns)(int columns);
    // Rounds row `row` of `source` [columns] into `target`.
    void (*round_row)(const float* source, const RoundedActivations& target, int row, int bits);
    // outputs [activations.rows, stride], columns `begin` to `end` (rows of weights), `begin` a multiple
    // of block_rows. A number is the same to the bit whatever is computed with it. `scratch` holds
    // scratch_bytes.
    void (*multiply)(
        const Weights& weights, const RoundedActivations& activations, int begin, int end,
        float* outputs, size_t stride, void* scratch);
    int block_rows;
    size_t (*scratch_bytes)(const Weights& weights, int rows);
};

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
