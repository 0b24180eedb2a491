"""`qwen-edge serve`: packages behind an OpenAI-compatible interface on this machine."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.help_sections import SectionedCommand
from qwen_edge.cli.options import LoadOptions, find_package, load_options
from qwen_edge.cli.output import Output
from qwen_edge.cli.serve_options import ServeFlags, serve_options
from qwen_edge.errors import MissingExtraError, UsageError
from qwen_edge.server.settings import ServerSettings

if TYPE_CHECKING:
    from qwen_edge.runtime.batch_model import BatchModel
    from qwen_edge.server.access import AccessKey
    from qwen_edge.server.sidecar import ReadyFacts

_MODULES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


@click.command("serve", cls=SectionedCommand)
@click.argument("packages", metavar="PACKAGE...", nargs=-1, required=True)
@load_options
@serve_options
@click.option("--quiet", is_flag=True, help="No notices.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
def command(
    packages: tuple[str, ...],
    load: LoadOptions,
    flags: ServeFlags,
    quiet: bool,
    as_json: bool,
) -> None:
    """Serve the models in the folders PACKAGE... to programs and to a chat page.

    Understands OpenAI's interface: /v1/chat/completions, /v1/completions, /v1/responses and
    /v1/models; /docs lists every field. Only this machine reaches it unless --host says otherwise,
    which needs a key. One package is loaded at once; of several each when it is asked for.

    \b
    Examples:
      qwen-edge serve ./qwen3-4b-core-ultra-int4
      qwen-edge serve ./qwen3-4b ./qwen3-0.6b --unload-after 600
      qwen-edge serve ./qwen3-4b --host 0.0.0.0 --api-key-file key.txt
      qwen-edge serve ./qwen3-4b --emit ovms --output ./model-repository
    """
    out = Output(is_quiet=quiet)
    if flags.emit is not None or flags.output is not None:
        _emit(packages, load, flags, out, as_json=as_json)
        return
    _check_extra()
    if flags.random_key and flags.ready_file is None and not as_json:
        raise UsageError(
            "--random-key makes a key that nobody would be told.",
            "add --ready-file FILE or --json, or use --api-key-file",
            option="random_key",
        )
    from qwen_edge.runtime.package import read_manifest
    from qwen_edge.server.serving import ServeRequest, serve

    folders = [find_package(package) for package in packages]
    settings = flags.settings()

    def tell_ready(facts: "ReadyFacts") -> None:
        out.notice(f"Ready: chat at {facts.url}/, programs at {facts.url}/v1")
        if as_json:
            out.result_json_line(facts.to_json())

    serve(
        ServeRequest(
            packages=[(folder, read_manifest(folder)) for folder in folders],
            load=lambda folder: _load(folder, load, settings),
            settings=settings,
            host=flags.host,
            port=flags.port,
            key=_choose_key(flags),
            allow_hosts=flags.allow_host,
            allow_origins=flags.allow_origin,
            ready_file=flags.ready_file,
            parent_pid=flags.parent_pid,
            stops_with_stdin=flags.stop_with_stdin,
        ),
        on_listening=lambda facts: out.notice(f"Listening at {facts.url}; stop with Ctrl-C"),
        on_ready=tell_ready,
    )


def _emit(
    packages: tuple[str, ...], load: LoadOptions, flags: ServeFlags, out: Output, *, as_json: bool
) -> None:
    """Write what another server is started with."""
    from qwen_edge.runtime.package import read_manifest
    from qwen_edge.server.ovms import write_ovms_folder

    if flags.emit is None or flags.output is None:
        raise UsageError(
            "--emit and --output belong together, and one of them is missing.",
            "give --emit ovms --output DIR",
            option="emit",
        )
    folders = [find_package(package) for package in packages]
    written = write_ovms_folder(
        [(folder, read_manifest(folder)) for folder in folders],
        flags.output,
        device=load.device,
        parallel=flags.settings().parallel,
    )
    for name, device in zip(written.names, written.devices, strict=True):
        out.notice(f"{name} on {device}")
    out.notice(f"Start it: ovms --rest_port 8000 --config_path {written.folder / 'config.json'}")
    if as_json:
        out.result_json_line({"folder": str(written.folder), "models": list(written.names)})
    else:
        out.result(str(written.folder))


def _check_extra() -> None:
    """Refuse to serve where what that needs is not installed.

    Raises:
        MissingExtraError: Naming the modules and the extra.
    """
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Serving needs {', '.join(map(repr, missing))}, not installed here.",
            "pip install 'qwen-edge[serve]'",
            modules=missing,
        )


def _choose_key(flags: ServeFlags) -> "AccessKey | None":
    from qwen_edge.runtime.environment import read_environment
    from qwen_edge.server.access import choose_key, make_random_key

    if not flags.random_key:
        return choose_key(flags.api_key_file, read_environment().api_key)
    if flags.api_key_file is not None:
        raise UsageError(
            "--random-key and --api-key-file were both given.", "give one of them", option="key"
        )
    return make_random_key()


def _load(folder: Path, load: LoadOptions, settings: ServerSettings) -> "BatchModel":
    """Open a package for many requests; what an answer left is gone on from."""
    from qwen_edge.runtime.batching.batch_options import BatchOptions
    from qwen_edge.runtime.loading import load_batch

    return load_batch(
        folder,
        device=load.device,
        backend=load.backend,
        threads=load.threads,
        # Who may wait is counted before: here everybody fits who was let in.
        options=BatchOptions(
            max_running=settings.parallel, max_waiting=settings.parallel + settings.queue
        ),
        reuses_answers=True,
    )
