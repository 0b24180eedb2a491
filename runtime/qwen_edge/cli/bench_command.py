"""`qwen-edge bench`: how fast a package is on this machine, beside what the machine could do."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import LoadOptions, check_load_flags, find_package, load_options
from qwen_edge.cli.output import Output
from qwen_edge.errors import UsageError
from qwen_edge.runtime.benchmark.options import DEFAULT_PROMPT_TOKENS, BenchmarkOptions

if TYPE_CHECKING:
    from pathlib import Path

    from qwen_edge.cli.progress import StepBars
    from qwen_edge.runtime.benchmark.figures import BenchmarkResult


@click.command("bench")
@click.argument("package")
@load_options
@click.option(
    "--prompt-tokens",
    metavar="N,N,...",
    help="Lengths of the prompts. Default: "
    f"{','.join(map(str, DEFAULT_PROMPT_TOKENS))}, as far as they fit.",
)
@click.option(
    "--new-tokens",
    type=int,
    metavar="N",
    default=BenchmarkOptions.new_tokens,
    show_default=True,
    help="Tokens of each answer.",
)
@click.option(
    "--rounds",
    type=int,
    metavar="N",
    default=BenchmarkOptions.rounds,
    show_default=True,
    help="In each round every length is measured once.",
)
@click.option(
    "--seconds",
    type=float,
    metavar="S",
    default=BenchmarkOptions.seconds,
    show_default=True,
    help="Begin no round that would end later. One is always made.",
)
@click.option(
    "--cold-starts",
    type=int,
    metavar="N",
    default=BenchmarkOptions.cold_starts,
    show_default=True,
    help="Programs started to measure the way to a first token; 0 for none.",
)
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def command(
    package: str,
    load: LoadOptions,
    prompt_tokens: str | None,
    new_tokens: int,
    rounds: int,
    seconds: float,
    cold_starts: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure how fast the model in the folder PACKAGE is here.

    A start from nothing, then prompts and answers of several lengths in rounds, medians of them,
    memory, and on the CPU what part it is of what this machine's memory and int8 arithmetic
    would allow, measured beside it. Leave the machine alone meanwhile, and plugged in.

    \b
    Examples:
      qwen-edge bench ./qwen3-4b-core-ultra-int4
      qwen-edge bench ./qwen3-4b-core-ultra-int4 --prompt-tokens 512 --new-tokens 128 --json
    """
    out = Output(is_quiet=quiet, as_json=as_json)
    options = BenchmarkOptions(
        prompt_tokens=None if prompt_tokens is None else _read_lengths(prompt_tokens),
        new_tokens=new_tokens,
        rounds=rounds,
        seconds=seconds,
        cold_starts=cold_starts,
    )
    check_load_flags(package, load)
    folder = find_package(package)
    with leave_soon(), out.steps() as bars:
        result = _measure(folder, options, load, bars)
    if as_json:
        out.result_json({**asdict(result), "cold_start": result.cold_start})
        return
    _show(out, result)


def _measure(
    folder: "Path", options: BenchmarkOptions, load: LoadOptions, bars: "StepBars"
) -> "BenchmarkResult":
    from qwen_edge.runtime.benchmark.measure import run_benchmark
    from qwen_edge.runtime.package import read_manifest

    total = sum(facts.size_bytes for facts in read_manifest(folder).files.values())
    hashed = 0

    def report_bytes(num_bytes: int) -> None:
        nonlocal hashed
        hashed += num_bytes
        bars("check files", hashed, total)

    return run_benchmark(
        folder,
        options,
        device=load.device,
        backend=load.backend,
        threads=load.threads,
        progress=report_bytes,
        steps=bars,
    )


def _show(out: Output, result: "BenchmarkResult") -> None:
    from qwen_edge.runtime.benchmark.report import COLUMNS, table_rows, tell_facts

    device, reason = result.device, result.device_reason
    told = reason if reason.startswith(device) else f"{device}: {reason}"
    out.notice(f"{result.model}: device {told} (backend {result.backend}).")
    out.table(list(COLUMNS), table_rows(result))
    out.result("")
    for line in tell_facts(result):
        out.result(line)


def _read_lengths(text: str) -> tuple[int, ...]:
    """Return lengths between commas.

    Raises:
        UsageError: One of them is no whole number.
    """
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(
            f"--prompt-tokens is {text!r}; expected whole numbers with commas between them.",
            "--prompt-tokens 32,512,2048",
            value=text,
        )
    return tuple(int(part) for part in parts)
