"""Measure what every recipe costs the demo model, and a copy with outliers. Last line: JSON.

    python scripts/bench_quality.py [--work DIR] [--only PATTERN] [--write-docs]

Every recipe of the catalog is exported, calibrated where it calibrates on the demo model's own
conversations from the training side, and compared with the checkpoint on conversations from the
held-out side: by weights alone, in float32. Then the package answers held-out tasks as it runs.
For every size that a 4-bit recipe comes to, `auto` gets that size as its budget. NNCF compresses
the whole model with the same samples. Ends with 1 where a figure is not as it has to be.

A folder given with `--work` keeps packages and figures, and is gone on with. Needs nncf; about
half an hour.
"""

import argparse
import gc
import json
import re
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import compare_nncf
from make_outlier_checkpoint import PLACES, plan_scaling, write_outliers
from quality_reference import CALIBRATION_SAMPLES, CHECKPOINT, ON_TASKS, ON_TEXTS, Reference
from quality_rows import (
    AUTO,
    DEMO,
    MARKS,
    NNCF,
    OUTLIERS,
    Row,
    find_misses,
    pair_up,
    replace_between_marks,
    write_tables,
)

from qwen_edge.export import export
from qwen_edge.export.calibrated.calibration import search_path
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.packed_size import packed_bytes
from qwen_edge.export.quality.layerwise import CheckpointWeights
from qwen_edge.export.quality.measure import Loss
from qwen_edge.export.quality.statistics import Estimate
from qwen_edge.export.request import ExportRequest
from qwen_edge.profiles.matrix_format import FOUR_BITS, MatrixFormat
from qwen_edge.profiles.recipe import Recipe, load_recipe, recipe_names
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.manifest import MODEL_XML
from qwen_edge.runtime.recipe_facts import RecipeFacts

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes-measured.md"
PROFILE = "core-ultra-cpu"  # all formats are legal on a CPU
VARIANTS = (("int4", 64), ("int4", 32), ("int4-gptq", 64), ("int4-gptq", 32), ("int4-gptq", -1))
"""Recipes of the catalog, and other groups for them."""
NNCF_METHODS = (("awq", "scale"), ("awq", "scale", "gptq"))
_METHOD_NAMES = {"awq": "AWQ", "scale": "scale estimation", "gptq": "GPTQ"}
STRENGTH, NUM_CHANNELS = 64, 4  # of the outliers: factors from 16 to 64, four at each place


@dataclass(frozen=True)
class Entry:
    """A recipe to be measured.

    Args:
        name: Of the catalog.
        group_size: Instead of its own; None for its own.
        aliases: Recipes of the catalog that say the same.
        limit_bytes: For `auto`: what the weights may take.
    """

    name: str
    group_size: int | None = None
    aliases: tuple[str, ...] = ()
    limit_bytes: int | None = None

    @property
    def variant(self) -> str:
        """Return what differs from the recipe, in words."""
        if self.group_size is None:
            return ""
        return ", per channel" if self.group_size == -1 else f", groups of {self.group_size}"

    @property
    def key(self) -> str:
        """Return a name for files."""
        parts = [self.name, self.group_size, self.limit_bytes]
        return "_".join(str(part) for part in parts if part is not None)


def list_entries() -> list[Entry]:
    """Return the fixed recipes, those that say the same as one."""
    groups: dict[str, list[str]] = {}
    names = [name for name in recipe_names() if name != AUTO]
    # Recipes of other tools and of single architectures last: they are aliases of general ones.
    for name in sorted(names, key=lambda name: (name.startswith(("peer-", "qwen3-")), name)):
        settings = load_recipe(name).to_manifest() | {"name": ""}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(name)
    entries = [Entry(first, aliases=tuple(others)) for first, *others in groups.values()]
    return entries + [Entry(name, group_size) for name, group_size in VARIANTS]


class Bench:
    """One checkpoint, its texts, and what was measured so far.

    Args:
        model: `DEMO` or `OUTLIERS`.
        checkpoint: Its folder.
        reference: What its function is compared with: the demo model, which has the same.
        work: Where packages and figures are kept.
        num_tasks: How many tasks each package answers.
    """

    def __init__(
        self, model: str, checkpoint: Path, reference: Reference, work: Path, num_tasks: int
    ) -> None:
        self.model = model
        self._checkpoint = checkpoint
        self._reference = reference
        self._work = work
        self._num_tasks = num_tasks
        self._kept_search = work / f"{model}-search.json"

    def measure(self, entry: Entry) -> Row:
        """Export with a recipe, compare, and ask."""
        return self._once(entry.key, lambda: self._measure(entry))

    def measure_nncf(self, methods: Sequence[str]) -> Row:
        """Compress the whole model with NNCF, and compare it; it is not asked anything."""
        return self._once("nncf-" + "-".join(methods), lambda: self._measure_nncf(methods))

    def _once(self, key: str, measure: Callable[[], Row]) -> Row:
        """Return a row that was measured before, or measure and keep it."""
        path = self._work / f"{self.model}-{key}.json"
        if path.is_file():
            content: dict[str, Any] = json.loads(path.read_bytes())
            for name, value in content.items():
                content[name] = tuple(value) if isinstance(value, list) else value
            return Row(**content)
        start = time.perf_counter()
        row = measure()
        path.write_text(json.dumps(asdict(row)), encoding="utf-8")
        told = f"KL {row.kl[0]:.5f}, {row.num_right} right, {time.perf_counter() - start:.0f} s"
        print(f"{self.model:9}{key:28}{told}", file=sys.stderr, flush=True)
        return row

    def _measure(self, entry: Entry) -> Row:
        package = self._work / f"{self.model}-{entry.key}"
        shutil.rmtree(package, ignore_errors=True)
        recipe = load_recipe(self._recipe_of(entry))
        request = ExportRequest(
            model=str(self._checkpoint),
            profile=PROFILE,
            recipe=self._recipe_of(entry),
            output=package,
            calibration=self._reference.calibration_file if recipe.is_calibrated else None,
            calibration_samples=CALIBRATION_SAMPLES,
            # Half a byte more survives decimals.
            budget=f"size<={(entry.limit_bytes + 0.5) / 1000:.4f}kB" if entry.limit_bytes else None,
            skip_quality=True,
        )
        if entry.name == AUTO and self._kept_search.is_file():
            shutil.copyfile(self._kept_search, search_path(package))

        def keep_search(step: str, done: int, total: int) -> None:
            """Keep what a search measured: it is the same for every budget."""
            del step, done, total
            if entry.name == AUTO and search_path(package).is_file():
                shutil.copyfile(search_path(package), self._kept_search)

        size = self._count_bytes(recipe, export(request, keep_search).manifest.recipe)
        loss = self._reference.measure(read_ir(package / MODEL_XML))
        gc.collect()  # the package is mapped
        num_right = self._reference.count_right(package, self._num_tasks)
        limit = entry.limit_bytes or size
        row = _make_row(self.model, entry.name, entry.variant, loss, (limit, size))
        return replace(row, aliases=entry.aliases, num_right=num_right, num_tasks=self._num_tasks)

    def _recipe_of(self, entry: Entry) -> str:
        """Return what names a recipe: the catalog's name, or a file of ours."""
        if entry.group_size is None:
            return entry.name
        path = self._work / f"{entry.key}.toml"
        text = f'extends = "{entry.name}"\ngroup_size = {entry.group_size}\n'
        path.write_text(text, encoding="utf-8")
        return str(path)

    def _count_bytes(self, recipe: Recipe, facts: RecipeFacts) -> int:
        """Return the bytes of weights, without what aligns them in a file."""
        if facts.matrices is not None:  # what a search chose
            chosen = {
                key: MatrixFormat(found.weights, found.symmetric, found.group_size)
                for key, found in facts.matrices.items()
            }
            recipe = replace(recipe, ratio=1.0, matrices=chosen)
        return packed_bytes(recipe, self._reference.spec)

    def _measure_nncf(self, methods: Sequence[str]) -> Row:
        checkpoint = open_checkpoint(self._checkpoint)
        weights = CheckpointWeights(checkpoint)
        spec = self._reference.spec
        options = Namespace(mode="int4_sym", methods=methods, group_size=128, ratio=1.0)
        samples = self._reference.calibration.samples
        loss = self._reference.measure(compare_nncf.compress_whole(spec, weights, samples, options))
        variant = "".join(f", {_METHOD_NAMES[method]}" for method in methods)
        size = packed_bytes(load_recipe("int4"), spec)  # the same formats
        return _make_row(self.model, NNCF, variant, loss, (size, size))


def _make_row(model: str, name: str, variant: str, loss: Loss, sizes: tuple[int, int]) -> Row:
    tasks, texts = loss.by_kind[ON_TASKS], loss.by_kind[ON_TEXTS]
    return Row(
        model=model,
        name=name,
        variant=variant,
        aliases=(),
        limit_bytes=sizes[0],
        weights_bytes=sizes[1],
        kl=_interval(tasks.mean_kl),
        top1=_interval(tasks.top1),
        kl_texts=_interval(texts.mean_kl),
        num_right=None,
        num_tasks=0,
    )


def _interval(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def measure_all(bench: Bench, only: re.Pattern[str]) -> list[Row]:
    """Return the rows of one checkpoint: fixed recipes, `auto` at their sizes, and NNCF's.

    Args:
        bench: The checkpoint.
        only: What an entry's key must match.
    """
    rows = [bench.measure(entry) for entry in list_entries() if only.search(entry.key)]
    coarse = [row for row in rows if load_recipe(row.name).weights in FOUR_BITS]
    if only.search(AUTO):
        sizes = sorted({row.weights_bytes for row in coarse})
        rows += [bench.measure(Entry(AUTO, limit_bytes=size)) for size in sizes]
    if only.search("nncf"):
        rows += [bench.measure_nncf(methods) for methods in NNCF_METHODS]
    return rows


def describe_figures(reference: Reference, num_tasks: int) -> str:
    """Return a sentence on what was read; the page says the rest."""
    calibration = reference.calibration
    return (
        f"Calibrated on {len(calibration.samples)} conversations ({calibration.num_tokens:,} "
        f"tokens); KL and top 1 on {reference.count_tokens(ON_TASKS):,} tokens of held-out "
        f"conversations and {reference.count_tokens(ON_TEXTS):,} of the built-in texts; "
        f"{num_tasks:,} tasks each. The copy has factors of up to {STRENGTH} on {NUM_CHANNELS} "
        "channels at each place."
    )


def run(arguments: argparse.Namespace, work: Path) -> int:
    """Measure, print, write, and return the exit code."""
    reference = Reference(work)
    outliers = work / "outlier-checkpoint"
    if not outliers.is_dir():
        plans = plan_scaling(reference.spec, PLACES, NUM_CHANNELS, STRENGTH, seed=0)
        write_outliers(CHECKPOINT, outliers, plans)
    rows = []
    for model, checkpoint in ((DEMO, CHECKPOINT), (OUTLIERS, outliers)):
        if model in arguments.models:
            bench = Bench(model, checkpoint, reference, work, arguments.tasks)
            rows += measure_all(bench, re.compile(arguments.only))
    misses = find_misses(rows)
    sentence = describe_figures(reference, arguments.tasks)
    if arguments.write_docs:
        page = PAGE.read_text(encoding="utf-8")
        page = replace_between_marks(page, f"{sentence}\n\n{write_tables(rows)}")
        PAGE.write_text(page, encoding="utf-8", newline="\n")
    else:
        print(f"{MARKS[0]}\n{sentence}\n\n{write_tables(rows)}{MARKS[1]}")
    result = {
        "rows": [asdict(row) for row in rows],
        "auto_by_fixed": {
            f"{auto.model} {fixed.label}": round(auto.kl[0] / fixed.kl[0], 4)
            for auto, fixed in pair_up(rows)
        },
        "misses": misses,
    }
    print(json.dumps(result, ensure_ascii=False))
    return 1 if misses else 0


def main() -> int:
    """Read the command line and run in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="a folder to keep packages and figures in")
    parser.add_argument("--tasks", type=int, default=300, help="that each package answers")
    parser.add_argument("--models", nargs="+", choices=(DEMO, OUTLIERS), default=(DEMO, OUTLIERS))
    parser.add_argument("--only", default="", help="a pattern for recipes, 'auto' and 'nncf'")
    parser.add_argument("--write-docs", action="store_true", help=f"into docs/{PAGE.name}")
    arguments = parser.parse_args()
    if arguments.write_docs and (arguments.only or len(arguments.models) < 2):
        parser.error("--write-docs writes the whole table; leave --only and --models away")
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
        return run(arguments, arguments.work)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return run(arguments, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
