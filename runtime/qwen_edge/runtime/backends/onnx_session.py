"""A session of ONNX Runtime for a decoder, and how the engine reports failure.

Owns the options of a session, and the question whether the provider that was asked for is the
one that runs: the engine goes on with its CPU provider where another does not start, and says so
only in its log. It keeps no account of the cache; `onnx.py` does.
"""

import logging
import re
from collections import Counter
from typing import Any

from qwen_edge.errors import DeviceError, EdgeError, PackageError, ResourceError
from qwen_edge.profiles.providers import Provider
from qwen_edge.runtime.backends.onnx_file import OnnxModel
from qwen_edge.runtime.devices.providers import find_plugin_devices, import_onnxruntime
from qwen_edge.runtime.engine import first_line

_LOGGER = logging.getLogger(__name__)
CPU_PROVIDER = "CPUExecutionProvider"
_FATAL = 4  # what matters comes as an exception as well; below this the engine writes to stderr
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_ASSIGNMENT_KEY = "session.record_ep_graph_assignment_info"
# What the engine makes MatMulNBits of, in a model of standard operators. Into blocks of 128, as
# `onnx_weights.py` does: at 32, its own choice, int8 takes a tenth more memory, and the head of
# Qwen3-4B 19.9 ms instead of 16.4 (measured, 2 cores).
_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
_BLOCK_KEY, _BLOCK_SIZE = "session.qdq_matmulnbits_block_size", "128"
_PRODUCTS = frozenset({"MatMulNBits", "MatMul", "FusedMatMul", "Gemm", "GroupQueryAttention"})
# Classes of what the engine raises where the file is at fault, if the CPU is to run it: another
# provider's own limits have the same ones.
_FILE_FAULTS = (
    "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
    "NotImplemented",
)  # fmt: skip
_MEMORY_WORDS = re.compile(r"bad_alloc|failed to allocate|out of memory|OUTOFMEMORY", re.IGNORECASE)
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|^Error in execution: "
    r"|(?:/|[A-Za-z]:\\)\S*onnxruntime\S*\.(?:cc|cpp|cu|h):\d+ .*?(?<= )was false\. "
    r"|(?:/|[A-Za-z]:\\)\S*onnxruntime\S*\.(?:cc|cpp|cu|h):\d+ "
)


def create_session(
    model: OnnxModel,
    provider: Provider,
    *,
    accuracy_level: int,
    threads: int | None = None,
) -> Any:
    """Make a model ready on one provider.

    Args:
        model: What `read_onnx` returned; its folder must keep its data file meanwhile.
        provider: Runs it; what it does not know runs on the CPU provider beside it.
        accuracy_level: As for `read_onnx`. There it changes MatMulNBits of the file, here those
            that the engine makes of standard operators when it loads a portable model.
        threads: CPU threads; None for the engine's choice, which is the number of cores.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        DeviceError: The provider is absent, did not start, or takes none of the model's
            matrix products.
        PackageError: The engine cannot read the model.
        ResourceError: Memory does not suffice.
    """
    engine = import_onnxruntime()
    options = engine.SessionOptions()
    options.graph_optimization_level = engine.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    # A pattern is kept for every length of the mask there ever was, 1 KB per step and 4 layers
    # measured, and neither prompts nor steps were faster by it.
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry(_FOLDER_KEY, str(model.folder))
    options.add_session_config_entry(_ASSIGNMENT_KEY, "1")
    options.add_session_config_entry(_LEVEL_KEY, str(accuracy_level))
    options.add_session_config_entry(_BLOCK_KEY, _BLOCK_SIZE)
    # `session.disable_cpu_ep_fallback` is no help: every provider leaves the few nodes that work
    # on shapes to the CPU, and it would refuse them all. What matters is looked at afterwards.
    try:
        session = _start(engine, model, provider, options)
    except EdgeError:
        raise
    except Exception as error:  # the engine's classes have no common one
        raise _refusal(error, provider) from error
    _check_provider_runs(session, provider)
    return session


def _start(engine: Any, model: OnnxModel, provider: Provider, options: Any) -> Any:
    chosen = {key: option.value for key, option in provider.options.items()}
    # Without these, a failure is printed and tried again on the CPU, and the model's own
    # metadata may set options.
    strict = {"enable_fallback": False, "read_config_from_model": False}
    devices = find_plugin_devices(engine, provider)
    if devices:
        wanted = [device for device in devices if device.device.type.name == provider.device]
        options.add_provider_for_devices((wanted or list(devices))[:1], chosen)
        return engine.InferenceSession(model.text, options, **strict)
    if provider.name not in engine.get_available_providers():
        seen = ", ".join(engine.get_available_providers())
        raise DeviceError(
            f"{provider.name} is not in this ONNX Runtime, which has: {seen}.",
            provider.install,
            provider=provider.name,
        )
    providers = [(provider.name, chosen)]
    return engine.InferenceSession(model.text, options, providers=providers, **strict)


def _check_provider_runs(session: Any, provider: Provider) -> None:
    """Refuse a session in which another provider does the work."""
    if provider.name not in session.get_providers():
        raise DeviceError(
            f"{provider.name} did not start; ONNX Runtime would go on without it, on "
            f"{' and '.join(session.get_providers())}.",
            "check the driver with `qwen-edge doctor`, or run with --device CPU.",
            provider=provider.name,
        )
    if provider.name == CPU_PROVIDER or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += sum(node.op_type in _PRODUCTS for node in part.get_nodes())
    left, taken = counts[CPU_PROVIDER], counts.total() - counts[CPU_PROVIDER]
    # A provider that does not list its nodes, as some do not, leaves none to the CPU either.
    if left and not taken:
        raise DeviceError(
            f"{provider.name} takes none of the model's {left:,} matrix products: all of them "
            "would run on the CPU.",
            "run with --device CPU.",
            provider=provider.name,
        )
    if left:
        _LOGGER.info("%d of %d matrix products run on the CPU", left, left + taken)


def _refusal(error: Exception, provider: Provider) -> EdgeError:
    """Return what the engine's refusal to make a model ready means."""
    told = engine_message(error)
    if is_memory_failure(error):
        return ResourceError(
            f"Memory did not suffice to load the model on {provider.name}: {told}.",
            "close other programs, or use a package of fewer bits or of a smaller model.",
            provider=provider.name,
        )
    if type(error).__name__ in _FILE_FAULTS and provider.name == CPU_PROVIDER:
        return PackageError(
            f"ONNX Runtime cannot read the model: {told}.",
            "check the package with `qwen-edge verify`; if it is intact, "
            "pip install --upgrade onnxruntime",
        )
    return DeviceError(
        f"{provider.name} refused the model: {told}.",
        "run with --device CPU; `qwen-edge doctor` says what is here.",
        provider=provider.name,
        engine_message=str(error),
    )


def engine_message(error: BaseException) -> str:
    """Return what ONNX Runtime says happened, as one line without a full stop."""
    return first_line(RuntimeError(_NOISE.sub("", str(error)) or type(error).__name__))


def is_memory_failure(error: BaseException) -> bool:
    """Return whether the engine, or Python for it, found too little memory."""
    return isinstance(error, MemoryError) or _MEMORY_WORDS.search(str(error)) is not None
