"""The page about a recipe search: what could be had, what was chosen, which matrix got what.

The same bytes for the same search. Tokens per second are left out, since they are a machine's; the
bytes that a token reads are in their place. It computes nothing; the plots are `quality/plots.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.html_page import make_facts_table, make_table, to_html, write_page
from qwen_edge.export.quality.plots import Curve, plot_curve, plot_grid
from qwen_edge.export.recipe_search import table as tables
from qwen_edge.export.recipe_search.search import SearchResult
from qwen_edge.profiles.matrix_format import MATRIX_NAMES, PER_CHANNEL, MatrixFormat
from qwen_edge.runtime.files.plain_name import RECIPE_FILE
from qwen_edge.runtime.recipe_facts import CalibrationFacts


def write_search_report(
    name: str, search: SearchResult, spec: DecoderSpec, calibration: CalibrationFacts
) -> str:
    """Return the page.

    Args:
        name: The package's.
        search: What was found.
        spec: The decoder.
        calibration: The text that the losses are expected from.
    """
    table = tables.make_table(search, spec)
    title = f"How the recipe of {name} was found"
    body = [
        f"<h1>{to_html(title)}</h1>",
        f"<p>Every matrix of the layers was measured in every format that it may have, on about "
        f"{search.num_tokens:,} tokens of calibration text ({to_html(calibration.source)}). Each "
        "line is the model that is expected to lose least at its size; the chosen one is set off. "
        "Its recipe is "
        f"<code>{to_html(RECIPE_FILE)}</code>, beside this page.</p>",
        _frontier_table(table),
        '<p class="faint">KL: what is expected of the Kullback-Leibler divergence of the '
        "package's next-token distribution from the checkpoint's, in nats, weights alone; 0 is no "
        "difference. What the package has really lost is in <code>quality.html</code>, where that "
        "was measured. Bytes a token: what is read of memory for a new token, which bounds its "
        "speed.</p>",
        "<h2>Size and loss</h2>",
        _plot(search, table),
        '<p class="faint">KL on a logarithmic scale. Points are the lines of the table, the ring '
        "is the chosen one.</p>",
        "<h2>Which matrix got which format</h2>",
        *_formats(search, spec),
        "<h2>The recipe</h2>",
        _recipe_table(search, calibration),
    ]
    return write_page(title, body)


def _frontier_table(table: tables.FrontierTable) -> str:
    per_token = tables.format_sizes([line.bytes_per_token for line in table.lines])
    rows = [
        [size, f"{line.kl:.3g}", read]
        for line, size, read in zip(table.lines, table.sizes, per_token, strict=True)
    ]
    chosen = table.lines.index(table.chosen)
    return make_table(["weights", "expected KL", "bytes a token"], rows, chosen=chosen)


def _plot(search: SearchResult, table: tables.FrontierTable) -> str:
    is_large = table.lines[-1].weights_bytes >= 10**9
    scale, unit = (1e9, "GB") if is_large else (1e6, "MB")
    points = [(point.num_bytes / scale, point.kl) for point in search.frontier.points]
    marks = [(line.weights_bytes / scale, line.kl) for line in table.lines]
    return plot_curve(
        Curve(points, marks, marks[table.lines.index(table.chosen)]),
        title="Expected KL over the size of the weights",
        x_name=f"weights, {unit}",
    )


def _formats(search: SearchResult, spec: DecoderSpec) -> list[str]:
    """Return a map of layers and kinds, what its shades mean, and the same in words."""
    found = {
        kind: [
            search.recipe.matrix_format(f"model.layers.{layer}.{kind}.weight")
            for layer in range(spec.num_layers)
        ]
        for kind in MATRIX_NAMES
    }
    ordered = sorted({one for row in found.values() for one in row}, key=_rank)
    shades = _shades(ordered)
    plot = plot_grid(
        [(kind.rpartition(".")[2], [shades[one] for one in row]) for kind, row in found.items()],
        title="Format of every matrix, by kind and layer",
        x_name="layer",
    )
    legend = " &nbsp; ".join(
        f'<span class="key-name"><span class="swatch" style="background: {_css(shades[one])}">'
        f"</span> {to_html(str(one))}</span>"
        for one in ordered
    )
    rows = [[to_html(kind.rpartition(".")[2]), _in_words(row)] for kind, row in found.items()]
    lines = "\n".join(f"<tr><td>{kind}</td><td>{words}</td></tr>" for kind, words in rows)
    return [
        plot,
        f'<p class="faint">{legend}</p>',
        f'<table class="facts">\n<tbody>\n{lines}\n</tbody>\n</table>',
    ]


def _rank(found: MatrixFormat) -> tuple[int, int]:
    """Return how exact a format is: bits, then how few weights share a scale."""
    bits = {"fp16": 16, "int8": 8}.get(found.weights, 4)
    return bits, -(found.group_size if found.group_size != PER_CHANNEL else 1 << 30)


def _shades(ordered: Sequence[MatrixFormat]) -> Mapping[MatrixFormat, tuple[str, float]]:
    """Return a colour and an opacity for each format: the stronger, the more exact."""
    shades = {}
    coarse = [one for one in ordered if _rank(one)[0] == 4]
    for index, one in enumerate(coarse):
        shades[one] = ("var(--first)", round(0.2 + 0.7 * index / max(len(coarse) - 1, 1), 2))
    for one in ordered[len(coarse) :]:
        shades[one] = ("var(--second)", 1.0 if _rank(one)[0] == 8 else 0.5)
    return shades


def _css(shade: tuple[str, float]) -> str:
    colour, opacity = shade
    return f"color-mix(in srgb, {colour} {100 * opacity:.0f}%, var(--page))"


def _in_words(row: Sequence[MatrixFormat]) -> str:
    """Return which layers have which format, the most exact last."""
    parts = []
    for one in sorted(set(row), key=_rank):
        layers = [index for index, found in enumerate(row) if found == one]
        told = "all layers" if len(layers) == len(row) else f"layers {_ranges(layers)}"
        if len(layers) == 1 and len(row) > 1:
            told = f"layer {layers[0]}"
        parts.append(to_html(f"{one}: {told}"))
    return "; ".join(parts)


def _ranges(numbers: Iterable[int]) -> str:
    """Return rising numbers with runs in short: "0, 3–7"."""
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        parts.append(f"{members[0]}" if len(members) == 1 else f"{members[0]}–{members[-1]}")
    return ", ".join(parts)


def _recipe_table(search: SearchResult, calibration: CalibrationFacts) -> str:
    recipe = search.recipe
    methods = {
        "AWQ": recipe.awq,
        "scale estimation": recipe.scale_estimation,
        "GPTQ": recipe.gptq,
    }
    return make_facts_table(
        [
            ("recipe", recipe.name),
            ("methods", ", ".join(name for name, is_used in methods.items() if is_used) or "none"),
            ("embedding", recipe.embedding),
            ("head", recipe.head),
            ("text", f"{calibration.source}, SHA-256 {calibration.sha256}"),
        ]
    )
