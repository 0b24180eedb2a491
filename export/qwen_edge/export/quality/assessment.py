"""One measurement from texts to verdict: what is read, what is run, what is said of it.

Exports and the command `quality` both end here; they differ in which texts, and in who is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qwen_edge.errors import EdgeError, ParityError, join_problems
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.quality.facts import make_facts
from qwen_edge.export.quality.gate import LOST_KL, Gate, is_lost
from qwen_edge.export.quality.measure import Progress, Quality, measure_quality
from qwen_edge.export.quality.report import write_report
from qwen_edge.export.quality.runs import Runs, describe_engine
from qwen_edge.export.quality.texts import (
    MAX_OWN_TOKENS,
    MAX_TEXT_TOKENS,
    SHORT_TOKENS,
    QualityText,
    bound,
    read_built_in,
    read_own,
    shorten,
)
from qwen_edge.runtime.chat import ChatTemplate, Thinking
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.quality_facts import QualityFacts, describe_quality
from qwen_edge.runtime.text_tokenizer import TextTokenizer

_NO_WEIGHTS = (
    "What the weights cost alone is read from OpenVINO's form of the model, which this package "
    "does not hold: that reading is left out."
)


@dataclass(frozen=True)
class TextChoice:
    """What is read.

    Args:
        source: Where it is from, as the manifest says it.
        texts: At least one.
        notes: What was left out, as sentences.
    """

    source: Literal["built-in", "built-in, shortened", "own"]
    texts: Sequence[QualityText]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assessment:
    """What was found.

    Args:
        facts: For the manifest.
        quality: All figures.
        misses: What of the gate was missed, as clauses.
        notes: What was left out and why, as sentences.
    """

    facts: QualityFacts
    quality: Quality
    misses: tuple[str, ...]
    notes: tuple[str, ...]

    def report(self, manifest: Manifest) -> str:
        """Return the HTML page about it.

        Args:
            manifest: The package's.
        """
        return write_report(
            manifest, self.facts, self.quality, misses=self.misses, notes=self.notes
        )


def choose_texts(
    tokenizer: TextTokenizer,
    template: str | None,
    thinking: Thinking,
    *,
    own: Path | None,
    is_short: bool,
    max_text_tokens: int,
) -> TextChoice:
    """Return what is to be read.

    Args:
        tokenizer: Of both models.
        template: The text of the package's chat template; None for a base model.
        thinking: Whether the model thinks.
        own: A person's own text; None for the built-in ones.
        is_short: Read only the beginnings of the built-in ones.
        max_text_tokens: The shortest context that the package has anywhere.

    Raises:
        UsageError: The text cannot be read, is no text or too short.
    """
    if own is not None:
        texts = bound(read_own(own, tokenizer), max_text_tokens)
        num_tokens = sum(len(text.token_ids) for text in texts)
        is_part = num_tokens >= MAX_OWN_TOKENS or max_text_tokens < MAX_TEXT_TOKENS
        note = f"Of {own.name}, {num_tokens:,} tokens from all parts of it were read."
        return TextChoice("own", texts, (note,) if is_part else ())
    texts, notes = _read_built_in(tokenizer, template, thinking)
    texts = bound(texts, max_text_tokens)
    if is_short:
        return TextChoice("built-in, shortened", shorten(texts, SHORT_TOKENS), notes)
    return TextChoice("built-in", texts, notes)


def _read_built_in(
    tokenizer: TextTokenizer, template: str | None, thinking: Thinking
) -> tuple[list[QualityText], tuple[str, ...]]:
    """Return the built-in texts, without conversations where the template cannot write them."""
    if template is None:
        return read_built_in(tokenizer), ()
    problem = "it writes the date, and tomorrow's figures would differ"
    if "strftime_now" not in template:
        try:
            written = ChatTemplate(template, tokenizer, thinking=thinking)
            return read_built_in(tokenizer, written, thinking), ()
        except EdgeError as error:
            problem = error.problem.rstrip(".")
    note = f"Conversations are left out, because of the chat template: {problem}."
    return read_built_in(tokenizer), (note,)


def assess(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    folder: Path,
    choice: TextChoice,
    runs: Runs,
    *,
    has_openvino: bool,
    gate: Gate | None,
    progress: Progress,
) -> Assessment:
    """Measure a package.

    Args:
        spec: Of checkpoint and package.
        checkpoint: The reference.
        folder: The package.
        choice: What is read.
        runs: How the package is run.
        has_openvino: Its weights can be read from an IR.
        gate: What it has to keep to; None for nothing.
        progress: Told of every step.

    Raises:
        ParityError: Nothing could be measured, or the package gives no numbers.
        EdgeError: As `measure_quality`.
    """
    weights = None
    if has_openvino:
        from qwen_edge.export.quality.package_weights import PackageWeights

        weights = PackageWeights(folder)
    quality = measure_quality(
        spec,
        checkpoint,
        weights,
        choice.texts,
        as_run=runs.as_run,
        activations=runs.activations,
        progress=progress,
    )
    notes = (*([] if has_openvino else [_NO_WEIGHTS]), *choice.notes, *runs.notes)
    if quality.weights is None and quality.as_run is None:
        raise ParityError(
            f"Nothing of the package could be measured. {' '.join(notes)}",
            "measure it where it runs, or leave it out with --skip-quality",
        )
    facts = make_facts(
        quality,
        choice.texts,
        choice.source,
        device=describe_engine(runs),
        gate=None if gate is None else str(gate),
    )
    misses = () if gate is None else tuple(gate.find_misses(facts))
    return Assessment(facts, quality, misses, notes)


def accept_loss(assessment: Assessment) -> Assessment:
    """Return an assessment that says of a lost model that somebody wanted it so.

    Args:
        assessment: Any.
    """
    accepted = replace(assessment.facts, is_loss_accepted=is_lost(assessment.facts))
    return replace(assessment, facts=accepted)


def missed_gate(assessment: Assessment, what: str, outcome: str) -> ParityError:
    """Return the error for a package that loses more than its gate allows.

    Args:
        assessment: With misses.
        what: The package, as a message names it.
        outcome: What became of it, as sentences.
    """
    name, _ = assessment.facts.decisive
    told = f"as it runs on {assessment.facts.device}" if name == "as_run" else "by its weights"
    return ParityError(
        f"{what} loses more than the gate allows, {told}: {join_problems(assessment.misses)}. "
        f"{outcome}",
        "export with a more exact recipe, such as --recipe int8, or with a wider gate",
        gate=assessment.facts.gate,
        misses=assessment.misses,
    )


def lost_model(assessment: Assessment, what: str, outcome: str) -> ParityError:
    """Return the error for a package that is not the model it was.

    Args:
        assessment: Of a lost model.
        what: The package, as a message names it.
        outcome: What became of it, as sentences.
    """
    return ParityError(
        f"{what} has lost the model: {describe_quality(assessment.facts)}. Above {LOST_KL:g} it "
        f"answers as another model would. {outcome}",
        "export with a more exact recipe, such as --recipe int8; or seal it all the same with "
        "--accept-loss",
        kl={name: reading.kl.value for name, reading in assessment.facts.readings.items()},
    )
