// The operator that the graph gets in the place of attention with a cache in the engine's state.

#include "operators.hpp"

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "attending.hpp"
#include "choices.hpp"
#include "kv_cache.hpp"

namespace qwen_edge {

// Attention of one sequence, causal, over a KvCache that grows by this call's tokens.
//
// Inputs: queries float32 [1, heads, rows, head_dim], keys [1, kv_heads, rows, head_dim], values as
// these or [1, rows, kv_heads, head_dim]; cache int32 [2]: the number of a cache, and how many
// tokens come before the first row.
// Output: float32 [1, rows, heads * head_dim].
// Attributes: layer, of the cache; scale, of the scores; values_by_row, which form values have;
// kernels, "auto" or a name of `qwen_edge_kernels`.
class CachedAttention : public ov::op::Op {
public:
    OPENVINO_OP("CachedAttention", "qwen_edge");

    CachedAttention() = default;
    CachedAttention(
        const ov::OutputVector& inputs, int64_t layer, float scale, bool values_by_row, std::string kernels)
        : Op(inputs), layer_(layer), scale_(scale), values_by_row_(values_by_row), kernels_(std::move(kernels)) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        choice_ = find_choice(kernels_);
        NODE_VALIDATION_CHECK(this, choice_ != nullptr, "this processor has no kernels named ", kernels_);
        NODE_VALIDATION_CHECK(this, get_input_size() == 4, "has ", get_input_size(), " inputs");
        const ov::PartialShape queries = get_input_partial_shape(0);
        const int kv_axis = values_by_row_ ? 2 : 1;
        for (size_t i = 0; i < 3; ++i) {
            const ov::PartialShape shape = get_input_partial_shape(i);
            NODE_VALIDATION_CHECK(
                this, get_input_element_type(i) == ov::element::f32 && shape.rank().is_static() && shape.size() == 4 &&
                          shape[3].is_static() && shape[3] == queries[3] && shape[i == 2 ? kv_axis : 1].is_static(),
                "input ", i, " has shape ", shape, " and type ", get_input_element_type(i));
        }
        NODE_VALIDATION_CHECK(this, get_input_element_type(3) == ov::element::i32, "the cache is not int32");
        const int64_t heads = queries[1].get_length(), head_dim = queries[3].get_length();
        const int64_t kv_heads = get_input_partial_shape(1)[1].get_length();
        NODE_VALIDATION_CHECK(
            this, head_dim > 0 && head_dim % kCacheGroup == 0 && kv_heads > 0 && heads % kv_heads == 0 &&
                      get_input_partial_shape(2)[kv_axis] == kv_heads,
            "has ", heads, " heads of ", head_dim, " for ", kv_heads);
        set_output_type(0, ov::element::f32, ov::PartialShape{queries[0], queries[2], heads * head_dim});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<CachedAttention>(inputs, layer_, scale_, values_by_row_, kernels_);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("layer", layer_);
        visitor.on_attribute("scale", scale_);
        visitor.on_attribute("values_by_row", values_by_row_);
        visitor.on_attribute("kernels", kernels_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape queries = inputs[0].get_shape(), keys = inputs[1].get_shape();
        OPENVINO_ASSERT(queries[0] == 1, "attention is of one sequence, not of ", queries[0]);
        OPENVINO_ASSERT(inputs[3].get_size() == 2, "the cache has no number and length");
        const int32_t* place = static_cast<const int32_t*>(inputs[3].data());
        const auto cache = find_cache(place[0]);
        OPENVINO_ASSERT(cache != nullptr, "there is no cache of number ", place[0]);
        const int rows = static_cast<int>(queries[2]);
        Attention attention = {
            static_cast<const float*>(inputs[0].data()), nullptr, nullptr, place[1], rows,
            static_cast<int>(queries[1]), static_cast<int>(keys[1]), static_cast<int>(queries[3]), scale_};
        OPENVINO_ASSERT(
            cache->kv_heads() == attention.kv_heads && cache->head_dim() == attention.head_dim && layer_ >= 0 &&
                layer_ < cache->layers() && place[1] >= 0,
            "the cache is another model's");
        outputs[0].set_shape({1, queries[2], queries[1] * queries[3]});
        if (!rows) return true;
        uint8_t* const* pages = cache->reserve(static_cast<int>(layer_), attention.past + rows);
        attention.pages = pages;
        attention.outputs = static_cast<float*>(outputs[0].data());
        const NewTokens tokens = {
            static_cast<const float*>(inputs[1].data()), static_cast<const float*>(inputs[2].data()), values_by_row_};
        run_team(kLoopsPerAttention, [&](Member& member) {
            attend(member, *choice_->kernels, tokens, attention, pages, [](int, int, int) {});
        });
        return true;
    }

private:
    int64_t layer_ = 0;
    float scale_ = 1.0f;
    bool values_by_row_ = false;
    std::string kernels_ = "auto";
    const Choice* choice_ = nullptr;
};

ov::Extension::Ptr cached_attention_extension() { return std::make_shared<ov::OpExtension<CachedAttention>>(); }

}  // namespace qwen_edge
