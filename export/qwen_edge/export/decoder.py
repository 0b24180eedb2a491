"""What kind of decoder a checkpoint holds, read from its config.json alone.

`DecoderSpec` is the one description that the graph builders, the compressor and the planner
share: sizes, biases, norms, rotary embedding, and from these the name and shape of every
tensor the checkpoint must hold. It opens no weights and allocates nothing of the model's size.
Read `openvino_graph.py` next: it turns a specification into a graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from qwen_edge.errors import CheckpointError, UnsupportedArchitectureError
from qwen_edge.export.config_fields import read_bool, read_float, read_int, shown
from qwen_edge.export.rope import RopeSpec, read_rope

EMBEDDING_NAME = "model.embed_tokens.weight"
HEAD_NAME = "lm_head.weight"
FINAL_NORM_NAME = "model.norm.weight"

# Bounds far outside every published dense model: they only stop a hostile or broken config.
_MAX_LAYERS = 1_024
_MAX_WIDTH = 1 << 18
_MAX_HEADS = 4_096
_MAX_HEAD_DIM = 1_024
_MAX_VOCABULARY = 1 << 22
_MAX_POSITIONS = 1 << 26


@dataclass(frozen=True)
class _Family:
    """What one `model_type` fixes that its config.json does not say."""

    architecture: str
    has_qk_norm: bool
    # None: the config's `attention_bias` decides, for the output projection as well.
    has_qkv_bias: bool | None
    has_mlp_bias_field: bool
    default_head_dim: int | None


# Source: transformers 5.5.4, models/{qwen3,qwen2,llama}/modeling_*.py and configuration_*.py.
_FAMILIES = {
    "qwen3": _Family("Qwen3ForCausalLM", True, None, False, 128),
    "qwen2": _Family("Qwen2ForCausalLM", False, True, False, None),
    "llama": _Family("LlamaForCausalLM", False, None, True, None),
}


@dataclass(frozen=True)
class DecoderSpec:
    """The facts of one dense decoder-only architecture.

    Args:
        architecture: Class name in transformers, such as "Qwen3ForCausalLM".
        model_type: "qwen3", "qwen2" or "llama".
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_heads: Query heads; a multiple of `num_kv_heads`.
        num_kv_heads: Key and value heads.
        head_dim: Dimensions of one head, even. `num_heads * head_dim` need not be
            `hidden_size`.
        vocab_size: Rows of the embedding, padding rows included.
        rms_norm_eps: Added to the mean square.
        rope: Rotary embedding.
        max_position_embeddings: Positions the publisher vouches for.
        is_tied: The output head is the embedding.
        has_qk_norm: Queries and keys pass an RMS norm per head (Qwen3).
        has_attention_bias: Query, key and value projections have a bias.
        has_output_bias: The attention's output projection has a bias.
        has_mlp_bias: The three MLP projections have a bias.
        activation: The MLP's gate, "silu".
    """

    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeSpec
    max_position_embeddings: int
    is_tied: bool
    has_qk_norm: bool
    has_attention_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    activation: str = "silu"

    def linear_shapes(self, layer_index: int) -> dict[str, tuple[int, int]]:
        """Return the weights of one layer's seven projections, name -> (out, in)."""
        query_size = self.num_heads * self.head_dim
        kv_size = self.num_kv_heads * self.head_dim
        prefix = layer_prefix(layer_index)
        shapes = {
            "self_attn.q_proj": (query_size, self.hidden_size),
            "self_attn.k_proj": (kv_size, self.hidden_size),
            "self_attn.v_proj": (kv_size, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, query_size),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }
        return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}

    def layer_shapes(self, layer_index: int) -> dict[str, tuple[int, ...]]:
        """Return every tensor of one layer, name -> shape: projections, biases, norms."""
        prefix = layer_prefix(layer_index)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.linear_shapes(layer_index).items():
            shapes[name] = shape
            if self.has_bias(name):
                shapes[bias_name(name)] = shape[:1]
        if self.has_qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (self.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (self.head_dim,)
        shapes[f"{prefix}.input_layernorm.weight"] = (self.hidden_size,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (self.hidden_size,)
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor the checkpoint must hold, name -> shape, in graph order."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING_NAME: (self.vocab_size, self.hidden_size)}
        for layer_index in range(self.num_layers):
            shapes.update(self.layer_shapes(layer_index))
        shapes[FINAL_NORM_NAME] = (self.hidden_size,)
        if not self.is_tied:
            shapes[HEAD_NAME] = (self.vocab_size, self.hidden_size)
        return shapes

    def has_bias(self, weight_name: str) -> bool:
        """Return whether the projection with this weight has a bias beside it."""
        if ".mlp." in weight_name:
            return self.has_mlp_bias
        if weight_name.endswith(".o_proj.weight"):
            return self.has_output_bias
        return self.has_attention_bias and ".self_attn." in weight_name

    @property
    def head_weight_name(self) -> str:
        """The tensor that makes logits: the embedding where the model is tied."""
        return EMBEDDING_NAME if self.is_tied else HEAD_NAME

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        per_layer = sum(prod(shape) for shape in self.layer_shapes(0).values())
        embedding = self.vocab_size * self.hidden_size
        num_embeddings = 1 if self.is_tied else 2
        return per_layer * self.num_layers + num_embeddings * embedding + self.hidden_size

    @property
    def kv_values_per_token(self) -> int:
        """Numbers the cache holds per token, keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def layer_prefix(layer_index: int) -> str:
    """Return the name in front of every tensor and node of one layer."""
    return f"model.layers.{layer_index}"


def bias_name(weight_name: str) -> str:
    """Return the name of the bias that belongs to a projection's weight."""
    return weight_name.removesuffix(".weight") + ".bias"


def read_spec(config: Mapping[str, object]) -> DecoderSpec:
    """Read a parsed config.json into a specification.

    Args:
        config: The file's object, as transformers 4 or 5 writes it.

    Returns:
        The specification; every size within bounds and consistent with the others.

    Raises:
        UnsupportedArchitectureError: Another architecture, a feature without a graph
            (sliding window, another activation), or weights that are quantised already.
        CheckpointError: A field is missing, of the wrong type, or out of bounds.
    """
    family, model_type = _read_family(config)
    _check_features(config)
    hidden_size = read_int(config, "hidden_size", low=1, high=_MAX_WIDTH)
    num_layers = read_int(config, "num_hidden_layers", low=1, high=_MAX_LAYERS)
    num_heads = read_int(config, "num_attention_heads", low=1, high=_MAX_HEADS)
    num_kv_heads = read_int(
        config, "num_key_value_heads", low=1, high=_MAX_HEADS, default=num_heads
    )
    _check_sliding_window(config, num_layers)
    attention_bias = read_bool(config, "attention_bias", default=False)
    max_positions = read_int(config, "max_position_embeddings", low=1, high=_MAX_POSITIONS)
    spec = DecoderSpec(
        architecture=family.architecture,
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=read_int(config, "intermediate_size", low=1, high=_MAX_WIDTH),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_read_head_dim(config, family, hidden_size // num_heads),
        vocab_size=read_int(config, "vocab_size", low=1, high=_MAX_VOCABULARY),
        rms_norm_eps=read_float(config, "rms_norm_eps", low=0.0, high=1.0, default=1e-6),
        rope=read_rope(config, max_positions),
        max_position_embeddings=max_positions,
        is_tied=read_bool(config, "tie_word_embeddings", default=False),
        has_qk_norm=family.has_qk_norm,
        has_attention_bias=attention_bias if family.has_qkv_bias is None else family.has_qkv_bias,
        has_output_bias=attention_bias and family.has_qkv_bias is None,
        has_mlp_bias=family.has_mlp_bias_field and read_bool(config, "mlp_bias", default=False),
    )
    _check_heads(spec)
    return spec


def _read_family(config: Mapping[str, object]) -> tuple[_Family, str]:
    """Return the family that `model_type` and `architectures` agree on."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        found = "missing from" if model_type is None else f"{shown(model_type)} in"
        raise CheckpointError(
            f"'model_type' is {found} config.json; it must name the architecture.",
            "point to a folder with a transformers checkpoint",
            field="model_type",
        )
    architectures = config.get("architectures") or []
    named = architectures if isinstance(architectures, list) else [architectures]
    family = _FAMILIES.get(model_type)
    if family is None or (named and family.architecture not in named):
        found = ", ".join(shown(name) for name in [model_type, *named][:3])
        known = ", ".join(member.architecture for member in _FAMILIES.values())
        raise UnsupportedArchitectureError(
            f"The architecture of this checkpoint ({found}) has no native graph. Known are: "
            f"{known}.",
            "use a dense Qwen3, Qwen2, Qwen2.5 or Llama checkpoint",
            field="model_type",
            value=model_type,
        )
    return family, model_type


def _check_features(config: Mapping[str, object]) -> None:
    """Refuse what would be computed wrongly in silence."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedArchitectureError(
            f"'hidden_act' is {shown(activation)} in config.json; only 'silu' has a graph.",
            "use a checkpoint of Qwen3, Qwen2 or Llama, which use 'silu'",
            field="hidden_act",
            value=activation,
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UnsupportedArchitectureError(
            f"The weights of this checkpoint are quantised already (quant_method {shown(method)}). "
            "Quantising them a second time would add the two losses.",
            "export the original bf16 checkpoint instead",
            field="quantization_config",
            value=method,
        )


def _check_sliding_window(config: Mapping[str, object], num_layers: int) -> None:
    """Refuse a sliding window that some layer would use."""
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        is_used = any(kind != "full_attention" for kind in layer_types)
    else:
        first_layer = read_int(
            config, "max_window_layers", low=0, high=_MAX_POSITIONS, default=num_layers
        )
        is_used = (
            read_bool(config, "use_sliding_window", default=False)
            and config.get("sliding_window") is not None
            and first_layer < num_layers
        )
    if is_used:
        raise UnsupportedArchitectureError(
            "This checkpoint attends through a sliding window ('use_sliding_window' or "
            "'layer_types' in config.json), which has no graph. Full attention would differ.",
            "use a checkpoint with full attention in every layer",
            field="layer_types" if isinstance(layer_types, list) else "use_sliding_window",
        )


def _read_head_dim(config: Mapping[str, object], family: _Family, quotient: int) -> int:
    """Return the head size: stated, else the family's default, else the quotient."""
    default = family.default_head_dim or quotient
    head_dim = read_int(config, "head_dim", low=2, high=_MAX_HEAD_DIM, default=default)
    if head_dim % 2:
        raise CheckpointError(
            f"'head_dim' is {head_dim} in config.json; rotary embedding needs an even number.",
            "restore config.json from the model's publisher",
            field="head_dim",
            value=head_dim,
        )
    return head_dim


def _check_heads(spec: DecoderSpec) -> None:
    """Refuse query heads that cannot be shared out among the key and value heads."""
    if spec.num_heads % spec.num_kv_heads:
        raise CheckpointError(
            f"'num_attention_heads' is {spec.num_heads} in config.json; it must be a multiple of "
            f"'num_key_value_heads', {spec.num_kv_heads}.",
            "restore config.json from the model's publisher",
            field="num_key_value_heads",
            value=spec.num_kv_heads,
        )
