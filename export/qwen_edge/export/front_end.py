"""The two ways from a checkpoint to the files of a model.

`NativeFrontEnd` builds the graph itself and compresses layer by layer: no torch, bounded
memory. `OptimumFrontEnd` hands an architecture that has no native graph to optimum-intel.
The pipeline treats both alike. Read `compress.py` and `optimum_frontend.py` for the work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from qwen_edge.errors import UnsupportedArchitectureError
from qwen_edge.export import package_facts as facts
from qwen_edge.export.adapters.matching import match_adapters
from qwen_edge.export.adapters.opening import Adapter
from qwen_edge.export.calibrated.calibration import Calibration
from qwen_edge.export.checkpoint import (
    FLOAT_DTYPES,
    Checkpoint,
    check_tensors,
    open_checkpoint,
)
from qwen_edge.export.compress import Compressor, TensorReport
from qwen_edge.export.config_fields import shown
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.optimum_frontend import (
    check_optimum,
    count_bits,
    export_with_optimum,
    generic_model_facts,
)
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.manifest import (
    MODEL_XML,
    DeviceSettings,
    ModelFacts,
    OnnxFacts,
    WeightsFacts,
)


@dataclass(frozen=True)
class ModelFormats:
    """What is to be written.

    Args:
        devices: OpenVINO's devices and their settings; None to write no IR.
        onnx: The ONNX form; None to write none.
    """

    devices: tuple[DeviceSettings, ...] | None
    onnx: OnnxFacts | None


Progress = Callable[[str, int, int], None]
"""Called with (step, done, total); units are the step's own. Equal done and total end it."""

SPOOL_NAME = "weights.spool"


class FrontEnd(Protocol):
    """One checkpoint that is ready to become a model."""

    @property
    def model(self) -> ModelFacts:
        """The network's facts; `max_context_tokens` is the checkpoint's own."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """config.json as the package has it: adapters can part embedding and head."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should be told of the adapters: sentences."""
        ...

    @property
    def reference(self) -> tuple[DecoderSpec, Checkpoint] | None:
        """What the model can be compared with layer by layer; None without a native graph."""
        ...

    def write_model(
        self,
        folder: Path,
        formats: ModelFormats,
        report: Progress,
        calibration: Calibration | None = None,
    ) -> tuple[TensorReport, ...]:
        """Write the two files of each format; return what became of every matrix, if known.

        Args:
            folder: The staging folder.
            formats: What is to be written.
            report: Told about every step.
            calibration: The texts of a calibrated recipe.
        """
        ...

    def describe_weights(self, folder: Path, reports: tuple[TensorReport, ...]) -> WeightsFacts:
        """Return what compression did to the model that was written."""
        ...

    def close(self) -> None:
        """Let go of the checkpoint's files."""
        ...


def read_native_spec(config: Mapping[str, Any]) -> DecoderSpec | None:
    """Return the decoder of a config.json, or None when optimum-intel has to export it.

    Raises:
        MissingExtraError: The architecture has no native graph and optimum-intel is missing.
        UnsupportedArchitectureError: A known architecture with a feature that has no graph.
        CheckpointError: A field is missing or out of bounds.
    """
    try:
        return read_spec(config)
    except UnsupportedArchitectureError as refusal:
        # Only an unknown architecture is handed on: a sliding window or quantised weights of a
        # known one would come out of optimum-intel just as wrong, or refused.
        if refusal.facts.get("field") != "model_type" or config.get("quantization_config"):
            raise
        check_optimum(refusal)
        return None


def open_front_end(
    folder: Path, config: dict[str, Any], recipe: Recipe, adapters: Sequence[Adapter] = ()
) -> FrontEnd:
    """Open a checkpoint with the front end that its architecture needs.

    Args:
        folder: The checkpoint, local and complete.
        config: Its config.json.
        recipe: What is to be done to the weights.
        adapters: What is merged into the weights first.

    Raises:
        CheckpointError: Tensors and config.json do not fit together, or an adapter does not fit.
        UsageError: See `read_native_spec`.
    """
    spec = read_native_spec(config)
    checkpoint = open_checkpoint(folder)
    if spec is None:
        if adapters:
            refuse_adapters(config)
        return OptimumFrontEnd(checkpoint, config, recipe)
    check_tensors(checkpoint, spec.tensor_shapes(), is_tied=spec.is_tied)
    if not adapters:
        return NativeFrontEnd(checkpoint, spec, recipe, config)
    adapted = match_adapters(spec, adapters)
    config = config | {"tie_word_embeddings": adapted.spec.is_tied}
    merged = adapted.merge_into(checkpoint)
    return NativeFrontEnd(merged, adapted.spec, recipe, config, adapted.notices)


def refuse_adapters(config: Mapping[str, Any]) -> NoReturn:
    """Refuse to merge adapters into an architecture without a native graph.

    Raises:
        UnsupportedArchitectureError: Always.
    """
    raise UnsupportedArchitectureError(
        f"{shown(config.get('model_type'))} has no native graph, and adapters are merged where "
        "there is one; optimum-intel reads the checkpoint as it is.",
        "merge the adapter with peft (`merge_and_unload`, `save_pretrained`) and export the folder "
        "that this writes",
        field="model_type",
    )


class NativeFrontEnd:
    """Builds the graph from its specification and compresses one layer at a time.

    Args:
        checkpoint: Checked against `spec`; closed by `close`.
        spec: The decoder.
        recipe: Formats, group size, AWQ.
        config: config.json as the package has it.
        notices: What a person should be told of the adapters.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: DecoderSpec,
        recipe: Recipe,
        config: dict[str, Any],
        notices: tuple[str, ...] = (),
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._recipe = recipe
        self.config = config
        self.notices = notices
        self.model = facts.model_facts(spec, spec.max_position_embeddings)
        self.reference: tuple[DecoderSpec, Checkpoint] | None = (spec, checkpoint)

    def write_model(
        self,
        folder: Path,
        formats: ModelFormats,
        report: Progress,
        calibration: Calibration | None = None,
    ) -> tuple[TensorReport, ...]:
        """Write the two files of each format and return what became of every matrix."""
        if formats.onnx is not None and not formats.onnx.is_portable:
            # Now, not when it is written: compressing takes the longest.
            from qwen_edge.export.onnx_operators import check_head_dim

            check_head_dim(self._spec.head_dim)
        with WeightStore(folder / SPOOL_NAME) as store:
            reports = self._compress(store, report, calibration)
            store.freeze()
            report("write model", 0, 1)
            if formats.devices is not None:
                # Not at the top: where only ONNX is written, OpenVINO need not be installed.
                from qwen_edge.export.openvino_files import write_openvino_model

                write_openvino_model(self._spec, store, folder, formats.devices)
            if formats.onnx is not None:
                self._write_onnx(store, folder, formats.onnx)
            report("write model", 1, 1)
        return reports

    def _compress(
        self,
        store: WeightStore,
        report: Progress,
        calibration: Calibration | None,
    ) -> tuple[TensorReport, ...]:
        if calibration is not None:
            # Running layers needs OpenVINO, which is not installed wherever ONNX is written.
            from qwen_edge.export.calibrated.driver import compress_calibrated

            return compress_calibrated(self._checkpoint, self._spec, store, calibration, report)
        total = self._spec.num_layers + 1
        compressor = Compressor(self._checkpoint, self._spec, self._recipe, store)
        report("compress weights", 0, total)
        compressor.compress_embeddings()
        for layer_index in range(self._spec.num_layers):
            report("compress weights", layer_index + 1, total)
            compressor.compress_layer(layer_index)
        report("compress weights", total, total)
        return tuple(compressor.reports)

    def _write_onnx(self, store: WeightStore, folder: Path, onnx: OnnxFacts) -> None:
        # Its libraries take a second to import, and only exports of ONNX need them.
        from qwen_edge.export.onnx_files import write_onnx_model

        write_onnx_model(
            self._spec,
            store,
            folder,
            max_context_tokens=onnx.max_context_tokens,
            is_portable=onnx.is_portable,
        )

    def describe_weights(self, folder: Path, reports: tuple[TensorReport, ...]) -> WeightsFacts:
        """Return what compression did to the model that was written."""
        return facts.weights_facts(reports, facts.weights_bytes(folder))

    def close(self) -> None:
        """Let go of the checkpoint's files."""
        self._checkpoint.close()


class OptimumFrontEnd:
    """Hands the checkpoint to optimum-intel, in a process of its own.

    Args:
        checkpoint: Opened, so that its headers are known to be sound.
        config: Its config.json.
        recipe: Formats, group size, AWQ.
    """

    def __init__(self, checkpoint: Checkpoint, config: dict[str, Any], recipe: Recipe) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self.config = config
        self.notices: tuple[str, ...] = ()
        self.reference: tuple[DecoderSpec, Checkpoint] | None = None
        num_parameters = 0
        for entry in checkpoint.entries.values():
            count = 1
            for dimension in entry.shape:
                count *= dimension
            num_parameters += count
        self.model = generic_model_facts(config, num_parameters)

    def write_model(
        self,
        folder: Path,
        formats: ModelFormats,
        report: Progress,
        calibration: Calibration | None = None,
    ) -> tuple[TensorReport, ...]:
        """Write the IR; optimum-intel reports on no single matrix.

        Raises:
            UnsupportedArchitectureError: An ONNX form is asked for, which needs a native graph.
        """
        del calibration  # its recipes are refused before
        # The devices' settings are not used: its models carry optimum-intel's own.
        if formats.onnx is not None:
            raise UnsupportedArchitectureError(
                f"{self.model.architecture} has no native graph, which the ONNX form is written "
                "from; optimum-intel writes OpenVINO only.",
                "export it with --format openvino",
                field="model_type",
            )
        report("run optimum-intel", 0, 1)
        for name, entry in self._checkpoint.entries.items():
            if entry.dtype in FLOAT_DTYPES:  # others hold masks and positions
                self._checkpoint.check_finite(name)
        export_with_optimum(self._checkpoint.folder, folder, self._recipe)
        report("run optimum-intel", 1, 1)
        return ()

    def describe_weights(self, folder: Path, reports: tuple[TensorReport, ...]) -> WeightsFacts:
        """Return what is in the model that was written; the weights' error is not known."""
        del reports
        return WeightsFacts(
            num_tensors=len(self._checkpoint.entries),
            weights_bytes=facts.weights_bytes(folder),
            bits=count_bits(folder / MODEL_XML),
            group_size_fallbacks=(),
            relative_rms_error=None,
        )

    def close(self) -> None:
        """Let go of the checkpoint's files."""
        self._checkpoint.close()
