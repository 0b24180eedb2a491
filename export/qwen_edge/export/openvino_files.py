"""Writing the graph as OpenVINO IR, with the settings that other programs should use.

Deterministic: the same specification and weights give the same two files, byte for byte.
"""

from pathlib import Path

from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.seal import raise_for_full_disk
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.files.writing import note_written
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_XML, DeviceSettings

# What a plugin reads from the IR's `runtime_options` unless the program says otherwise.
# Source: OpenVINO 2026.4.1, src/plugins/intel_cpu/src/config.cpp (applyRtInfo).
_CPU_OPTIONS = frozenset(
    {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE",
        "KEY_CACHE_GROUP_SIZE",
        "KEY_CACHE_PRECISION",
        "KV_CACHE_PRECISION",
        "VALUE_CACHE_GROUP_SIZE",
        "VALUE_CACHE_PRECISION",
    }
)


def write_openvino_model(
    spec: DecoderSpec,
    store: WeightStore,
    folder: Path,
    devices: tuple[DeviceSettings, ...],
) -> None:
    """Build the decoder and write openvino_model.xml and .bin.

    Args:
        spec: The decoder.
        store: Frozen; must stay open until this returns.
        folder: Receives the two files.
        devices: Tested settings; those that hold for every device of the package are
            written into the IR.

    Raises:
        ResourceError: The disk filled up.
    """
    ov = import_openvino()
    model = build_decoder(spec, store)
    for key, value in runtime_options(devices).items():
        model.set_rt_info(value, ["runtime_options", key])
    try:
        ov.save_model(model, folder / MODEL_XML, compress_to_fp16=False)
        note_written(folder / MODEL_XML, folder / MODEL_BIN)
    except RuntimeError as exc:
        # "basic_ios::clear: iostream error" is all it says of a full disk or a size limit.
        raise_for_full_disk(folder, exc)
        raise


def runtime_options(devices: tuple[DeviceSettings, ...]) -> dict[str, str]:
    """Return the options that may be written into a model shared by these devices.

    Args:
        devices: Tested settings of each device.

    Returns:
        Option name to value. A cache or activation setting of the CPU is left out when the
        package is for a GPU as well, whose plugin reads the same keys and was not tested
        with it. Nothing is written for a GPU: what optimum-intel writes for it,
        ACTIVATIONS_SCALE_FACTOR, the plugin passes over in language models.
    """
    if any(entry.device == "GPU" for entry in devices):
        return {}
    options = {
        key: str(value)
        for entry in devices
        if entry.device == "CPU"
        for key, value in entry.properties.items()
        if key in _CPU_OPTIONS
    }
    return dict(sorted(options.items()))
