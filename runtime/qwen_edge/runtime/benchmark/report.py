"""Tells a person what a benchmark measured: one table, and a few lines.

Data of `figures.py` in, text out. The JSON form needs none of this.
"""

from qwen_edge.errors import format_bytes
from qwen_edge.runtime.benchmark.figures import BenchmarkResult
from qwen_edge.runtime.machine.process_memory import ProcessMemory

COLUMNS = (
    "prompt tokens",
    "first token after",
    "prefill tokens/s",
    "of int8 limit",
    "decode tokens/s",
    "of memory limit",
)


def table_rows(result: BenchmarkResult) -> list[list[str]]:
    """Return a row of `COLUMNS` for each length."""
    return [
        [
            f"{figures.prompt_tokens:,}",
            f"{figures.ttft_s:,.3g} s",
            _rate(figures.prefill_tokens_per_s),
            _share(figures.prefill_share),
            _rate(figures.decode_tokens_per_s),
            _share(figures.decode_share),
        ]
        for figures in result.lengths
    ]


def tell_facts(result: BenchmarkResult) -> list[str]:
    """Return what stands below the table: start, memory, the machine's limits."""
    lines = []
    start = result.cold_start
    if start is not None:
        lines.append(
            f"Cold start: {start.total_s:,.1f} s from process start to the first token of a short "
            f"prompt (Python {start.interpreter_s:.1f}, imports {start.import_s:.1f}, "
            f"load {start.load_s:.1f}, first token {start.first_token_s:.1f}); "
            f"median of {len(result.cold_starts)}, files in memory."
        )
    if result.memory is not None and result.loaded_memory is not None:
        lines.append(
            f"Memory: {_memory(result.memory)}; when loaded {_memory(result.loaded_memory)}."
        )
    roof = result.roofline
    if roof is None:
        lines.append(f"Limits: those of {result.device} are not measured.")
    else:
        int8 = "" if roof.int8_macs_per_s is None else f", {_macs(roof.int8_macs_per_s)} of int8"
        lines.append(
            f"Limits of this machine: {format_bytes(roof.bandwidth_bytes_per_s)}/s of memory{int8}."
        )
    if result.left_out:
        left_out = ", ".join(f"{length:,}" for length in result.left_out)
        lines.append(f"Left out, since they do not fit the context: {left_out} tokens.")
    rounds = "1 round" if len(result.rounds) == 1 else f"{len(result.rounds):,} rounds"
    lines.append(f"Medians of {rounds}; answers of {result.new_tokens:,} tokens.")
    return lines


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.1f}"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _macs(macs_per_s: float) -> str:
    return f"{macs_per_s / 1e9:,.0f} billion multiply-adds/s"


def _memory(memory: ProcessMemory) -> str:
    private, file = format_bytes(memory.private_bytes), format_bytes(memory.file_bytes)
    return f"{private} private, {file} of files"
