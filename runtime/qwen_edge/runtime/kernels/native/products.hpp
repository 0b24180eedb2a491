// Products of activations with several matrices at once, by a team of threads.

#pragma once

#include "choices.hpp"
#include "kernels.hpp"
#include "team.hpp"

namespace qwen_edge {

struct Product {
    Weights weights;
    float* outputs;  // [rows, weights.rows]
};

// Activations as products read them.
struct PreparedActivations {
    RoundedActivations rounded;
    uint8_t* tiles;  // null where rows are rounded
};

// Memory for up to `columns` of each row, the calling thread's until its next call.
PreparedActivations keep_prepared(const Choice& choice, int rows, int columns);

// Rows that are prepared together.
int prepared_rows(const PreparedActivations& prepared);

// Prepares rows [first, first + prepared_rows) of source [rows, columns].
void prepare(const Choice& choice, PreparedActivations& prepared, const float* source, int columns, int bits, int first);

// The same products of prepared activations, shared by the team.
void multiply_prepared(Member& member, const Choice& choice, const PreparedActivations& prepared, const Product* products, int count);

// Lets a member ask for the weights that it will begin `products` with.
void expect(Member& member, const Choice& choice, int rows, const Product* products, int count);

// Loops of `multiply`.
constexpr int kLoopsPerProduct = 2;

// outputs of each product [rows, its rows] = source [rows, columns] times its weights, which all have the same columns.
// ready(row) is called before a row of the source is read, once; `next` are `num_next` products that come after these, or null.
template <typename Ready>
void multiply(
    Member& member, const Choice& choice, PreparedActivations prepared, const Product* products, int count, const float* source,
    const Ready& ready, const Product* next = nullptr, int num_next = 0) {
    const int rows = prepared.rounded.rows, columns = products[0].weights.columns, each = prepared_rows(prepared);
    for (int first = 0, end = 0; first < count; first = end) {
        const int bits = products[first].weights.bits;
        while (end < count && products[end].weights.bits == bits) ++end;
        prepared.rounded.columns = columns;
        member.share((rows + each - 1) / each, [&](int begin, int stop) {
            for (; begin < stop; ++begin) {
                for (int row = begin * each; !first && row < (begin + 1) * each && row < rows; ++row) ready(row);
                prepare(choice, prepared, source, columns, bits, begin * each);
            }
        });
        if (end == count && next) expect(member, choice, rows, next, num_next);
        multiply_prepared(member, choice, prepared, products + first, end - first);
    }
}

}  // namespace qwen_edge
