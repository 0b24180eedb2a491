// The operator that the graph gets in the place of products with compressed weights.

#include "operators.hpp"

#include "choices.hpp"
#include "kernels.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

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

}  // namespace

// Products of one activation with compressed matrices.
//
// Inputs: activations float32 [..., columns]; then for each matrix its codes, uint8 [rows, bytes],
// the bits of its float16 scales as bytes, uint8 [rows, 2 * groups] (the engine would widen
// float16 constants), and with zero points those, uint8 [rows, 1].
// Outputs: float32 [..., rows], one for each matrix.
// Attributes: bits, 4 or 8; zero_points, whether there are any, then bits is 8 and a row is one
// group; kernels, "auto" or a name of `qwen_edge_kernels`.
class CompressedMatMul : public ov::op::Op {
public:
    OPENVINO_OP("CompressedMatMul", "qwen_edge");

    CompressedMatMul() = default;
    CompressedMatMul(const ov::OutputVector& inputs, int64_t bits, bool has_zero_points, std::string kernels)
        : Op(inputs), bits_(bits), has_zero_points_(has_zero_points), kernels_(std::move(kernels)) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        choice_ = find_choice(kernels_);
        NODE_VALIDATION_CHECK(this, choice_ != nullptr, "this processor has no kernels named ", kernels_);
        NODE_VALIDATION_CHECK(
            this, bits_ == 8 || (bits_ == 4 && !has_zero_points_), "bits is ", bits_, ", zero_points ", has_zero_points_);
        const size_t count = get_input_size();
        NODE_VALIDATION_CHECK(this, count > per_matrix() && count % per_matrix() == 1, "has ", count, " inputs");
        NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::f32, "activations are not float32");
        const ov::PartialShape activations = get_input_partial_shape(0);
        NODE_VALIDATION_CHECK(
            this, activations.rank().is_static() && activations.size() && activations[activations.size() - 1].is_static(),
            "the activations' columns are not known");
        const int64_t columns = activations[activations.size() - 1].get_length();
        set_output_size(count / per_matrix());
        for (size_t i = 1; i < count; i += per_matrix()) {
            check_matrix(i, columns);
            ov::PartialShape result = activations;
            result[result.size() - 1] = get_input_shape(i)[0];
            set_output_type(i / per_matrix(), ov::element::f32, result);
        }
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<CompressedMatMul>(inputs, bits_, has_zero_points_, kernels_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("bits", bits_);
        visitor.on_attribute("zero_points", has_zero_points_);
        visitor.on_attribute("kernels", kernels_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        ov::Shape shape = inputs[0].get_shape();
        const int columns = static_cast<int>(shape.back());
        const int rows = static_cast<int>(inputs[0].get_size() / columns);
        std::vector<Weights> products;
        std::vector<float*> results;
        for (size_t i = 1; i < inputs.size(); i += per_matrix()) {
            const int matrix_rows = static_cast<int>(inputs[i].get_shape()[0]);
            const int groups = static_cast<int>(inputs[i + 1].get_shape()[1] / 2);
            products.push_back(
                {static_cast<const uint8_t*>(inputs[i].data()), static_cast<const uint16_t*>(inputs[i + 1].data()),
                 has_zero_points_ ? static_cast<const uint8_t*>(inputs[i + 2].data()) : nullptr, matrix_rows, columns, columns / groups, static_cast<int>(bits_)});
            shape.back() = matrix_rows;
            outputs[i / per_matrix()].set_shape(shape);
            results.push_back(static_cast<float*>(outputs[i / per_matrix()].data()));
        }
        // Isolated: a thread that waits here must not begin another product, whose memory is the same.
        if (rows)
            tbb::this_task_arena::isolate([&] {
                multiply(*choice_, products, static_cast<const float*>(inputs[0].data()), rows, results);
            });
        return true;
    }

private:
    size_t per_matrix() const { return has_zero_points_ ? 3 : 2; }

    void check_matrix(size_t input, int64_t columns) const {
        for (size_t i = input; i < input + per_matrix(); ++i)
            NODE_VALIDATION_CHECK(
                this, get_input_element_type(i) == ov::element::u8 && get_input_partial_shape(i).is_static() &&
                          get_input_shape(i).size() == 2,
                "input ", i, " is not uint8 with two static dimensions");
        const ov::Shape codes = get_input_shape(input), scales = get_input_shape(input + 1);
        const int64_t groups = static_cast<int64_t>(scales[1] / 2);
        NODE_VALIDATION_CHECK(
            this, static_cast<int64_t>(codes[1]) * 8 == columns * bits_ && codes[0] == scales[0] && scales[1] % 2 == 0,
            "input ", input, " has codes ", codes, " and scales ", scales, " for ", columns, " columns");
        const int64_t group = groups && columns % groups == 0 ? columns / groups : 0;
        NODE_VALIDATION_CHECK(
            this, columns % kColumnStep == 0 &&
                      ((bits_ == 4 && (group == 32 || group == 64)) || (group && group % kColumnStep == 0)),
            "input ", input, " has groups of ", group, " in ", columns, " columns");
        if (has_zero_points_)
            NODE_VALIDATION_CHECK(
                this, groups == 1 && get_input_shape(input + 2) == ov::Shape({codes[0], 1}), "input ", input + 2,
                " has zero points ", get_input_shape(input + 2), " for ", codes[0], " rows of ", groups, " groups");
    }

    int64_t bits_ = 4;
    bool has_zero_points_ = false;
    std::string kernels_ = "auto";
    const Choice* choice_ = nullptr;
};

ov::Extension::Ptr compressed_matmul_extension() { return std::make_shared<ov::OpExtension<CompressedMatMul>>(); }

}  // namespace qwen_edge
