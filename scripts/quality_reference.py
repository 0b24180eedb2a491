"""What `bench_quality.py` measures with: the demo model's function, its texts and its tasks.

Calibration reads conversations from the side that the model was trained on, quality and tasks come
from the held-out side, each from a seed of its own. It knows nothing of recipes.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import compare_nncf
from demo_conversations import Conversation, iter_conversations, render

from qwen_edge.export.calibration_texts import CalibrationText, read_calibration
from qwen_edge.export.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.quality.layerwise import Hidden, run_checkpoint
from qwen_edge.export.quality.measure import Loss
from qwen_edge.export.quality.texts import QualityText, read_built_in
from qwen_edge.export.text_files import PackageText
from qwen_edge.runtime import load
from qwen_edge.runtime.decoding.sampling import SamplingParams

CHECKPOINT = Path(__file__).resolve().parents[1] / "export" / "qwen_edge" / "export" / "demo"
CALIBRATION_SEED, QUALITY_SEED, TASK_SEED = 1, 2, 3
CALIBRATION_SAMPLES = 128
QUALITY_TOKENS = 12_000
ON_TASKS, ON_TEXTS = "tasks", "texts"
"""Kinds of text: held-out conversations, and the built-in ones."""


class Reference:
    """The demo model's function, and the texts that everything is measured with.

    Args:
        work: Where the calibration file is written.
    """

    def __init__(self, work: Path) -> None:
        config = json.loads((CHECKPOINT / "config.json").read_bytes())
        self.spec: DecoderSpec = read_spec(config)
        self.checkpoint: Checkpoint = open_checkpoint(CHECKPOINT)
        text: PackageText = compare_nncf.read_text_of(CHECKPOINT, self.spec.vocab_size)
        self._text = text
        # As the training rendered them; the runtime's template gives the same.
        settings = json.loads((CHECKPOINT / "tokenizer_config.json").read_bytes())
        self._template: str = settings["chat_template"]
        self.calibration_file = _write_calibration(work)
        self.calibration: CalibrationText = read_calibration(
            self.calibration_file,
            text.tokenizer,
            text.chat_template,
            text.chat.thinking,
            max_samples=CALIBRATION_SAMPLES,
        )
        self.texts: list[QualityText] = [*self._read_tasks(), *self._read_texts()]
        ids = [one.token_ids for one in self.texts]
        self._expected: list[Hidden] = run_checkpoint(self.spec, self.checkpoint, ids)

    def count_tokens(self, kind: str) -> int:
        """Return how many tokens are read of a kind."""
        return sum(len(one.token_ids) for one in self.texts if one.kind == kind)

    def measure(self, model: Any) -> Loss:
        """Return what a whole model of OpenVINO's loses, computed exactly."""
        return compare_nncf.measure_whole(
            self.spec, self.checkpoint, model, self.texts, self._expected
        )

    def count_right(self, package: Path, num_tasks: int) -> int:
        """Return how many held-out tasks a package answers exactly, as it runs."""
        greedy = SamplingParams(temperature=0.0)
        num_right = 0
        with load(package) as model:
            for prompt, expected in islice(self._iterate(TASK_SEED), num_tasks):
                answer = model.generate(prompt, sampling=greedy, max_new_tokens=len(expected))
                num_right += list(answer) == expected
        return num_right

    def _iterate(self, seed: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield held-out prompts and their answers, as tokens."""
        encode = self._text.tokenizer.encode
        for conversation in iter_conversations(seed, held_out=True):
            sample = render(conversation, self._template)
            yield (
                encode(sample.prompt, allow_special=True),
                encode(sample.expected, allow_special=True),
            )

    def _read_tasks(self) -> Iterator[QualityText]:
        total = 0
        for number, (prompt, expected) in enumerate(self._iterate(QUALITY_SEED)):
            if total >= QUALITY_TOKENS:
                return
            total += len(prompt) + len(expected)
            yield QualityText(f"task {number}", ON_TASKS, (*prompt, *expected))

    def _read_texts(self) -> list[QualityText]:
        text = self._text
        found = read_built_in(text.tokenizer, text.chat_template, text.chat.thinking)
        return [replace(one, kind=ON_TEXTS) for one in found]


def _write_calibration(work: Path) -> Path:
    """Write conversations from the training side as a person would write theirs."""
    path = work / "conversations.jsonl"
    found = islice(iter_conversations(CALIBRATION_SEED, held_out=False), CALIBRATION_SAMPLES)
    lines = [json.dumps(_as_document(one), ensure_ascii=False) + "\n" for one in found]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


def _as_document(conversation: Conversation) -> dict[str, Any]:
    document: dict[str, Any] = {"messages": conversation.messages}
    return document | ({"tools": conversation.tools} if conversation.tools else {})
