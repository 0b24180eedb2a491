"""What calibration and a recipe search take: seconds, memory and disk.

Both run the model in float32, a layer at a time, so their time is that of a matrix product on this
machine, and their memory that of one layer and its sums. Constants were fitted to Qwen3-4B on two
cores: of a layer's 105 s with 65,536 tokens and GPTQ, 47 s run it, 34 s sum up products of channels
(25 s those of its widest input), 2 s look for AWQ's factors and 20 s round.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_edge.export.compress import fit_format
from qwen_edge.export.decoder import DecoderSpec, layer_prefix
from qwen_edge.export.recipe_search.candidates import needs_search
from qwen_edge.export.request import ExportRequest
from qwen_edge.profiles.recipe import Recipe

if TYPE_CHECKING:
    from qwen_edge.export.resource_plan import ExportWork

# As `recipe_search/sensitivity.py` has them, which needs an engine to be imported.
_PROBE_TOKENS, _MOMENT_TOKENS, _GPTQ_WIDTH = 1_024, 8_192, 4_096
_NUM_CANDIDATES = 5
_PROBE_RUNS, _COMPILE_S = 8, 1e-8  # short runs of a layer; seconds a weight to compile each
_SAMPLE_TOKENS = 512
_BUILT_IN_TOKENS = 16_500  # with Qwen3's tokenizer
_CHARACTERS_PER_TOKEN = 3
_SITES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
_GUESSED_WIDTHS = (2_560, 4_096, 2_560, 9_728)  # Qwen3-4B's
_SUMS_SPEED = 1.7  # of the engine's products: NumPy's have larger blocks
_AWQ_S, _ROUND_S = 2e-8, 1.3e-7  # a weight, on two cores
_HEAD_S = 0.8e-7  # a logit, with its comparison
_ROWS_AT_ONCE = 8_192  # `calibrated/moments.py`
_FLOAT = 4
_WORKING_BYTES = 400_000_000  # the engine, and activations of a sample
_SQUARES = 2  # of the widest input: sums, and those in GPTQ's order that become their factor
_LAYER_COPIES = 2  # in float32: what is read, and what the engine makes of it


@dataclass(frozen=True)
class CalibrationWork:
    """What a calibrated recipe has to do, in numbers.

    Args:
        num_tokens: Of calibration text.
        widths: Channels of the inputs whose products are summed up.
        blocks: Channels whose products are summed up together, for each of them.
        gptq: Rounds column by column.
        is_searched: Formats have to be found first.
    """

    num_tokens: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    gptq: bool
    is_searched: bool

    @property
    def sums(self) -> int:
        """Numbers in the sums of a layer; as many products a token."""
        return sum(width * block for width, block in zip(self.widths, self.blocks, strict=True))


@dataclass(frozen=True)
class Cost:
    """What a step takes."""

    seconds: float
    memory_bytes: int


def count_work(
    recipe: Recipe, request: ExportRequest, spec: DecoderSpec | None
) -> CalibrationWork | None:
    """Return what calibration has to do; None where a recipe does not calibrate.

    Args:
        recipe: The recipe.
        request: Its text, which is read by its size only.
        spec: The decoder; Qwen3-4B's widths are assumed without it.
    """
    if not recipe.is_calibrated:
        return None
    widths: tuple[int, ...] = _GUESSED_WIDTHS
    if spec is not None:
        shapes = spec.linear_shapes(0)
        widths = tuple(shapes[f"{layer_prefix(0)}.{name}.weight"][1] for name in _SITES)
    groups = (fit_format(recipe.layer_format, width).group_size for width in widths)
    blocks = widths if recipe.gptq else tuple(max(group, 1) for group in groups)
    return CalibrationWork(
        _count_tokens(request), widths, blocks, recipe.gptq, needs_search(recipe)
    )


def _count_tokens(request: ExportRequest) -> int:
    """Return about how many tokens are read, before there is a tokenizer."""
    asked = request.calibration_samples * _SAMPLE_TOKENS
    if request.calibration is None:
        return min(asked, _BUILT_IN_TOKENS)
    try:
        return min(asked, request.calibration.stat().st_size // _CHARACTERS_PER_TOKEN)
    except OSError:
        return asked  # reading it says what is wrong


def kept_bytes(work: CalibrationWork, hidden_size: int, layer_bytes: int) -> int:
    """Return the disk that work takes until the package is published, beside the target.

    Args:
        work: What is to be done.
        hidden_size: Width of the residual stream.
        layer_bytes: Packed weights of all layers.
    """
    return 2 * _FLOAT * work.num_tokens * hidden_size + layer_bytes


def cost_of_calibration(
    work: CalibrationWork, export: "ExportWork", *, products_per_s: float, slower: float
) -> Cost:
    """Return what calibrating all layers takes; memory beyond the process's own.

    Args:
        work: What is to be done.
        export: The model's sizes.
        products_per_s: Weights times rows that the engine multiplies in a second.
        slower: How much slower one core is than that of the constants.
    """
    layer_weights, num_layers = export.layer_weights, export.num_layers
    run_s = layer_weights * work.num_tokens / products_per_s
    sums_s = num_layers * work.sums * work.num_tokens / (_SUMS_SPEED * products_per_s)
    round_s = layer_weights * (_AWQ_S + _ROUND_S) * slower
    factor_s = 0.0
    if work.gptq:
        factor_s = num_layers * sum(width**3 for width in work.widths) / products_per_s
    a_layer = layer_weights // max(num_layers, 1)
    # The sums' rows wait for one large product; rounding has a second square in their place.
    waiting = min(_ROWS_AT_ONCE, work.num_tokens) * sum(work.widths)
    widest = max(width * block for width, block in zip(work.widths, work.blocks, strict=True))
    running = _LAYER_COPIES * a_layer + waiting + work.sums + widest
    rounding = a_layer + work.sums + (_SQUARES - 1) * widest
    memory = _WORKING_BYTES + _FLOAT * max(running, rounding)
    return Cost(run_s + sums_s + round_s + factor_s, memory)


def cost_of_search(
    work: CalibrationWork, export: "ExportWork", *, products_per_s: float, slower: float
) -> Cost:
    """Return what measuring each matrix in each format takes; memory beyond the process's own.

    Args:
        work: What is to be done.
        export: The model's sizes.
        products_per_s: Weights times rows that the engine multiplies in a second.
        slower: How much slower one core is than that of the constants.
    """
    layer_weights, num_layers = export.layer_weights, export.num_layers
    tokens, probes = min(_MOMENT_TOKENS, work.num_tokens), min(_PROBE_TOKENS, work.num_tokens)
    squares = [width for width in work.widths if work.gptq and width <= _GPTQ_WIDTH]
    sums = sum(width**2 for width in squares) + 128 * sum(work.widths)
    carried = probes * num_layers / 2  # every layer's go through all layers behind it
    run_s = layer_weights * (tokens + carried + _PROBE_RUNS * probes) / products_per_s
    run_s += layer_weights * _PROBE_RUNS * _COMPILE_S * slower
    run_s += num_layers * sums * tokens / (_SUMS_SPEED * products_per_s)
    round_s = layer_weights * (_AWQ_S + _ROUND_S) * slower
    factors = _NUM_CANDIDATES * 2 * sum(width**3 for width in squares)
    heads_s = (num_layers + 1) * probes * export.vocab_size * _HEAD_S * slower
    a_layer = layer_weights // max(num_layers, 1)
    hidden = export.hidden_size * (2 * tokens + probes * num_layers)
    largest = max(squares, default=0) ** 2
    waiting = tokens * sum(work.widths)
    working = max(2 * a_layer + waiting + 2 * sums, 4 * a_layer + 2 * sums + 3 * largest)
    return Cost(
        run_s + round_s + num_layers * factors / products_per_s + heads_s,
        _WORKING_BYTES + _FLOAT * (hidden + working),
    )
