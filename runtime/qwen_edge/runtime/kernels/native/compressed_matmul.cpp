// The operator that the graph gets in the place of products with compressed weights.

#include "operators.hpp"

#include <string>
#include <vector>

#include <tbb/task_arena.h>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "products.hpp"

namespace qwen_edge {

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
