// The operator that the graph gets in the place of products with compressed weights.

#include "operators.hpp"

#include <string>
#include <vector>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "products.hpp"
#include "weights.hpp"

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
            Weights weights;
            read(i, columns, weights);
            ov::PartialShape result = activations;
            result[result.size() - 1] = weights.rows;
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
        std::vector<Product> products;
        for (size_t i = 1; i < inputs.size(); i += per_matrix()) {
            Product product = {};
            read(i, columns, product.weights);
            product.weights.codes = static_cast<const uint8_t*>(inputs[i].data());
            product.weights.scales = static_cast<const uint16_t*>(inputs[i + 1].data());
            if (has_zero_points_) product.weights.zero_points = static_cast<const uint8_t*>(inputs[i + 2].data());
            shape.back() = product.weights.rows;
            outputs[i / per_matrix()].set_shape(shape);
            product.outputs = static_cast<float*>(outputs[i / per_matrix()].data());
            products.push_back(product);
        }
        if (!rows) return true;
        const int count = static_cast<int>(products.size());
        const PreparedActivations prepared = keep_prepared(*choice_, rows, columns);
        const float* source = static_cast<const float*>(inputs[0].data());
        run_team(kLoopsPerProduct, [&](Member& member) {
            multiply(member, *choice_, prepared, products.data(), count, source, [](int) {});
        });
        return true;
    }

private:
    size_t per_matrix() const { return has_zero_points_ ? 3 : 2; }

    // The matrix whose codes are input `first`.
    void read(size_t first, int64_t columns, Weights& weights) const {
        for (size_t i = first; i < first + per_matrix(); ++i)
            NODE_VALIDATION_CHECK(
                this, get_input_element_type(i) == ov::element::u8 && get_input_partial_shape(i).is_static(), "input ", i,
                " is not uint8 of a static shape");
        const std::string problem = read_shapes(
            get_input_shape(first), get_input_shape(first + 1), has_zero_points_ ? &get_input_shape(first + 2) : nullptr, columns, weights);
        NODE_VALIDATION_CHECK(this, problem.empty(), "input ", first, " has ", problem);
        NODE_VALIDATION_CHECK(this, weights.bits == bits_, "input ", first, " has ", weights.bits, " bits, not ", bits_);
    }

    int64_t bits_ = 4;
    bool has_zero_points_ = false;
    std::string kernels_ = "auto";
    const Choice* choice_ = nullptr;
};

ov::Extension::Ptr compressed_matmul_extension() { return std::make_shared<ov::OpExtension<CompressedMatMul>>(); }

}  // namespace qwen_edge
