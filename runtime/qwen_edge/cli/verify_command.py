"""`qwen-edge verify`: are the files as they were sealed, by whom, and do they still answer so?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import backend_option, find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import (
    DeviceError,
    EdgeError,
    MissingExtraError,
    PackageError,
    ParityError,
    ResourceError,
    format_bytes,
    join_problems,
)
from qwen_edge.runtime.manifest import FORMAT_ENGINES

if TYPE_CHECKING:
    from qwen_edge.cli.progress import StepBars
    from qwen_edge.runtime.manifest import FormatName, Manifest
    from qwen_edge.runtime.package import VerifyReport
    from qwen_edge.runtime.signature import Signature


@dataclass(frozen=True)
class FormatCheck:
    """What became of the golden tokens in one format.

    Args:
        format: "openvino" or "onnx".
        golden_tokens: How many were as recorded; None where the model was not run.
        not_run: Why it was not; None where it was.
    """

    format: "FormatName"
    golden_tokens: int | None
    not_run: str | None = None


@click.command("verify")
@click.argument("package")
@backend_option
@click.option(
    "--public-key",
    metavar="FILE",
    help="Check that the package was signed with the private key that belongs to this one.",
)
@click.option("--files-only", is_flag=True, help="Hash the files, do not run the model.")
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    package: str,
    backend: str,
    public_key: str | None,
    files_only: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Hash every file in the folder PACKAGE, then run its golden tokens on the CPU.

    Golden tokens are the model's own answer to a fixed prompt, recorded at export. Each format
    that the package holds the model in must give them; one whose engine is not installed is
    named and left out, unless --backend asks for it. Exit code 3: a file is missing, changed or
    not listed, or the signature is missing or not that of the key; 9: the model answers otherwise.

    \b
    Examples:
      qwen-edge verify ./qwen3-4b-core-ultra-int4
      qwen-edge verify ./qwen3-4b-core-ultra-int4 --files-only --json
      qwen-edge verify ./qwen3-4b-core-ultra-int4 --public-key models.pub
    """
    from qwen_edge.runtime.devices.opening import choose_formats
    from qwen_edge.runtime.package import check_report, read_manifest
    from qwen_edge.runtime.signature import check_signature

    out = Output(is_quiet=quiet, as_json=as_json)
    folder = find_package(package)
    manifest = read_manifest(folder)
    formats = choose_formats(folder, manifest, backend=backend)
    checks = [FormatCheck(name, None, "--files-only") for name in formats]
    signature = None if public_key is None else check_signature(folder, Path(public_key))
    with leave_soon(), out.steps() as bars:
        report = _hash(folder, manifest, bars)
        check_report(report)
        if signature is not None and signature.package_hash != report.package_hash:
            raise _changed(folder)
        if not files_only:
            checks = _run_formats(folder, manifest, formats, bars)
    if as_json:
        num_tokens = None if files_only else len(manifest.golden.token_ids)
        out.result_json(
            {
                "folder": str(folder),
                "package_hash": report.package_hash,
                "num_files": report.num_files,
                "num_bytes": report.num_bytes,
                "golden_tokens": num_tokens,
                "formats": checks,
                "signature": _signature_facts(folder, signature),
            }
        )
        return
    told = "" if files_only else f", {_describe(checks)}"
    signed = _describe_signature(folder, signature)
    out.result(
        f"{folder}: {report.num_files} files, {format_bytes(report.num_bytes)}, "
        f"intact{signed}{told}"
    )


def _signature_facts(folder: Path, signature: "Signature | None") -> dict[str, object] | None:
    """Return what is known of a signature; None where there is none."""
    from qwen_edge.runtime.signature import has_signature

    if signature is not None:
        return {"checked": True, "key_hash": signature.key_hash}
    return {"checked": False, "key_hash": None} if has_signature(folder) else None


def _describe_signature(folder: Path, signature: "Signature | None") -> str:
    from qwen_edge.runtime.signature import has_signature

    if signature is not None:
        return f", signed with your key {signature.key_hash[:16]}"
    is_there = has_signature(folder)
    return ", signed (not checked, which takes --public-key)" if is_there else ""


def _changed(folder: Path) -> PackageError:
    return PackageError(
        f"The package {str(folder)!r} was changed while it was checked.",
        "wait until whoever writes it has ended, then check it again",
        path=str(folder),
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


def _run_formats(
    folder: Path,
    manifest: "Manifest",
    formats: "Sequence[FormatName]",
    bars: "StepBars",
) -> list[FormatCheck]:
    """Run the golden tokens in each format and compare them with the recorded ones.

    Args:
        folder: The package.
        manifest: Its manifest.
        formats: At least one.
        bars: Shows which is running.

    Returns:
        One check for each format; one whose engine is not installed is left out.

    Raises:
        MissingExtraError: No engine of these formats is installed.
        ParityError: With the first token that differs, for each format that does.
    """
    from qwen_edge.runtime.golden import run_golden_tokens

    expected = manifest.golden.token_ids
    checks: list[FormatCheck] = []
    differences: dict[FormatName, tuple[int, ...]] = {}
    missing: MissingExtraError | None = None
    failure: EdgeError | None = None
    for name in formats:
        step = f"run golden tokens with {FORMAT_ENGINES[name]}"
        bars(step, 0, 0)
        try:
            tokens = run_golden_tokens(folder, manifest, fmt=name)
        except MissingExtraError as error:
            missing = error
            checks.append(FormatCheck(name, None, error.problem.rstrip(".")))
            continue
        except (DeviceError, ResourceError) as error:
            failure = failure or error  # the other format is tried before this is told
            continue
        bars(step, 1, 1)
        checks.append(FormatCheck(name, len(tokens)))
        if tokens != expected:
            differences[name] = tokens
    if differences:
        raise _other_tokens(folder, differences, expected)
    if failure is not None:
        raise failure
    if missing is not None and all(check.golden_tokens is None for check in checks):
        raise missing
    return checks


def _other_tokens(
    folder: Path, differences: "Mapping[FormatName, tuple[int, ...]]", expected: tuple[int, ...]
) -> ParityError:
    """Return the error that says which token differs first, for each format."""
    problems = [_describe_difference(name, got, expected) for name, got in differences.items()]
    engines = " and ".join(FORMAT_ENGINES[name] for name in differences)
    return ParityError(
        f"The files of {str(folder)!r} are intact, but {join_problems(problems)}.",
        f"compare {engines} versions (`qwen-edge doctor`); if they agree, report this with the "
        "CPU's name",
        expected=expected,
        got=differences,
    )


def _describe_difference(name: "FormatName", tokens: Sequence[int], expected: Sequence[int]) -> str:
    pairs = zip(tokens, expected, strict=True)
    index = next(i for i, (got, wanted) in enumerate(pairs) if got != wanted)
    return (
        f"token {index + 1} of {len(expected)} golden tokens is {tokens[index]} here with "
        f"{FORMAT_ENGINES[name]}, expected {expected[index]}"
    )


def _describe(checks: Sequence[FormatCheck]) -> str:
    done = [check for check in checks if check.golden_tokens is not None]
    names = " and ".join(FORMAT_ENGINES[check.format] for check in done)
    parts = [f"all {done[0].golden_tokens} golden tokens as recorded with {names}"]
    parts += [
        f"{FORMAT_ENGINES[check.format]} not run: {check.not_run}"
        for check in checks
        if check.not_run
    ]
    return "; ".join(parts)
