// The operator that the graph gets in the place of a whole decoder layer.

#include "operators.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "attending.hpp"
#include "choices.hpp"
#include "kv_cache.hpp"
#include "products.hpp"

namespace qwen_edge {
namespace {

enum Input { kHidden, kCosines, kSines, kCache, kInputNorm, kMiddleNorm, kQueryNorm, kKeyNorm, kFirstProduct };
enum Product { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kProducts };

// Numbers between the parts of a layer, kept by the thread that runs the graph.
struct Buffers {
    float *normalised, *query, *key, *value, *turned_query, *turned_key, *attended, *residual, *gate, *up;
};

template <typename Function>
void for_each_row(int rows, const Function& function) {
    if (rows == 1)
        function(0);
    else
        tbb::parallel_for(0, rows, function);
}

}  // namespace

// A layer of a decoder: root mean square norms, grouped attention with rotary embedding over a KvCache,
// gated linear units with SiLU, two residual sums; all of one sequence.
//
// Inputs: hidden float32 [1, rows, width]; cosines and sines float32 [1, 1, rows, head_dim]; cache int32
// [2], as of CachedAttention; weights of the norms before attention, before the gate [width], of queries
// and of keys [head_dim], float32; then for each of the
// products with queries, keys, values, output, gate, up, down its codes and scales, and with zero
// points those, as of CompressedMatMul.
// Output: float32 [1, rows, width].
// Attributes: layer, of the cache; scale, of the scores; epsilon, of the norms; head_norms, whether
// queries and keys have norms; bits; zero_points; kernels, "auto" or a name of `qwen_edge_kernels`.
class DecoderLayer : public ov::op::Op {
public:
    OPENVINO_OP("DecoderLayer", "qwen_edge");

    DecoderLayer() = default;

    void validate_and_infer_types() override {
        choice_ = find_choice(kernels_);
        NODE_VALIDATION_CHECK(this, choice_ != nullptr, "this processor has no kernels named ", kernels_);
        NODE_VALIDATION_CHECK(
            this, static_cast<int>(get_input_size()) == kFirstProduct + kProducts * per_product(), "has ", get_input_size(), " inputs");
        NODE_VALIDATION_CHECK(
            this, bits_ == 8 || (bits_ == 4 && !has_zero_points_), "bits is ", bits_, ", zero_points ", has_zero_points_);
        const ov::PartialShape hidden = get_input_partial_shape(kHidden);
        NODE_VALIDATION_CHECK(
            this, hidden.rank().is_static() && hidden.size() == 3 && hidden[2].is_static(), "hidden has shape ", hidden);
        NODE_VALIDATION_CHECK(this, get_input_element_type(kCache) == ov::element::i32, "the cache is not int32");
        const ov::PartialShape cosines = get_input_partial_shape(kCosines);
        NODE_VALIDATION_CHECK(
            this, cosines.rank().is_static() && cosines.size() == 4 && cosines[3].is_static(), "cosines have shape ", cosines);
        const int64_t width = hidden[2].get_length(), head_dim = cosines[3].get_length();
        for (int i = kInputNorm; i < kFirstProduct; ++i) {
            const int64_t expected = i < kQueryNorm ? width : head_dim;
            const int64_t size = static_cast<int64_t>(ov::shape_size(get_input_shape(i)));
            NODE_VALIDATION_CHECK(this, size == expected, "input ", i, " has ", size, " numbers, not ", expected);
        }
        const int64_t heads = rows_of(kQuery), kv = rows_of(kKey), inner = rows_of(kGate);
        NODE_VALIDATION_CHECK(
            this, head_dim % (2 * kCacheGroup) == 0 && heads % head_dim == 0 && kv && kv % head_dim == 0 && heads % kv == 0 &&
                      rows_of(kValue) == kv && rows_of(kUp) == inner && rows_of(kOutput) == width && rows_of(kDown) == width,
            "its products have ", heads, ", ", kv, " and ", inner, " rows for heads of ", head_dim);
        for (int i = 0; i < kProducts; ++i) check_product(i, i == kOutput ? heads : i == kDown ? inner : width);
        set_output_type(0, ov::element::f32, hidden);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        auto copy = std::make_shared<DecoderLayer>();
        copy->set_arguments(inputs);
        copy->layer_ = layer_, copy->scale_ = scale_, copy->epsilon_ = epsilon_, copy->bits_ = bits_;
        copy->has_zero_points_ = has_zero_points_, copy->has_head_norms_ = has_head_norms_, copy->kernels_ = kernels_;
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("layer", layer_);
        visitor.on_attribute("scale", scale_);
        visitor.on_attribute("epsilon", epsilon_);
        visitor.on_attribute("head_norms", has_head_norms_);
        visitor.on_attribute("bits", bits_);
        visitor.on_attribute("zero_points", has_zero_points_);
        visitor.on_attribute("kernels", kernels_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape shape = inputs[kHidden].get_shape();
        OPENVINO_ASSERT(shape[0] == 1, "a layer computes one sequence, not ", shape[0]);
        OPENVINO_ASSERT(inputs[kCache].get_size() == 2, "the cache has no number and length");
        const int32_t* place = static_cast<const int32_t*>(inputs[kCache].data());
        const auto cache = find_cache(place[0]);
        OPENVINO_ASSERT(cache != nullptr, "there is no cache of number ", place[0]);
        outputs[0].set_shape(shape);
        if (!shape[1]) return true;
        tbb::this_task_arena::isolate([&] {
            run(inputs, *cache, place[1], static_cast<int>(shape[1]), static_cast<float*>(outputs[0].data()));
        });
        return true;
    }

private:
    int per_product() const { return has_zero_points_ ? 3 : 2; }
    int input_of(int product) const { return kFirstProduct + product * per_product(); }
    int64_t rows_of(int product) const { return static_cast<int64_t>(get_input_shape(input_of(product))[0]); }

    void check_product(int product, int64_t columns) const {
        const int first = input_of(product);
        for (int i = first; i < first + per_product(); ++i)
            NODE_VALIDATION_CHECK(
                this, get_input_element_type(i) == ov::element::u8 && get_input_shape(i).size() == 2, "input ", i,
                " is not uint8 with two dimensions");
        const ov::Shape codes = get_input_shape(first), scales = get_input_shape(first + 1);
        const int64_t groups = static_cast<int64_t>(scales[1] / 2);
        const int64_t group = groups && columns % groups == 0 ? columns / groups : 0;
        NODE_VALIDATION_CHECK(
            this, static_cast<int64_t>(codes[1]) * 8 == columns * bits_ && codes[0] == scales[0] && columns % kColumnStep == 0 &&
                      ((bits_ == 4 && (group == 32 || group == 64)) || (group && group % kColumnStep == 0)),
            "input ", first, " has codes ", codes, " and scales ", scales, " for ", columns, " columns");
        if (has_zero_points_)
            NODE_VALIDATION_CHECK(
                this, groups == 1 && get_input_shape(first + 2) == ov::Shape({codes[0], 1}), "input ", first + 2, " has zero points ",
                get_input_shape(first + 2));
    }

    Weights weights_of(const ov::TensorVector& inputs, int product, int columns) const {
        const int first = input_of(product);
        const int rows = static_cast<int>(inputs[first].get_shape()[0]);
        const int groups = static_cast<int>(inputs[first + 1].get_shape()[1] / 2);
        return {
            static_cast<const uint8_t*>(inputs[first].data()), static_cast<const uint16_t*>(inputs[first + 1].data()),
            has_zero_points_ ? static_cast<const uint8_t*>(inputs[first + 2].data()) : nullptr, rows, columns,
            columns / groups, static_cast<int>(bits_)};
    }

    void run(const ov::TensorVector& inputs, KvCache& cache, int past, int rows, float* output) const {
        const Kernels& kernels = *choice_->kernels;
        const auto numbers = [&](int i) { return static_cast<const float*>(inputs[i].data()); };
        const int width = static_cast<int>(inputs[kHidden].get_shape()[2]);
        const int head_dim = static_cast<int>(inputs[kCosines].get_shape()[3]);
        const int query_size = static_cast<int>(inputs[input_of(kQuery)].get_shape()[0]);
        const int key_size = static_cast<int>(inputs[input_of(kKey)].get_shape()[0]);
        const int inner = static_cast<int>(inputs[input_of(kGate)].get_shape()[0]);
        const int heads = query_size / head_dim, kv_heads = key_size / head_dim;
        OPENVINO_ASSERT(
            cache.kv_heads() == kv_heads && cache.head_dim() == head_dim && layer_ >= 0 && layer_ < cache.layers() && past >= 0,
            "the cache is another model's");
        const float* hidden = numbers(kHidden);
        const Buffers at = divide(rows, width, query_size, key_size, inner);
        const auto norm = [&](const float* source, int weights) {
            for_each_row(rows, [&](int row) {
                const size_t begin = static_cast<size_t>(row) * width;
                kernels.normalise(source + begin, numbers(weights), epsilon_, width, at.normalised + begin);
            });
        };
        norm(hidden, kInputNorm);
        multiply(
            *choice_, {weights_of(inputs, kQuery, width), weights_of(inputs, kKey, width), weights_of(inputs, kValue, width)},
            at.normalised, rows, {at.query, at.key, at.value});
        for_each_row(rows, [&](int row) {
            const float* cosines = numbers(kCosines) + static_cast<size_t>(row) * head_dim;
            const float* sines = numbers(kSines) + static_cast<size_t>(row) * head_dim;
            const auto turn = [&](const float* source, float* target, int count, int weights) {
                for (int head = 0; head < count; ++head) {
                    const float* from = source + (static_cast<size_t>(row) * count + head) * head_dim;
                    float* to = target + (static_cast<size_t>(head) * rows + row) * head_dim;
                    if (has_head_norms_)
                        kernels.normalise(from, numbers(weights), epsilon_, head_dim, to);
                    else
                        std::copy(from, from + head_dim, to);
                    kernels.rotate(to, cosines, sines, head_dim);
                }
            };
            turn(at.query, at.turned_query, heads, kQueryNorm);
            turn(at.key, at.turned_key, kv_heads, kKeyNorm);
        });
        uint8_t* const* pages = cache.reserve(static_cast<int>(layer_), past + rows);
        const Attention attention = {at.turned_query, at.attended, pages, past, rows, heads, kv_heads, head_dim, scale_};
        attend(kernels, {at.turned_key, at.value, true}, attention, pages);
        multiply(*choice_, {weights_of(inputs, kOutput, query_size)}, at.attended, rows, {at.residual});
        add_rows(kernels, hidden, at.residual, rows, width);
        norm(at.residual, kMiddleNorm);
        multiply(
            *choice_, {weights_of(inputs, kGate, width), weights_of(inputs, kUp, width)}, at.normalised, rows, {at.gate, at.up});
        for_each_row(rows, [&](int row) {
            const size_t begin = static_cast<size_t>(row) * inner;
            kernels.gate(at.gate + begin, at.up + begin, inner);
        });
        multiply(*choice_, {weights_of(inputs, kDown, inner)}, at.gate, rows, {output});
        add_rows(kernels, at.residual, output, rows, width);
    }

    // target += source
    static void add_rows(const Kernels& kernels, const float* source, float* target, int rows, int width) {
        for_each_row(rows, [&](int row) {
            const size_t begin = static_cast<size_t>(row) * width;
            kernels.add(source + begin, target + begin, width, target + begin);
        });
    }

    static Buffers divide(int rows, int width, int query_size, int key_size, int inner) {
        const size_t count = static_cast<size_t>(rows);
        // From a line of the cache on, as all sizes are multiples of one.
        float* next = keep<float, 5>(count * (2 * width + 3 * query_size + 3 * key_size + 2 * inner) + 16);
        next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(next) + 63) / 64 * 64);
        const auto take = [&](int size) {
            float* part = next;
            next += count * size;
            return part;
        };
        Buffers at;
        at.normalised = take(width), at.residual = take(width);
        at.query = take(query_size), at.turned_query = take(query_size), at.attended = take(query_size);
        at.key = take(key_size), at.value = take(key_size), at.turned_key = take(key_size);
        at.gate = take(inner), at.up = take(inner);
        return at;
    }

    int64_t layer_ = 0;
    float scale_ = 1.0f, epsilon_ = 1e-6f;
    int64_t bits_ = 4;
    bool has_zero_points_ = false, has_head_norms_ = true;
    std::string kernels_ = "auto";
    const Choice* choice_ = nullptr;
};

ov::Extension::Ptr decoder_layer_extension() { return std::make_shared<ov::OpExtension<DecoderLayer>>(); }

}  // namespace qwen_edge
