"""`qwen-edge bundle`: a package with all that runs it, as a folder for other machines."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.options import find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import format_bytes

if TYPE_CHECKING:
    from qwen_edge.bundle.pipeline import Bundle

_NUM_SIZES_SHOWN = 8


@click.command("bundle")
@click.argument("package")
@click.option(
    "--output",
    metavar="DIR",
    help="The folder to be. Default: the package's name and -bundle, in the current folder.",
)
@click.option(
    "--devices",
    metavar="LIST",
    help="Whose libraries go in: cpu, gpu, npu, with commas. Default: the package's devices.",
)
@click.option("--without-server", is_flag=True, help="Leave out the server, 12 MB.")
@click.option("--zip", "as_zip", is_flag=True, help="Write a zip beside the folder.")
@click.option("--force", is_flag=True, help="Replace an earlier bundle.")
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    package: str,
    output: str | None,
    devices: str | None,
    without_server: bool,
    as_zip: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put PACKAGE and all that runs it into a folder for machines without Python.

    The folder runs on the kind of system that it was made on, from anywhere, without network or
    administrator. It is tried before it is kept. Its path goes to standard output.

    \b
    Examples:
      qwen-edge bundle ./qwen3-4b-core-ultra-int4 --output ./my-app --zip
      qwen-edge bundle ./qwen3-4b-core-ultra-int4 --devices cpu
    """
    from qwen_edge.bundle.pipeline import make_bundle, plan_bundle
    from qwen_edge.bundle.request import BundleRequest

    out = Output(is_quiet=quiet, as_json=as_json)
    folder = find_package(package)
    request = BundleRequest(
        package=folder,
        output=Path(output) if output is not None else Path(f"{folder.resolve().name}-bundle"),
        devices=None if devices is None else tuple(devices.split(",")),
        with_server=not without_server,
        as_zip=as_zip,
        force=force,
    )
    plan = plan_bundle(request)
    with out.steps() as bars:
        bundle = make_bundle(plan, bars)
    _tell(bundle, out, as_json=as_json)


def _tell(bundle: "Bundle", out: Output, *, as_json: bool) -> None:
    facts = bundle.facts
    if as_json:
        out.result_json(
            {
                "folder": str(bundle.folder),
                "zip": None if bundle.zip_path is None else str(bundle.zip_path),
                "devices": facts.devices,
                "system": f"{facts.system.name}-{facts.system.machine}",
                "glibc": facts.c_library or None,
                "python": facts.python,
                "has_server": facts.has_server,
                "model_bytes": bundle.model_bytes,
                "program_bytes": bundle.program_bytes,
                "zip_bytes": bundle.zip_bytes,
                "part_bytes": bundle.sizes,
                "golden_tokens": bundle.golden_tokens,
                "notices": facts.notices,
                "requirements": None if facts.origins is None else facts.origins.as_json,
            }
        )
        return
    for text in (*facts.notices, *(facts.origins.notices if facts.origins else ())):
        out.notice(text)
    shown = list(bundle.sizes.items())[:_NUM_SIZES_SHOWN]
    rest = sum(bundle.sizes.values()) - sum(size for _, size in shown)
    for name, size_bytes in [*shown, ("others", rest)]:
        out.notice(f"  {name:<22} {format_bytes(size_bytes):>9}")
    server = "with the server" if facts.has_server else "without the server"
    out.notice(
        f"Model {format_bytes(bundle.model_bytes)}, all else {format_bytes(bundle.program_bytes)}: "
        f"for {', '.join(facts.devices)}, {server}. It was started here and answered as recorded."
    )
    if facts.c_library:
        out.notice(f"It needs Linux with glibc {facts.c_library} or newer, and nothing else.")
    if bundle.zip_path is not None and bundle.zip_bytes is not None:
        out.notice(f"{bundle.zip_path}: {format_bytes(bundle.zip_bytes)}")
    out.result(str(bundle.folder))
