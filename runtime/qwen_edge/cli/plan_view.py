"""How a plan is told: what running a package takes here, for `run --explain` and `export`.

The figures are from `qwen_edge.runtime.resources.plan`; nothing is worked out here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_edge.cli.output import Output
from qwen_edge.errors import format_bytes

if TYPE_CHECKING:
    from qwen_edge.cli.options import LoadOptions
    from qwen_edge.runtime.resources.plan import DevicePlan
    from qwen_edge.runtime.resources.run_time import RunTime


def explain_run(package: str, options: "LoadOptions", out: Output, *, as_json: bool) -> None:
    """Print what running a package takes on each of its devices; load nothing.

    Raises:
        UsageError: The package does not hold what is asked for.
        PackageError: There is no such package.
    """
    from qwen_edge.cli.options import find_package
    from qwen_edge.runtime.devices.probing import probe_devices
    from qwen_edge.runtime.package import read_manifest
    from qwen_edge.runtime.resources.plan import add_times, plan_memory

    folder = find_package(package)
    manifest = read_manifest(folder)
    absent = {report.name: report.reason for report in probe_devices() if report.reason}
    plans = plan_memory(
        folder, manifest, backend=options.backend, device=options.device, unusable=absent
    )
    plans = add_times(folder, manifest, plans, threads=options.threads)
    if as_json:
        out.result_json({"package": manifest.name, "devices": [plan.to_json() for plan in plans]})
        return
    out.result(manifest.name)
    show_device_plans(out, plans)
    if not plans:
        out.result(f"  What {options.device} takes is known only once it is loaded.")
    elif all(plan.time is None for plan in plans):
        out.result("\nTime is estimated for the CPU with OpenVINO only.")
    out.result("\nNothing was loaded.")


def show_device_plans(out: Output, plans: "Sequence[DevicePlan]") -> None:
    """Print one paragraph per device."""
    from qwen_edge.runtime.manifest import FORMAT_ENGINES

    for plan in plans:
        out.result(f"\n{plan.device} ({FORMAT_ENGINES[plan.format]})")
        for line in describe_device_plan(plan):
            out.result(f"  {line}")


def describe_device_plan(plan: "DevicePlan") -> list[str]:
    """Return what a device takes, or why it cannot be used, in a few lines."""
    memory = plan.memory
    available = (
        "how much is available is not known"
        if plan.available_bytes is None
        else f"{format_bytes(plan.available_bytes)} are available"
    )
    if plan.problem is not None:
        return [f"cannot be used: {plan.problem}"]
    lines = [
        f"memory   {format_bytes(memory.min_bytes + memory.process_bytes)} with "
        f"{memory.min_cache_tokens:,} tokens, "
        f"{format_bytes(memory.max_bytes + memory.process_bytes)} with the whole context; "
        f"{available}",
        *_describe_mapped(memory.mapped_bytes),
        f"context  {plan.context_tokens:,} of {memory.max_cache_tokens:,} tokens fit "
        f"({format_bytes(memory.cache_bytes_per_token)} each)",
    ]
    if plan.time is not None:
        lines += _describe_time(plan.time)
    return lines + [f"note     {note}" for note in plan.notes]


def _describe_mapped(mapped_bytes: int) -> list[str]:
    if not mapped_bytes:
        return []
    return [
        f"         {format_bytes(mapped_bytes)} of it are the model's file, used where it lies: "
        "the system can take that back"
    ]


def _describe_time(time: "RunTime") -> list[str]:
    read = "" if not time.read_s else f", {time.read_s:,.0f} s more to read it from the disk"
    return [
        f"time     about {time.load_s:,.0f} s to start{read}, {time.hash_s:,.0f} s more the first "
        "time to check its files",
        f"speed    about {time.prompt_tokens_per_s:,.0f} tokens/s of a prompt and "
        f"{time.answer_tokens_per_s:,.1f} of an answer, at 512 tokens",
    ]
