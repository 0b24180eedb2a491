"""Measure an export: wall time, peak memory, bytes written. Last line: JSON.

    python scripts/bench_export.py [--checkpoint DIR] [--recipe int4 --recipe int4-awq]
                                   [--format openvino|onnx|both]

Without a checkpoint it writes one with Qwen3-4B's shapes and random weights, and removes it
afterwards. Every export runs in a process of its own, the whole command as a person types it:
imports, compression, tokenizer, a first run of the package, hashes, and the disk's own sync.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from make_random_checkpoint import SHAPES, write_checkpoint
from process_memory import MemorySampler


def measure(
    checkpoint: Path, recipe: str, profile: str, fmt: str, folder: Path
) -> dict[str, float]:
    """Run one export and return its figures.

    Args:
        checkpoint: What to export.
        recipe: Recipe name.
        profile: Profile name.
        fmt: "openvino", "onnx" or "both".
        folder: Where to write the package; removed by the caller.
    """
    output = folder / f"bench-{recipe}"
    command = [sys.executable, "-m", "qwen_edge.cli", "export", str(checkpoint), "--quiet"]
    command += ["--recipe", recipe, "--profile", profile, "--format", fmt]
    command += ["--output", str(output), "--force"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with MemorySampler(process.pid) as memory:
        code = process.wait()
    seconds = time.monotonic() - start
    if code:
        sys.exit(f"the export ended with exit code {code}")
    written = sum(path.stat().st_size for path in output.iterdir())
    return {
        "wall_s": round(seconds, 2),
        "private_peak_bytes": memory.private_bytes,
        "total_peak_bytes": memory.total_bytes,
        "package_bytes": written,
    }


def read_through(checkpoint: Path) -> None:
    """Read the weights once, so that every round finds them in the page cache alike."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def main() -> None:
    """Measure every recipe in interleaved rounds and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-4b")
    parser.add_argument("--recipe", action="append", dest="recipes")
    parser.add_argument("--profile", default="core-ultra")
    parser.add_argument("--format", choices=["openvino", "onnx", "both"], default="openvino")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    recipes = arguments.recipes or ["int4", "int4-awq"]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = folder / arguments.shape
            write_checkpoint(SHAPES[arguments.shape], checkpoint, seed=0)
        read_through(checkpoint)
        rounds: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in recipes}
        for number in range(arguments.rounds):
            for recipe in recipes if number % 2 == 0 else reversed(recipes):
                figures = measure(checkpoint, recipe, arguments.profile, arguments.format, folder)
                print(f"{recipe}: {figures}", file=sys.stderr, flush=True)
                rounds[recipe].append(figures)
    result = {
        recipe: {key: median(entry[key] for entry in entries) for key in entries[0]}
        for recipe, entries in rounds.items()
    }
    facts = {"cores": os.cpu_count(), "rounds": arguments.rounds, "format": arguments.format}
    print(json.dumps(facts | {"exports": result}))


if __name__ == "__main__":
    main()
