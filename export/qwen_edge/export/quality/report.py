"""The report on an export's quality: one HTML page that needs nothing else, light or dark.

The same bytes for the same figures: no time, host, path or script. It computes nothing; figures
come from `measure.py`, plots from `plots.py`.
"""

from collections.abc import Sequence

from qwen_edge.errors import format_bytes
from qwen_edge.export.html_page import make_facts_table, make_table, to_html, write_page
from qwen_edge.export.quality.facts import describe_figures
from qwen_edge.export.quality.gate import LOST_KL, is_lost
from qwen_edge.export.quality.measure import Loss, Quality
from qwen_edge.export.quality.plots import Line, plot_lines
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.quality_facts import (
    READING_NAMES,
    IntervalFacts,
    QualityFacts,
    ReadingFacts,
    ReadingName,
    describe_quality,
)


def write_report(
    manifest: Manifest,
    facts: QualityFacts,
    quality: Quality,
    *,
    misses: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        manifest: The package's; `files` and `quality` are not read.
        facts: What the manifest says of the quality.
        quality: All that was measured.
        misses: What of the gate was missed, as clauses.
        notes: What was left out and why, as sentences.
    """
    name, _ = facts.decisive
    loss = quality.as_run if name == "as_run" else quality.weights
    title = f"What {manifest.name} lost"
    body = [
        f"<h1>{to_html(title)}</h1>",
        f"<p>{to_html(describe_quality(facts))}.</p>",
        *_verdict(facts, misses),
        _what_was_read(facts),
        *(f'<p class="faint">{to_html(note)}</p>' for note in notes),
        "<h2>What costs how much</h2>",
        _readings_table(facts),
        '<p class="faint">Small: the interval that holds the figure in 95 of 100 draws of texts '
        "like these. KL is the Kullback-Leibler divergence of the package's next-token "
        "distribution from the checkpoint's, in nats; 0 is no difference. p99: the 99th "
        "percentile over positions. Top 1: share of positions with the same likeliest token. "
        "Top 5: share of the five likeliest that are the same.</p>",
        *(_parts_of(loss, name) if loss is not None else ()),
        *_layers(quality),
        "<h2>The package</h2>",
        _package_table(manifest, facts),
    ]
    return write_page(title, body)


def _verdict(facts: QualityFacts, misses: Sequence[str]) -> list[str]:
    lines = [f'<p class="bad">Misses the gate: {to_html(miss)}.</p>' for miss in misses]
    if facts.gate is not None and not misses:
        lines.append(f"<p>Passes the gate <code>{to_html(facts.gate)}</code>.</p>")
    if is_lost(facts):
        told = " Somebody accepted that." if facts.is_loss_accepted else ""
        lines.append(
            f'<p class="bad">A mean KL above {LOST_KL:g} means that this is not the model it was.'
            f"{told}</p>"
        )
    return lines


def _what_was_read(facts: QualityFacts) -> str:
    source = {
        "built-in": "all built-in texts",
        "built-in, shortened": "the beginnings of the built-in texts",
        "own": "a text of somebody's own",
    }[facts.text]
    expected = facts.reference_perplexity
    perplexity = "" if expected is None else f" The checkpoint's perplexity is {expected.value:g}."
    return (
        f"<p>Checkpoint and package read {facts.num_tokens:,} tokens of {source}, the checkpoint "
        f"in float32.{perplexity}</p>"
    )


def _readings_table(facts: QualityFacts) -> str:
    rows = []
    for name, reading in facts.readings.items():
        ratio = "–" if reading.perplexity_ratio is None else f"× {reading.perplexity_ratio:.4g}"
        rows.append([to_html(READING_NAMES[name]), *_cells(reading), ratio])
    columns = ["reading", "mean KL", "KL p99", "top 1", "top 5", "perplexity"]
    return make_table(columns, rows)


def _parts_of(loss: Loss, name: ReadingName) -> list[str]:
    columns = ["", "positions", "mean KL", "KL p99", "top 1", "top 5"]
    kinds = [
        [to_html(kind), f"{figures.num_positions:,}", *_cells(describe_figures(figures))]
        for kind, figures in loss.by_kind.items()
    ]
    bands = [
        [f"{first} to {end - 1}", f"{figures.num_positions:,}", *_cells(describe_figures(figures))]
        for (first, end), figures in loss.by_position.items()
    ]
    told = "as it runs" if name == "as_run" else "weights alone"
    return [
        f"<h2>By kind of text, {told}</h2>",
        make_table(["kind", *columns[1:]], kinds),
        f"<h2>By position in the text, {told}</h2>",
        make_table(["position", *columns[1:]], bands),
    ]


def _layers(quality: Quality) -> list[str]:
    if not quality.layers:
        return []
    alone = [100 * layer.alone for layer in quality.layers]
    carried = [100 * layer.carried for layer in quality.layers]
    plot = plot_lines(
        [
            Line("carried", "var(--second)", carried, is_dashed=True),
            Line("alone", "var(--first)", alone),
        ],
        title="Difference of each layer's output from the checkpoint's, in percent",
        x_name="layer",
        unit=" %",
    )
    worst = max(range(len(alone)), key=alone.__getitem__)
    return [
        "<h2>By layer, weights alone</h2>",
        plot,
        '<p class="faint"><span class="key" style="color: var(--first)"></span> alone: the layer '
        "reads what the checkpoint's layer reads &nbsp; "
        '<span class="key second" style="color: var(--second)"></span> carried: it reads what the '
        "package's layers before it gave. Norm of the difference by the norm of the checkpoint's "
        f"output. Layer {worst} loses most alone: {alone[worst]:.3g} %.</p>",
    ]


def _package_table(manifest: Manifest, facts: QualityFacts) -> str:
    recipe, weights = manifest.recipe, manifest.weights
    bits = ", ".join(f"{count:,} of {bits} bits" for bits, count in sorted(weights.bits.items()))
    size = f"{format_bytes(weights.weights_bytes)} ({weights.weights_bytes:,} bytes)"
    rows = [
        ("source", manifest.source.id),
        ("recipe", recipe.name),
        ("weights", f"{recipe.weights}, {bits}"),
        ("size", size),
        ("profile", manifest.profile.name),
    ]
    if facts.device is not None:
        rows.append(("run on", facts.device))
    rows.append(("texts", f"SHA-256 of the token ids {facts.text_sha256}"))
    return make_facts_table(rows)


def _cells(reading: ReadingFacts) -> list[str]:
    return [
        _interval(reading.kl),
        _interval(reading.kl_p99),
        _interval(reading.top1, as_percent=True),
        _interval(reading.top5, as_percent=True),
    ]


def _interval(facts: IntervalFacts, *, as_percent: bool = False) -> str:
    values = (facts.value, facts.low, facts.high)
    value, low, high = (f"{100 * v:.1f} %" if as_percent else f"{v:.3g}" for v in values)
    return f"{value}<small>{low.removesuffix(' %')} – {high}</small>"
