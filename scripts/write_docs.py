"""Write the reference pages that are made from the program itself.

docs/cli.md from the help texts, docs/errors.md from the error classes, docs/profiles.md from
the catalog, docs/gpu.md from the GPU's profile and formula, the rows of docs/reliability.md from
the tests. `--check` writes nothing and ends
with 1 when a page is not current.

    python scripts/write_docs.py [--check]
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
from reliability_page import reliability_page

from qwen_edge.cli.main import cli
from qwen_edge.errors import EdgeError
from qwen_edge.profiles.device import DeviceProfile
from qwen_edge.profiles.gpu_memory import (
    MAX_BUFFER_BYTES,
    WSL_BUFFER_BYTES,
    estimate_gpu_memory,
    find_max_gpu_context,
    list_gpu_buffers,
)
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.profile import Profile, load_profile, profile_names
from qwen_edge.profiles.recipe import load_recipe, recipe_names

DOCS = Path(__file__).resolve().parent.parent / "docs"
HELP_COLUMNS = 96
_MEASURED = {True: "yes", False: "never", None: ""}
MADE_BY = "<!-- Made by scripts/write_docs.py; do not edit. -->"


def main() -> int:
    """Write or check every page and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    is_check = parser.parse_args().check
    stale = []
    for name, text in make_pages().items():
        path = DOCS / name
        is_current = path.is_file() and path.read_text(encoding="utf-8") == text
        if not is_current:
            stale.append(name)
            if not is_check:
                path.write_text(text, encoding="utf-8", newline="\n")
    for name in stale:
        print(f"docs/{name}: {'not current' if is_check else 'written'}")
    if is_check and stale:
        print("Fix: python scripts/write_docs.py", file=sys.stderr)
        return 1
    return 0


def make_pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {
        "cli.md": cli_page(),
        "errors.md": errors_page(),
        "profiles.md": profiles_page(),
        "gpu.md": gpu_page(),
        "reliability.md": reliability_page(),
    }


def cli_page() -> str:
    """Return the help of every command, as `--help` prints it."""
    lines = [
        MADE_BY,
        "# The command line",
        "",
        "Results go to standard output; progress, notices, reasoning and errors go to standard",
        "error. `--json` makes the result one JSON document, and an error one line of JSON as the",
        "last line of standard error. A refusal is always `Error: …` and mostly `Fix: …`.",
        "",
    ]
    for path, command in _commands(cli, "qwen-edge"):
        lines += [f"## `{path}`", "", "```text", _help(command, path), "```", ""]
    lines += [
        "## Exit codes",
        "",
        "| code | meaning |",
        "| --- | --- |",
        "| 0 | done |",
        "| 1 | `doctor` found a problem |",
        "| 2 to 9 | refused or failed; see [errors](errors.md) |",
        "| 70 | a bug in qwen-edge, with its traceback |",
        "| 130 | stopped with Ctrl-C |",
        "| 141 | the reader of standard output went away, as `head` does when it has enough |",
        "",
        "## Environment variables",
        "",
        "| variable | meaning |",
        "| --- | --- |",
        "| `QWEN_EDGE_PROFILE` | profile of an export when `--profile` is not given |",
        "| `QWEN_EDGE_RECIPE` | recipe of an export when `--recipe` is not given |",
        "| `QWEN_EDGE_CACHE_DIR` | where it is remembered which packages were hashed on this "
        "machine; an absolute path |",
        "| `QWEN_EDGE_CONFIG_DIR` | where `tune` keeps what it found; an absolute path |",
        "",
    ]
    return "\n".join(lines)


def errors_page() -> str:
    """Return the tree of errors and what each class means."""
    doc = inspect.cleandoc(importlib.import_module("qwen_edge.errors").__doc__ or "")
    start = doc.index("EdgeError  ")
    tree = "\n".join(line.removeprefix("    ") for line in doc[start:].split("\n\n")[0].split("\n"))
    lines = [
        MADE_BY,
        "# Errors",
        "",
        "Every error raised on purpose is a class of `qwen_edge.errors`. It says what is wrong",
        "(`problem`) and what to do (`fix`), and keeps the figures for programs (`facts`). The",
        "command line prints both texts and ends with the class's exit code. Any other exception",
        "is a bug; the command line then ends with 70.",
        "",
        "```text",
        tree,
        "```",
        "",
        "| class | exit code | meaning |",
        "| --- | --- | --- |",
    ]
    for error in _error_classes(EdgeError):
        meaning = (inspect.getdoc(error) or "").splitlines()[0]
        lines.append(f"| `{error.__name__}` | {error.exit_code} | {meaning} |")
    return "\n".join([*lines, ""])


def profiles_page() -> str:
    """Return every profile of the catalog with the reason for every value."""
    profiles = [load_profile(name) for name in profile_names()]
    lines = [
        MADE_BY,
        "# Profiles",
        "",
        "What a kind of machine is given, each value with its reason. How to write your own is in",
        "[recipes and legality](recipes-and-legality.md), and what a GPU holds in [GPU](gpu.md).",
        "",
        "The column *measured* says whether a run of this project on that kind of device stands",
        "behind a value. **No GPU and no NPU was ever measured**: what stands there comes from",
        "OpenVINO's source, its documentation and published figures, and may be wrong on yours;",
        "`qwen-edge doctor --package PACKAGE` compares the answers of every device you have.",
        "",
        "| profile | devices | recipe | what for |",
        "| --- | --- | --- | --- |",
    ]
    for profile in profiles:
        devices = ", ".join(entry.device for entry in profile.devices)
        lines.append(
            f"| [`{profile.name}`](#{profile.name}) | {devices} | `{profile.recipe}` "
            f"| {profile.summary} |"
        )
    for profile in profiles:
        lines += ["", *_profile_section(profile)]
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class _Decoder:
    """A published model of the family, from its config.json."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    is_tied: bool
    num_kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151_936

    @property
    def weights_bytes(self) -> int:
        """Return the weights of int4-awq: 4 bits in groups of 128, embedding and head 8 bits."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        matrices = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        return round(self.num_layers * layer * (0.5 + 2 / 128)) + matrices


_DECODERS = (
    _Decoder("Qwen3-0.6B", 28, 1_024, 3_072, 16, is_tied=True),
    _Decoder("Qwen3-1.7B", 28, 2_048, 6_144, 16, is_tied=True),
    _Decoder("Qwen3-4B", 36, 2_560, 9_728, 32, is_tied=True),
    _Decoder("Qwen3-8B", 36, 4_096, 12_288, 32, is_tied=False),
    _Decoder("Qwen3-14B", 40, 5_120, 17_408, 40, is_tied=False),
)


def gpu_page() -> str:
    """Return what models take on a built-in GPU, and the limit of one buffer."""
    entry = load_profile("core-ultra-gpu").devices[0]
    return "\n".join([*_gpu_memory_section(entry), *_gpu_buffer_section(entry), ""])


def _gpu_memory_section(entry: DeviceProfile) -> Iterator[str]:
    context, chunk = entry.max_context_tokens, entry.prefill_chunk_tokens
    yield from [
        MADE_BY,
        "# On a GPU",
        "",
        "**None of this was measured on a GPU.** It is arithmetic from OpenVINO's source",
        "(`qwen_edge.profiles.gpu_memory` names the places) and agrees within 10 % with the memory",
        "that OpenVINO publishes for Qwen3-4B in int4, int8 and fp16 and for Qwen3-8B in int4 on a",
        "Core Ultra X7 358H; whether those figures count everything a GPU holds is not said there.",
        "The settings and their reasons: [profiles](profiles.md#core-ultra-gpu).",
        "",
        "## Memory",
        "",
        "A built-in GPU shares the machine's memory. What a model takes is",
        "",
        "```text",
        "weights + 1.1 GB + (tokens + 191) x cache per token         while a conversation waits",
        "  + (tokens - chunk) x cache per token + working memory     while a long prompt is read",
        "cache per token = 2 x layers x key/value heads x head size x bytes of one value",
        "working memory  = chunk x (40 x hidden size + 8 x context) bytes",
        "```",
        "",
        "1.1 GB are the process, its libraries and compiled kernels. 191 tokens are the room that",
        "the plugin adds when a cache outgrows its buffer. It then copies it, and the old buffers",
        "are let go only at the next pass, so that for a moment the cache is there twice. A value",
        "has 2 bytes (f16, the profile's choice), 1.15 with 8 bits, 0.65 with 4.",
        "",
        f"With recipe `int4-awq`, in chunks of {chunk:,}:",
        "",
        "| model | weights | cache of 1,000 tokens "
        f"| waiting at {context:,} | reading {context:,} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model in _DECODERS:
        memory = estimate_gpu_memory(model, entry, weights_bytes=model.weights_bytes)
        yield (
            f"| {model.name} | {_gb(model.weights_bytes)} "
            f"| {memory.cache_bytes_per_token / 1e3:,.0f} MB "
            f"| {_gb(memory.resting_bytes(context))} | {_gb(memory.peak_bytes(context))} |"
        )


def _gpu_buffer_section(entry: DeviceProfile) -> Iterator[str]:
    exact = replace(
        entry, properties={**entry.properties, "INFERENCE_PRECISION_HINT": "f32"}, reasons={}
    )
    recipe, context = load_recipe("int4-awq"), entry.max_context_tokens
    yield from [
        "",
        "## The limit of one buffer",
        "",
        "A driver gives out a limited number of bytes at a time, `GPU_DEVICE_MAX_ALLOC_MEM_SIZE`.",
        f"Reported: {MAX_BUFFER_BYTES:,} on GPUs of Core Ultra processors before Xe2,",
        f"{WSL_BUFFER_BYTES:,} on any GPU inside WSL2; Xe2 and later (Core Ultra 200V, Series 3)",
        "have no such limit in OpenVINO. An export for a GPU compares its largest buffer with the",
        "first figure and is refused where it does not fit, with the longest context that does.",
        "",
        "The cache never comes near: keys and values of every layer are buffers of their own. What",
        "can reach the limit is attention that the plugin takes apart, since it then holds the",
        "scores of all heads at once: with `INFERENCE_PRECISION_HINT` f32, with",
        "`GPU_ENABLE_SDPA_OPTIMIZATION` false, and on GPUs without XMX with heads of fewer than 64",
        "or more than 256 values.",
        "",
        f"| model | embedding or head | keys of one layer, {context:,} tokens "
        "| longest context, f16 | longest context, f32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model in _DECODERS:
        buffers = list_gpu_buffers(model, entry, recipe)
        longest = [find_max_gpu_context(model, which, recipe) for which in (entry, exact)]
        yield (
            f"| {model.name} | {buffers[0].size_bytes(context) / 1e6:,.0f} MB "
            f"| {buffers[1].size_bytes(context) / 1e6:,.0f} MB "
            f"| {longest[0]:,} | {longest[1]:,} |"
        )
    yield from [
        "",
        "262,144 is the longest context of the family; nothing longer is looked at. More in f32",
        "needs a smaller `prefill_chunk_tokens`, or `GPU_ENABLE_LARGE_ALLOCATIONS = true` in a",
        "[profile of your own](recipes-and-legality.md#your-own-profile), which changes how the",
        "GPU addresses memory and may make it slower.",
    ]


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB"


def _profile_section(profile: Profile) -> Iterator[str]:
    yield f"## {profile.name}"
    yield ""
    yield f"Recipe `{profile.recipe}`: {profile.recipe_reason}."
    for entry in profile.devices:
        yield ""
        yield f"**{entry.device}**: {entry.reasons.get('device', '')}"
        if entry.note:
            yield ""
            yield f"Note: {entry.note}."
        yield ""
        yield "| setting | value | measured | why |"
        yield "| --- | --- | --- | --- |"
        for key, reason in entry.reasons.items():
            if key != "device":
                value = entry.properties.get(key, getattr(entry, key, ""))
                mark = _MEASURED[entry.measured.get(key)]
                yield f"| `{key}` | `{value}` | {mark} | {_cell(reason)} |"
    yield ""
    yield "| recipe | " + " | ".join(entry.device for entry in profile.devices) + " |"
    yield "| --- |" + " --- |" * len(profile.devices)
    for recipe in map(load_recipe, recipe_names()):
        marks = ["yes" if legality(recipe, e.device).value else "no" for e in profile.devices]
        yield f"| `{recipe.name}` | {' | '.join(marks)} |"


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, group
    ctx = click.Context(group, info_name=path)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _help(command: click.Command, path: str) -> str:
    ctx = click.Context(
        command,
        info_name=path,
        terminal_width=HELP_COLUMNS,
        help_option_names=["-h", "--help"],
    )
    return command.get_help(ctx).rstrip()


def _error_classes(error: type[EdgeError]) -> Iterator[type[EdgeError]]:
    yield error
    for child in error.__subclasses__():
        if child.__module__.startswith("qwen_edge.errors"):
            yield from _error_classes(child)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
