"""How many bytes a recipe makes of a model's weights, before any of them is read.

Counts values, scales and zero points, exceptions for single matrices heeded, in the form that
OpenVINO gets and in ONNX Runtime's. Time, memory and disk are planned in `plan.py`.
"""

from collections.abc import Callable
from math import prod

from qwen_edge.export.compress import fit_format
from qwen_edge.export.decoder import EMBEDDING_NAME, HEAD_NAME, DecoderSpec
from qwen_edge.profiles.matrix_format import FOUR_BITS, PER_CHANNEL, MatrixFormat
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.manifest import OnnxFacts

# Of the parameters, where config.json is not here yet: a safe guess.
EMBEDDING_SHARE = 0.25
_ROW_BLOCK = 128  # into which a row with one scale is cut for ONNX (onnx_weights.py)
_GUESSED_WIDTH = 2_048  # of a matrix whose shape is not known yet
ByFormat = Callable[..., int]
"""Called with a format, rows and width; returns bytes."""
_SENSITIVE = MatrixFormat("int8", symmetric=False, group_size=PER_CHANNEL)


def packed_bytes(recipe: Recipe, spec: DecoderSpec) -> int:
    """Return the bytes of a package's weights: values, scales and zero points.

    Args:
        recipe: Formats and group sizes. Of matrices that its `ratio` makes int8 only the share
            is known: sizes then are exact to one matrix.
        spec: The decoder.
    """
    total = 0.0
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 1:
            total += 4 * prod(shape)  # norms and biases stay float32
            continue
        total += _mixed(recipe, name, shape, matrix_bytes)
    return round(total)


def onnx_extra_bytes(recipe: Recipe, spec: DecoderSpec, facts: OnnxFacts) -> int:
    """Return by how much the ONNX form's weights are larger: what ONNX Runtime wants repeated.

    Scales are float32 there, and a scale per row stands once for every block; the rotary tables
    are part of the file.
    """
    extra = 0.0 if facts.is_portable else 4.0 * facts.max_context_tokens * spec.head_dim
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 2:
            extra += _mixed(recipe, name, shape, _repeated_bytes)
    return round(extra)


def matrix_bytes(wanted: MatrixFormat, rows: int, width: int) -> int:
    """Return the bytes of one matrix: values, float16 scales, zero points."""
    found = fit_format(wanted, width)
    if found.weights == "fp16":
        return 2 * rows * width
    if found.weights == "int8":
        return rows * (width + (2 if found.symmetric else 3))
    num_groups = rows * (width // found.group_size if found.group_size != PER_CHANNEL else 1)
    zero_points = 0 if found.symmetric or found.weights == "nf4" else -(-num_groups // 2)
    return rows * width // 2 + 2 * num_groups + zero_points


def embedding_bytes(recipe: Recipe, spec: DecoderSpec) -> tuple[int, int]:
    """Return the bytes of the embedding, and those of a head that is a matrix of its own."""
    shape = (spec.vocab_size, spec.hidden_size)
    embedding = matrix_bytes(recipe.matrix_format(EMBEDDING_NAME), *shape)
    head = matrix_bytes(recipe.matrix_format(HEAD_NAME), *shape)
    return embedding, 0 if spec.is_tied else head


def guess_bytes(recipe: Recipe, num_parameters: int) -> int:
    """Return the bytes of a package's weights where config.json is not here yet."""
    shape = (2, _GUESSED_WIDTH)
    layers = _share(recipe, recipe.layer_format, shape, matrix_bytes) / prod(shape)
    embedding = matrix_bytes(recipe.matrix_format(EMBEDDING_NAME), *shape) / prod(shape)
    share = EMBEDDING_SHARE
    return int(num_parameters * ((1 - share) * layers + share * embedding))


def _mixed(recipe: Recipe, name: str, shape: tuple[int, ...], count: ByFormat) -> float:
    """Return the bytes of one matrix of a recipe, by what `count` says of a format."""
    found = recipe.matrix_format(name)
    is_exception = name in (EMBEDDING_NAME, HEAD_NAME) or recipe.is_exception(name)
    return count(found, *shape) if is_exception else _share(recipe, found, shape, count)


def _share(recipe: Recipe, found: MatrixFormat, shape: tuple[int, ...], count: ByFormat) -> float:
    """Return the mean of a matrix that `ratio` may make int8."""
    if recipe.ratio == 1:
        return count(found, *shape)
    return recipe.ratio * count(found, *shape) + (1 - recipe.ratio) * count(_SENSITIVE, *shape)


def _repeated_bytes(wanted: MatrixFormat, rows: int, width: int) -> int:
    """Return what ONNX Runtime's form of one matrix has more than ours."""
    found = fit_format(wanted, width)
    if found.weights == "fp16":
        return 0
    is_row = found.group_size == PER_CHANNEL
    num_blocks = rows * -(-width // (_ROW_BLOCK if is_row else found.group_size))
    if found.weights in FOUR_BITS:
        return 2 * num_blocks
    return (4 if found.symmetric else 5) * num_blocks
