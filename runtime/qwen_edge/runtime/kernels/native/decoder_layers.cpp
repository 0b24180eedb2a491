// The operator that the graph gets in the place of neighbouring decoder layers.

#include "operators.hpp"

#include <string>
#include <vector>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>

#include "attending.hpp"
#include "choices.hpp"
#include "kv_cache.hpp"
#include "products.hpp"
#include "weights.hpp"

namespace qwen_edge {
namespace {

enum Input { kHidden, kCosines, kSines, kCache, kInputs };
enum Norm { kInputNorm, kMiddleNorm, kQueryNorm, kKeyNorm, kNorms };
enum ProductOf { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kProducts };
constexpr int kPerProduct = 3;
// Each product by itself, where bits differ; attention; the last sum.
constexpr int kLoopsPerLayer = kProducts * kLoopsPerProduct + kLoopsPerAttention + 1;

struct Layer {
    const float* norms[kNorms];
    Weights weights[kProducts];
};

// Numbers between the parts of layers, of the thread that runs the graph.
struct Buffers {
    float *hidden, *normalised, *added, *query, *turned_query, *attended, *key, *value, *turned_key, *gate, *up;
};

}  // namespace

// Neighbouring layers of a decoder. Each: root mean square norm, grouped attention with rotary
// embedding over a KvCache, sum with what came in; norm, gated linear unit with SiLU, sum. Of one sequence.
//
// Inputs: hidden float32 [1, rows, width]; cosines and sines float32 [1, 1, rows, head_dim]; cache int32
// [2], as of CachedAttention. When it is made also constants, for each layer: float32 weights of the
// norms before attention, before the gate [width], and with head_norms of queries and of keys
// [head_dim]; then for each of the products with queries, keys, values, output, gate, up, down uint8
// codes and scales, as of CompressedMatMul, and zero points [rows, 1] or none [0]. The operator takes
// these over: the engine would look at all inputs again for every call, 0.2 ms a layer.
// Output: float32 [1, rows, width].
// Attributes: first_layer and layers, of the cache; scale, of the scores; epsilon, of the norms;
// head_norms, whether queries and keys have norms; kernels, "auto" or a name of `qwen_edge_kernels`.
class DecoderLayers : public ov::op::Op {
public:
    OPENVINO_OP("DecoderLayers", "qwen_edge");

    DecoderLayers() = default;

    void validate_and_infer_types() override {
        choice_ = find_choice(kernels_);
        NODE_VALIDATION_CHECK(this, choice_ != nullptr, "this processor has no kernels named ", kernels_);
        if (constants_.empty()) take_constants();
        NODE_VALIDATION_CHECK(this, get_input_size() == kInputs, "has ", get_input_size(), " inputs");
        const ov::PartialShape hidden = get_input_partial_shape(kHidden), cosines = get_input_partial_shape(kCosines);
        NODE_VALIDATION_CHECK(
            this, hidden.rank().is_static() && hidden.size() == 3 && hidden[2] == width_, "hidden has shape ", hidden);
        NODE_VALIDATION_CHECK(
            this, cosines.rank().is_static() && cosines.size() == 4 && cosines[3] == head_dim_, "cosines have shape ", cosines);
        NODE_VALIDATION_CHECK(this, get_input_element_type(kCache) == ov::element::i32, "the cache is not int32");
        set_output_type(0, ov::element::f32, hidden);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        auto copy = std::make_shared<DecoderLayers>();
        copy->set_arguments(inputs);
        copy->first_layer_ = first_layer_, copy->num_layers_ = num_layers_;
        copy->scale_ = scale_, copy->epsilon_ = epsilon_, copy->has_head_norms_ = has_head_norms_, copy->kernels_ = kernels_;
        copy->constants_ = constants_, copy->layers_ = layers_;
        copy->width_ = width_, copy->head_dim_ = head_dim_;
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("first_layer", first_layer_);
        visitor.on_attribute("layers", num_layers_);
        visitor.on_attribute("scale", scale_);
        visitor.on_attribute("epsilon", epsilon_);
        visitor.on_attribute("head_norms", has_head_norms_);
        visitor.on_attribute("kernels", kernels_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const ov::Shape shape = inputs[kHidden].get_shape();
        OPENVINO_ASSERT(shape[0] == 1, "layers compute one sequence, not ", shape[0]);
        OPENVINO_ASSERT(inputs[kCache].get_size() == 2, "the cache has no number and length");
        const int32_t* place = static_cast<const int32_t*>(inputs[kCache].data());
        const auto cache = find_cache(place[0]);
        OPENVINO_ASSERT(cache != nullptr, "there is no cache of number ", place[0]);
        const Layer& first = layers_.front();
        OPENVINO_ASSERT(
            cache->head_dim() == head_dim_ && cache->kv_heads() * head_dim_ == first.weights[kKey].rows && first_layer_ >= 0 &&
                first_layer_ + num_layers_ <= cache->layers() && place[1] >= 0,
            "the cache is another model's");
        outputs[0].set_shape(shape);
        if (!shape[1]) return true;
        Call call = {*this, static_cast<int>(shape[1]), place[1], {}, {}, {}, nullptr, nullptr, nullptr};
        call.source = static_cast<const float*>(inputs[kHidden].data());
        call.cosines = static_cast<const float*>(inputs[kCosines].data());
        call.sines = static_cast<const float*>(inputs[kSines].data());
        for (int layer = 0; layer < num_layers_; ++layer)
            call.pages.push_back(cache->reserve(static_cast<int>(first_layer_) + layer, call.past + call.rows));
        call.at = divide(call.rows, static_cast<float*>(outputs[0].data()));
        call.prepared = keep_prepared(*choice_, call.rows, most_columns());
        run_team(static_cast<int>(num_layers_) * kLoopsPerLayer, [&](Member& member) { call.run(member); });
        return true;
    }

private:
    // What the members of a team need to know of a call.
    struct Call {
        const DecoderLayers& op;
        int rows, past;
        std::vector<uint8_t* const*> pages;  // of each layer
        Buffers at;
        PreparedActivations prepared;
        const float *source, *cosines, *sines;

        void run(Member& member) const {
            const int count = static_cast<int>(op.layers_.size());
            for (int i = 0; i < count; ++i) run_layer(member, i, i + 1 < count ? &op.layers_[i + 1] : nullptr);
            member.share(rows, [&](int row, int end) {
                for (; row < end; ++row) add(row);
            });
        }

        void run_layer(Member& member, int index, const Layer* following) const {
            const Layer& layer = op.layers_[index];
            const Kernels& kernels = *op.choice_->kernels;
            const Weights* weights = layer.weights;
            const Product queries[] = {
                {weights[kQuery], at.query}, {weights[kKey], at.key}, {weights[kValue], at.value}};
            const Product output[] = {{weights[kOutput], at.added}};
            const Product gates[] = {{weights[kGate], at.gate}, {weights[kUp], at.up}};
            const Product down[] = {{weights[kDown], at.added}};
            const auto multiply_by = [&](const Product* products, int number, const float* from, const auto& ready,
                                         const Product* next, int num_next) {
                multiply(member, *op.choice_, prepared, products, number, from, ready, next, num_next);
            };
            multiply_by(
                queries, 3, at.normalised,
                [&](int row) {
                    if (index)
                        add(row);
                    else
                        std::copy(source + begin_of(row), source + begin_of(row + 1), at.hidden + begin_of(row));
                    normalise(row, layer.norms[kInputNorm]);
                },
                output, 1);
            attend_in(member, layer, pages[index]);
            multiply_by(output, 1, at.attended, [](int) {}, gates, 2);
            multiply_by(
                gates, 2, at.normalised,
                [&](int row) {
                    add(row);
                    normalise(row, layer.norms[kMiddleNorm]);
                },
                down, 1);
            const int inner = weights[kDown].columns;
            const Product next[] = {
                {following ? following->weights[kQuery] : weights[kQuery], nullptr},
                {following ? following->weights[kKey] : weights[kKey], nullptr},
                {following ? following->weights[kValue] : weights[kValue], nullptr}};
            multiply_by(
                down, 1, at.gate,
                [&](int row) {
                    const size_t begin = static_cast<size_t>(row) * inner;
                    kernels.gate(at.gate + begin, at.up + begin, inner);
                },
                following ? next : nullptr, 3);
        }

        void attend_in(Member& member, const Layer& layer, uint8_t* const* layer_pages) const {
            const Kernels& kernels = *op.choice_->kernels;
            const int head_dim = op.head_dim_, heads = layer.weights[kQuery].rows / head_dim;
            const int kv_heads = layer.weights[kKey].rows / head_dim, group = heads / kv_heads;
            const auto turn = [&](const float* from, float* to, int count, int head, int row, const float* norm) {
                from += (static_cast<size_t>(row) * count + head) * head_dim;
                to += (static_cast<size_t>(head) * rows + row) * head_dim;
                if (norm)
                    kernels.normalise(from, norm, op.epsilon_, head_dim, to);
                else
                    std::copy(from, from + head_dim, to);
                const size_t angle = static_cast<size_t>(row) * head_dim;
                kernels.rotate(to, cosines + angle, sines + angle, head_dim);
            };
            const Attention attention = {at.turned_query, at.attended, layer_pages, past,     rows,
                                         heads,           kv_heads,    head_dim,    op.scale_};
            attend(
                member, kernels, {at.turned_key, at.value, true}, attention, layer_pages, [&](int head, int first, int count) {
                    for (int row = first; row < first + count; ++row) {
                        for (int i = head * group; i < (head + 1) * group; ++i)
                            turn(at.query, at.turned_query, heads, i, row, layer.norms[kQueryNorm]);
                        turn(at.key, at.turned_key, kv_heads, head, row, layer.norms[kKeyNorm]);
                    }
                });
        }

        size_t begin_of(int row) const { return static_cast<size_t>(row) * op.width_; }

        void add(int row) const {
            float* hidden = at.hidden + begin_of(row);
            op.choice_->kernels->add(hidden, at.added + begin_of(row), op.width_, hidden);
        }

        void normalise(int row, const float* norm) const {
            const size_t begin = begin_of(row);
            op.choice_->kernels->normalise(at.hidden + begin, norm, op.epsilon_, op.width_, at.normalised + begin);
        }
    };

    int constants_per_layer() const { return (has_head_norms_ ? 4 : 2) + kProducts * kPerProduct; }

    void take_constants() {
        const size_t count = get_input_size();
        NODE_VALIDATION_CHECK(
            this, num_layers_ > 0 && count == static_cast<size_t>(kInputs + num_layers_ * constants_per_layer()), "has ", count,
            " inputs for ", num_layers_, " layers");
        for (size_t i = kInputs; i < count; ++i) {
            const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(get_input_node_shared_ptr(i));
            NODE_VALIDATION_CHECK(this, constant != nullptr, "input ", i, " is no constant");
            constants_.push_back(constant);
        }
        const int norms = has_head_norms_ ? 4 : 2;
        width_ = static_cast<int>(ov::shape_size(constants_[0]->get_shape()));
        const int head_dim = static_cast<int>(get_input_partial_shape(kCosines)[3].get_length());
        head_dim_ = head_dim;
        for (int64_t i = 0; i < num_layers_; ++i) {
            const auto* const constants = &constants_[i * constants_per_layer()];
            Layer layer = {};
            for (int norm = 0; norm < norms; ++norm) layer.norms[norm] = norm_of(*constants[norm], norm < kQueryNorm ? width_ : head_dim);
            const auto read = [&](int product, int columns) {
                layer.weights[product] = weights_of(constants + norms + product * kPerProduct, columns);
                return layer.weights[product].rows;
            };
            const int heads = read(kQuery, width_), kv = read(kKey, width_), inner = read(kGate, width_);
            NODE_VALIDATION_CHECK(
                this, head_dim > 0 && head_dim % (2 * kCacheGroup) == 0 && heads % head_dim == 0 && kv && kv % head_dim == 0 &&
                          heads % kv == 0 && read(kValue, width_) == kv && read(kUp, width_) == inner &&
                          read(kOutput, heads) == width_ && read(kDown, inner) == width_,
                "its products have ", heads, ", ", kv, " and ", inner, " rows for heads of ", head_dim);
            for (int product = 0; i && product < kProducts; ++product)
                NODE_VALIDATION_CHECK(
                    this, layer.weights[product].rows == layers_[0].weights[product].rows, "its layers have different sizes");
            layers_.push_back(layer);
        }
        const ov::OutputVector kept = {input_value(kHidden), input_value(kCosines), input_value(kSines), input_value(kCache)};
        set_arguments(kept);
    }

    const float* norm_of(const ov::op::v0::Constant& constant, int size) const {
        NODE_VALIDATION_CHECK(
            this, constant.get_element_type() == ov::element::f32 && ov::shape_size(constant.get_shape()) == static_cast<size_t>(size),
            "a norm has shape ", constant.get_shape(), " and type ", constant.get_element_type(), ", not ", size, " numbers");
        return constant.get_data_ptr<float>();
    }

    Weights weights_of(const std::shared_ptr<ov::op::v0::Constant>* constants, int columns) const {
        for (int i = 0; i < kPerProduct; ++i)
            NODE_VALIDATION_CHECK(this, constants[i]->get_element_type() == ov::element::u8, "weights are not uint8");
        const bool has_zero_points = ov::shape_size(constants[2]->get_shape()) != 0;
        Weights weights;
        const std::string problem = read_shapes(
            constants[0]->get_shape(), constants[1]->get_shape(), has_zero_points ? &constants[2]->get_shape() : nullptr, columns, weights);
        NODE_VALIDATION_CHECK(this, problem.empty(), "has ", problem);
        weights.codes = constants[0]->get_data_ptr<uint8_t>();
        weights.scales = reinterpret_cast<const uint16_t*>(constants[1]->get_data_ptr<uint8_t>());
        weights.zero_points = has_zero_points ? constants[2]->get_data_ptr<uint8_t>() : nullptr;
        return weights;
    }

    int most_columns() const {
        int most = 0;
        for (const Weights& weights : layers_.front().weights) most = std::max(most, weights.columns);
        return most;
    }

    Buffers divide(int rows, float* output) const {
        const Weights* weights = layers_.front().weights;
        const int query_size = weights[kQuery].rows, key_size = weights[kKey].rows, inner = weights[kGate].rows;
        const size_t count = static_cast<size_t>(rows);
        // From a line of the cache on, as all sizes are multiples of one.
        float* next = keep<float, 5>(count * (2 * width_ + 3 * query_size + 3 * key_size + 2 * inner) + 16);
        next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(next) + 63) / 64 * 64);
        const auto take = [&](int size) {
            float* part = next;
            next += count * size;
            return part;
        };
        Buffers at;
        at.hidden = output;
        at.normalised = take(width_), at.added = take(width_);
        at.query = take(query_size), at.turned_query = take(query_size), at.attended = take(query_size);
        at.key = take(key_size), at.value = take(key_size), at.turned_key = take(key_size);
        at.gate = take(inner), at.up = take(inner);
        return at;
    }

    int64_t first_layer_ = 0, num_layers_ = 0;
    float scale_ = 1.0f, epsilon_ = 1e-6f;
    bool has_head_norms_ = true;
    std::string kernels_ = "auto";
    const Choice* choice_ = nullptr;
    // What the engine does not see: where the weights are, and what keeps them there.
    std::vector<std::shared_ptr<ov::op::v0::Constant>> constants_;
    std::vector<Layer> layers_;
    int width_ = 0, head_dim_ = 0;
};

ov::Extension::Ptr decoder_layers_extension() { return std::make_shared<ov::OpExtension<DecoderLayers>>(); }

}  // namespace qwen_edge
