"""Compare what is planned with what happens: exports and runs of three sizes.

    python scripts/check_plans.py [--shape qwen3-0.6b …] [--recipe int4] [--profile generic-x86]

For each shape it writes a checkpoint with random weights, plans its export, exports it in a
process of its own, plans a run of the package and runs it: a prompt of some 400 tokens, an answer
of 64. Memory has to be within 10 % of the plan and time within 25 %; the last line is one JSON
document, and the exit code 1 where a figure is further off. Nothing else should run meanwhile.
Needs twice a checkpoint's size of disk (Qwen3-4B: 13 GB) and removes what it wrote.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_export import read_through
from make_random_checkpoint import SHAPES, write_checkpoint
from process_memory import MemorySampler

from qwen_edge.export import ExportRequest, prepare_export
from qwen_edge.export.resource_plan import measure_speeds
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.package import read_manifest
from qwen_edge.runtime.resources.plan import add_times, plan_memory

MEMORY_LIMIT, TIME_LIMIT = 0.10, 0.25
DEFAULT_SHAPES = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
NEW_TOKENS = 64
SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank today. "
PROMPT = SENTENCE * 26  # about 400 tokens


@dataclass(frozen=True)
class Check:
    """One figure, planned and measured."""

    what: str
    planned: float
    measured: float
    limit: float

    @property
    def error(self) -> float:
        """How far the plan is off, as a share of what was measured; negative is too little."""
        return self.planned / self.measured - 1

    @property
    def is_good(self) -> bool:
        """Whether the plan is within the limit."""
        return abs(self.error) <= self.limit


def run_command(
    arguments: list[str], environment: dict[str, str]
) -> tuple[float, int, dict[str, Any]]:
    """Run one command line and return its seconds, its peak of private memory, and its JSON."""
    command = [sys.executable, "-m", "qwen_edge.cli", *arguments, "--json"]
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, env=environment)
        with MemorySampler(process.pid) as memory:
            code = process.wait()
        seconds = time.monotonic() - start
        output.seek(0)
        text = output.read()
    if code:
        sys.exit(f"{' '.join(arguments[:2])} ended with exit code {code}")
    return seconds, memory.private_bytes, json.loads(text)


def check_export(
    checkpoint: Path, package: Path, options: argparse.Namespace, environment: dict[str, str]
) -> list[Check]:
    """Plan an export, carry it out, and compare."""
    read_through(checkpoint)
    request = ExportRequest(
        model=str(checkpoint),
        profile=options.profile,
        recipe=options.recipe,
        format=options.format,
        output=package,
    )
    prepared = prepare_export(request)
    recipe = prepared.resolved.recipe
    speeds = measure_speeds(recipe, prepared.source, prepared.spec, package)
    plan = prepared.plan.with_speeds(speeds)
    print(f"  {speeds}", file=sys.stderr)
    for phase in plan.phases:
        print(f"  {phase.name:<18} {phase.seconds:6.1f} s", file=sys.stderr)
    peak_bytes = plan.peak_bytes(probe_hardware().available_memory_bytes)
    arguments = ["export", str(checkpoint), "--profile", options.profile]
    arguments += ["--recipe", options.recipe, "--format", options.format]
    seconds, memory_bytes, _ = run_command([*arguments, "--output", str(package)], environment)
    written = sum(path.stat().st_size for path in package.iterdir())
    return [
        Check("export seconds", plan.seconds, seconds, TIME_LIMIT),
        Check("export memory", peak_bytes, memory_bytes, MEMORY_LIMIT),
        Check("package size", plan.package_bytes, written, MEMORY_LIMIT),
    ]


def check_run(package: Path, environment: dict[str, str]) -> list[Check]:
    """Plan a run, carry it out, and compare."""
    manifest = read_manifest(package)
    plan = add_times(package, manifest, plan_memory(package, manifest))[0]
    if plan.time is None:
        sys.exit(f"there is no time in the plan: {plan.problem}")
    print(f"  {plan.time}", file=sys.stderr)
    arguments = ["run", str(package), PROMPT, "--max-new-tokens", str(NEW_TOKENS)]
    arguments += ["--no-think", "--no-speculate", "--temperature", "0"]
    seconds, memory_bytes, answer = run_command(arguments, environment)
    prompt, new = answer["prompt_tokens"], answer["new_tokens"]
    planned_s = plan.time.load_s + plan.time.hash_s + plan.time.answer_s(prompt, new)
    planned_bytes = plan.memory.private_bytes_at(prompt + new)
    prompt_s, answer_s = plan.time.prompt_s(prompt), plan.time.answer_s(prompt, new)
    measured_s = answer["total_s"]
    print(
        f"  prompt {prompt} tokens: planned {prompt_s:.2f} s, first token after "
        f"{answer['ttft_s']:.2f} s; answer {new} tokens: planned {answer_s:.2f} s, measured "
        f"{measured_s:.2f} s",
        file=sys.stderr,
    )
    return [
        Check("run seconds", planned_s, seconds, TIME_LIMIT),
        Check("run memory", planned_bytes, memory_bytes, MEMORY_LIMIT),
    ]


def main() -> None:
    """Check every shape, and print what is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES))
    parser.add_argument("--checkpoint", type=Path, help="one that is there, instead of a shape")
    parser.add_argument("--recipe", default="int4-awq")
    parser.add_argument("--profile", default="generic-x86")
    parser.add_argument("--format", choices=["openvino", "onnx", "both"], default="openvino")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    results: dict[str, list[Check]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        environment = {**os.environ, "QWEN_EDGE_CACHE_DIR": str(folder / "cache")}
        names = [str(options.checkpoint)] if options.checkpoint else options.shape or DEFAULT_SHAPES
        for shape in names:
            print(shape, file=sys.stderr)
            checkpoint, package = options.checkpoint or folder / shape, folder / "package"
            if not options.checkpoint:
                write_checkpoint(SHAPES[shape], checkpoint, seed=0)
            checks = check_export(checkpoint, package, options, environment)
            if options.format != "onnx":
                checks += check_run(package, environment)
            for check in checks:
                mark = "ok" if check.is_good else "OFF"
                print(
                    f"  {check.what:<15} planned {check.planned:>14,.1f} measured "
                    f"{check.measured:>14,.1f} {100 * check.error:+6.1f} % {mark}",
                    file=sys.stderr,
                )
            results[shape] = checks
            shutil.rmtree(package)
            if not options.checkpoint:
                shutil.rmtree(checkpoint)
    facts = {"cores": os.cpu_count(), "recipe": options.recipe, "profile": options.profile}
    document = {shape: [asdict(check) for check in checks] for shape, checks in results.items()}
    print(json.dumps(facts | {"checks": document}))
    if not all(check.is_good for checks in results.values() for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
