#include "products.hpp"

#include <algorithm>

namespace qwen_edge {
namespace {

bool uses_tiles(const Choice& choice, int rows) { return choice.uses_tiles && rows > kMostFewRows; }

// Calls `function(product, begin, end)` for all rows of all products, each by one of the team.
template <typename Function>
void for_rows(Member& member, const Product* products, int num_products, int block_rows, const Function& function) {
    const auto blocks_of = [&](int i) { return (products[i].weights.rows + block_rows - 1) / block_rows; };
    int total = 0;
    for (int i = 0; i < num_products; ++i) total += blocks_of(i);
    member.share(total, [&](int from, int to) {
        int first = 0;  // of this product's blocks
        for (int i = 0; i < num_products; first += blocks_of(i++)) {
            const int begin = std::max(from, first), end = std::min(to, first + blocks_of(i));
            if (begin < end)
                function(products[i], (begin - first) * block_rows, std::min((end - first) * block_rows, products[i].weights.rows));
        }
    });
}

}  // namespace

PreparedActivations keep_prepared(const Choice& choice, int rows, int columns) {
    PreparedActivations prepared = {};
    prepared.rounded.rows = rows;
    if (uses_tiles(choice, rows)) {
        uint8_t* memory = keep<uint8_t, 1>(amx::packed_bytes(rows, columns) + 64);
        prepared.tiles = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
        return prepared;
    }
    const size_t size = static_cast<size_t>(rows) * choice.kernels->padded_columns(columns), groups = size / kActivationGroup;
    prepared.rounded = {
        keep<int8_t, 0>(size), keep<float, 0>(groups), keep<int32_t, 0>(groups), keep<float, 1>(groups * 2),
        keep<int32_t, 1>(groups * 2), keep<float, 2>(rows), rows, columns};
    return prepared;
}

int prepared_rows(const PreparedActivations& prepared) { return prepared.tiles ? amx::kTileRows : 1; }

void prepare(const Choice& choice, PreparedActivations& prepared, const float* source, int columns, int bits, int first) {
    if (prepared.tiles)
        amx::pack_panel(source, prepared.rounded.rows, columns, first / amx::kTileRows, prepared.tiles);
    else
        choice.kernels->round_row(source + static_cast<size_t>(first) * columns, prepared.rounded, first, bits);
}

void multiply_prepared(
    Member& member, const Choice& choice, const PreparedActivations& prepared, const Product* products, int count) {
    const int rows = prepared.rounded.rows;
    if (prepared.tiles)
        return for_rows(member, products, count, amx::kBlockRows, [&](const Product& product, int begin, int end) {
            for (; begin < end; begin += amx::kBlockRows)
                amx::multiply(
                    product.weights, prepared.tiles, rows, begin, product.outputs, product.weights.rows,
                    keep<uint8_t, 2>(amx::scratch_bytes(rows)));
        });
    const Kernels& kernels = *choice.kernels;
    for_rows(member, products, count, kernels.rows_per_turn(rows), [&](const Product& product, int begin, int end) {
        kernels.multiply(
            product.weights, prepared.rounded, begin, end, product.outputs, product.weights.rows,
            keep<uint8_t, 2>(kernels.scratch_bytes(product.weights, rows)));
    });
}

void expect(Member& member, const Choice& choice, int rows, const Product* products, int count) {
    if (uses_tiles(choice, rows)) return;  // arithmetic is what they wait for
    const int block_rows = choice.kernels->rows_per_turn(rows);
    const auto blocks_of = [&](int i) { return (products[i].weights.rows + block_rows - 1) / block_rows; };
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += blocks_of(i);
    int first = static_cast<int>(total * member.number() / member.members());
    for (int i = 0; i < count; first -= blocks_of(i++)) {
        if (first >= blocks_of(i)) continue;
        const Weights& weights = products[i].weights;
        const size_t row_bytes = static_cast<size_t>(weights.columns) * weights.bits / 8;
        member.expect(
            weights.codes + static_cast<size_t>(first) * block_rows * row_bytes, weights.codes + weights.rows * row_bytes);
        return;
    }
}

}  // namespace qwen_edge
