#include "products.hpp"

#include <algorithm>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

namespace qwen_edge {
namespace {

// Calls `function(product, begin, end)` for all rows of all products, on all threads. A thread
// goes through neighbouring rows, as memory likes it; one that is done takes from another.
template <typename Function>
void for_rows(const std::vector<Weights>& products, int block_rows, const Function& function) {
    int total = 0;
    for (const Weights& weights : products) total += (weights.rows + block_rows - 1) / block_rows;
    tbb::parallel_for(tbb::blocked_range<int>(0, total), [&](const tbb::blocked_range<int>& blocks) {
        int first = 0;  // of this product's blocks
        for (size_t i = 0; i < products.size(); ++i) {
            const int count = (products[i].rows + block_rows - 1) / block_rows;
            const int begin = std::max(blocks.begin(), first), end = std::min(blocks.end(), first + count);
            if (begin < end)
                function(i, (begin - first) * block_rows, std::min((end - first) * block_rows, products[i].rows));
            first += count;
        }
    });
}

template <typename Function>
void run_all(int count, const Function& function) {
    tbb::parallel_for(0, count, function);
}

RoundedActivations round_all(const Kernels& kernels, const float* source, int rows, int columns, int bits) {
    const size_t size = static_cast<size_t>(rows) * kernels.padded_columns(columns);
    RoundedActivations rounded = {
        keep<int8_t, 0>(size), keep<float, 0>(size / kActivationGroup), keep<int32_t, 0>(size / kActivationGroup),
        keep<float, 1>(size / kActivationGroup * 2), keep<int32_t, 1>(size / kActivationGroup * 2), keep<float, 2>(rows),
        rows, columns};
    if (rows == 1)
        kernels.round_row(source, rounded, 0, bits);
    else
        run_all(rows, [&](int row) { kernels.round_row(source + static_cast<size_t>(row) * columns, rounded, row, bits); });
    return rounded;
}

void multiply_on_tiles(
    const std::vector<Weights>& products, const float* source, int rows, const std::vector<float*>& outputs) {
    const int columns = products[0].columns;
    uint8_t* packed = keep<uint8_t, 1>(amx::packed_bytes(rows, columns) + 64);
    packed = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(packed) + 63) / 64 * 64);
    const int panels = static_cast<int>(amx::packed_bytes(rows, columns) / (amx::kTileRows * columns * 2));
    run_all(panels, [&](int panel) { amx::pack_panel(source, rows, columns, panel, packed); });
    for_rows(products, amx::kBlockRows, [&](size_t i, int begin, int end) {
        for (; begin < end; begin += amx::kBlockRows)
            amx::multiply(
                products[i], packed, rows, begin, outputs[i], products[i].rows,
                keep<uint8_t, 2>(amx::scratch_bytes(rows)));
    });
}

}  // namespace

void multiply(
    const Choice& choice, const std::vector<Weights>& products, const float* source, int rows,
    const std::vector<float*>& outputs) {
    const Kernels& kernels = *choice.kernels;
    const int columns = products[0].columns, bits = products[0].bits;
    if (rows > kMostFewRows && choice.uses_tiles) return multiply_on_tiles(products, source, rows, outputs);
    const RoundedActivations rounded = round_all(kernels, source, rows, columns, bits);
    for_rows(products, kernels.block_rows, [&](size_t i, int begin, int end) {
        const Weights& weights = products[i];
        kernels.multiply(
            weights, rounded, begin, end, outputs[i], weights.rows,
            keep<uint8_t, 2>(kernels.scratch_bytes(weights, rows)));
    });
}

}  // namespace qwen_edge
