"""`qwen-edge verify`: are the files as they were sealed, and does the model still answer so?"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import ParityError, format_bytes

if TYPE_CHECKING:
    from qwen_edge.cli.progress import StepBars
    from qwen_edge.runtime.manifest import Manifest
    from qwen_edge.runtime.package import VerifyReport


@click.command("verify")
@click.argument("package")
@click.option("--files-only", is_flag=True, help="Hash the files, do not run the model.")
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(package: str, files_only: bool, quiet: bool, as_json: bool) -> None:
    """Hash every file in the folder PACKAGE, then run its golden tokens on the CPU.

    Golden tokens are the model's own answer to a fixed prompt, recorded at export. Exit code 3:
    a file is missing, changed or not listed; 9: the model answers otherwise.

    \b
    Examples:
      qwen-edge verify ./qwen3-4b-core-ultra-int4
      qwen-edge verify ./qwen3-4b-core-ultra-int4 --files-only --json
    """
    from qwen_edge.runtime.golden import run_golden_tokens
    from qwen_edge.runtime.package import check_report, read_manifest

    out = Output(is_quiet=quiet, as_json=as_json)
    folder = find_package(package)
    manifest = read_manifest(folder)
    tokens = None
    with leave_soon(), out.steps() as bars:
        report = _hash(folder, manifest, bars)
        check_report(report)
        if not files_only:
            bars("run golden tokens", 0, 0)
            tokens = run_golden_tokens(folder, manifest)
            bars("run golden tokens", 1, 1)
    if tokens is not None:
        _check_tokens(folder, tokens, manifest.golden.token_ids)
    if as_json:
        out.result_json(
            {
                "folder": str(folder),
                "package_hash": report.package_hash,
                "num_files": report.num_files,
                "num_bytes": report.num_bytes,
                "golden_tokens": None if tokens is None else len(tokens),
            }
        )
        return
    golden = "" if tokens is None else f", all {len(tokens)} golden tokens as recorded"
    out.result(
        f"{folder}: {report.num_files} files, {format_bytes(report.num_bytes)}, intact{golden}"
    )


def _hash(folder: Path, manifest: "Manifest", bars: "StepBars") -> "VerifyReport":
    from qwen_edge.runtime.package import verify_package

    total = sum(facts.size_bytes for facts in manifest.files.values())
    hashed = 0

    def report_bytes(num_bytes: int) -> None:
        nonlocal hashed
        hashed += num_bytes
        bars("hash files", hashed, total)

    return verify_package(folder, report_bytes)


def _check_tokens(folder: Path, tokens: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse a model that answers otherwise than at export.

    Raises:
        ParityError: With the first token that differs.
    """
    pairs = zip(tokens, expected, strict=True)
    index = next((i for i, (got, wanted) in enumerate(pairs) if got != wanted), None)
    if index is None:
        return
    raise ParityError(
        f"The files of {str(folder)!r} are intact, but token {index + 1} of {len(expected)} "
        f"golden tokens is {tokens[index]} here, expected {expected[index]}.",
        "compare OpenVINO versions (`qwen-edge doctor`); if they agree, report this with the "
        "CPU's name",
        expected=expected,
        got=tokens,
    )
