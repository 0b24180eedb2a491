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
// Activation rows up to which weights are unpacked on the way; beyond, a block is unpacked once.
constexpr int kMostFewRows = 16;

struct Weights {
    const uint8_t* codes;    // [rows, columns * bits / 8]
    const uint16_t* scales;  // float16 bits [rows, columns / group]
    // uint8 [rows], what 8-bit codes count from; then the codes are unsigned and a row is a group.
    // Null: codes are signed.
    const uint8_t* zero_points;
    int rows;
    int columns;
    int group;  // 32, 64, or a multiple of kColumnStep
    int bits;   // 4 or 8
};

// Rows of activations as whole numbers of 8 bits, in the order in which 4-bit codes come out of
// their bytes: of 128 columns the 64 even ones, then the 64 odd ones. For 8-bit weights in order.
struct RoundedActivations {
    int8_t* codes;         // [rows, columns]
    float* lane_scales;    // [rows, columns / lane], one per 32-bit lane of a dot product
    int32_t* lane_starts;  // the same shape: what takes off the offset of unsigned weight codes
    float* group_scales;   // [rows, columns / kActivationGroup]
    int32_t* group_starts;
    float* totals;  // [rows]: sum of the rounded activations
    int rows;
    int columns;
    int lane;  // columns that meet in a lane: 8 where weights have 4 bits, 4 where they have 8
};

// Files of kernels use no templates or inline functions of the standard library: the linker keeps one
// copy of these for all files, and it may be one with instructions that the processor lacks.
struct Kernels {
    const char* name;
    // Rounds row `row` of `source` [columns] into `target`.
    void (*round_row)(const float* source, const RoundedActivations& target, int row, int bits);
    // For few rows: outputs [activations.rows, stride], columns `begin` to `end` (rows of weights).
    // `scratch` holds few_scratch_bytes.
    void (*multiply_few)(
        const Weights& weights, const RoundedActivations& activations, int begin, int end,
        float* outputs, size_t stride, void* scratch);
    size_t (*few_scratch_bytes)(const Weights& weights);
    // The same for any number; `begin` is a multiple of block_rows, `scratch` holds scratch_bytes.
    void (*multiply_many)(
        const Weights& weights, const RoundedActivations& activations, int begin, int end,
        float* outputs, size_t stride, void* scratch);
    int block_rows;
    size_t (*scratch_bytes)(const Weights& weights);
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
