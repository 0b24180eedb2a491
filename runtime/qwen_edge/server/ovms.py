"""Configuration for OpenVINO Model Server, which serves a package as it is.

A folder with `config.json` and one `graph.pbtxt` for each package; the packages stay where they are
and are not changed. Needs nothing that `serve` needs besides.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import OutputFolderError, PackageError, UsageError, format_bytes
from qwen_edge.profiles.choose import AUTO
from qwen_edge.profiles.properties import KERNELS
from qwen_edge.runtime.files.publishing import publish_folder, staging_folder
from qwen_edge.runtime.files.writing import make_folder, write_text
from qwen_edge.runtime.manifest import DeviceSettings, Manifest

_CONFIG = "config.json"
CACHE_GB = 2
"""Memory for the caches of all requests, as `serve` has it."""

# By the architecture: in which form the model writes its calls.
_TOOL_PARSERS = {"qwen3": "hermes3", "qwen2": "hermes3", "llama": "llama3"}

_GRAPH = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"

node: {{
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info: {{ tag_index: "LOOPBACK:0", back_edge: true }}
  node_options: {{
    [type.googleapis.com / mediapipe.LLMCalculatorOptions]: {{
{options}
    }}
  }}
  input_stream_handler {{
    input_stream_handler: "SyncSetInputStreamHandler"
    options {{
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {{
        sync_set {{ tag_index: "LOOPBACK:0" }}
      }}
    }}
  }}
}}
"""


@dataclass(frozen=True)
class OvmsFolder:
    """What was written.

    Args:
        folder: With `config.json`.
        names: What requests call the models.
        devices: Where each will run.
    """

    folder: Path
    names: tuple[str, ...]
    devices: tuple[str, ...]


def write_ovms_folder(
    packages: Sequence[tuple[Path, Manifest]],
    output: Path,
    *,
    device: str = AUTO,
    parallel: int,
) -> OvmsFolder:
    """Write the folder that OpenVINO Model Server is started with.

    Args:
        packages: Folder and manifest of each.
        output: A folder that does not exist, or is empty.
        device: "CPU", "GPU" or "NPU"; "auto" takes the first of each package.
        parallel: Answers in the making at once.

    Returns:
        What was written; all of it or nothing.

    Raises:
        OutputFolderError: There is something at `output`, or it cannot be written.
        PackageError: A package has no OpenVINO model.
        UsageError: A package does not run on the device, or two have the same name.
    """
    output = output.absolute()
    _check_output(output)
    names = [manifest.name for _, manifest in packages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"Two packages are named {twice!r}.", "give each once", name=twice)
    chosen = [_choose_device(folder, manifest, device) for folder, manifest in packages]
    graphs = {
        manifest.name: write_graph(folder.absolute(), manifest, settings, parallel)
        for (folder, manifest), settings in zip(packages, chosen, strict=True)
    }
    try:
        with staging_folder(output, lambda folder: False, "process") as staging:
            _write(staging, graphs)
            _check_output(output)
            publish_folder(staging, output, name_last=_CONFIG)
    except OSError as error:
        raise OutputFolderError(
            f"{str(output)!r} cannot be written: {error.strerror or error}.",
            "choose another --output",
            path=str(output),
        ) from error
    return OvmsFolder(output, tuple(names), tuple(settings.device for settings in chosen))


def write_graph(folder: Path, manifest: Manifest, settings: DeviceSettings, parallel: int) -> str:
    """Return the text of `graph.pbtxt` for one package.

    Args:
        folder: Of the package, absolute.
        manifest: Of the package.
        settings: Of the device it is to run on.
        parallel: Answers in the making at once.

    Source:
        openvinotoolkit/model_server, docs/llm/reference.md, 2026.4. NPU runs one request at a
        time there and takes neither cache nor sequence settings.
    """
    properties = {key: value for key, value in settings.properties.items() if key != KERNELS}
    options: list[tuple[str, object]] = [
        ("models_path", folder.as_posix()),
        ("device", settings.device),
        ("plugin_config", json.dumps(properties, sort_keys=True)),
    ]
    if settings.device == "NPU":
        options.append(("max_prompt_len", settings.max_prompt_tokens or 1024))
    else:
        options += [
            ("cache_size", CACHE_GB),
            ("enable_prefix_caching", True),
            ("max_num_seqs", parallel),
        ]
    if manifest.chat.thinking != "never":
        options.append(("reasoning_parser", "qwen3"))
    parser = _TOOL_PARSERS.get(manifest.model.model_type)
    if parser is not None:
        options.append(("tool_parser", parser))
    lines = [f"      {name}: {json.dumps(value, ensure_ascii=False)}," for name, value in options]
    return _GRAPH.format(options="\n".join(lines))


def _write(staging: Path, graphs: dict[str, str]) -> None:
    config = {
        "model_config_list": [],
        "mediapipe_config_list": [{"name": name, "base_path": name} for name in graphs],
    }
    for name, graph in graphs.items():
        make_folder(staging / name)
        write_text(staging / name / "graph.pbtxt", graph)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_text(staging / _CONFIG, text)


def _check_output(output: Path) -> None:
    if not output.parent.is_dir():
        raise OutputFolderError(
            f"The folder {str(output.parent)!r}, in which --output would be made, does not exist.",
            "make it first",
            path=str(output),
        )
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise OutputFolderError(
            f"There is something at {str(output)!r} already.",
            "choose another --output, or remove it",
            path=str(output),
        )


def _choose_device(folder: Path, manifest: Manifest, device: str) -> DeviceSettings:
    if "openvino" not in manifest.formats:
        raise PackageError(
            f"The package {str(folder)!r} has no OpenVINO model "
            f"({format_bytes(manifest.weights.weights_bytes)} of ONNX), and OpenVINO Model Server "
            "reads no other.",
            "export it with --format openvino or both",
            path=str(folder),
        )
    known = [settings.device for settings in manifest.devices]
    if device.lower() == AUTO:
        return manifest.devices[0]
    if device not in known:
        raise UsageError(
            f"The package {manifest.name!r} was not made for {device!r}; its devices are "
            f"{', '.join(known)}.",
            f"use --device {known[0]}, or export it with a profile for {device}",
            option="device",
        )
    return manifest.devices[known.index(device)]
