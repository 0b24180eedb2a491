"""Fits adapters to a model: which of its tensors change how, and every misfit in one error.

An adapter's tensors must be exactly those that its configuration asks for in this model: one that
is missing, left over or of another shape means that it was made for another model, and a merge of
the rest would be a model that nobody trained. Read `merging.py` for what a change does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qwen_edge.errors import CheckpointError, join_problems
from qwen_edge.export.adapters.merging import LowRank, MergedCheckpoint, TensorChange
from qwen_edge.export.adapters.opening import Adapter
from qwen_edge.export.adapters.targets import (
    EMBEDDING_MODULE,
    HEAD_MODULE,
    Target,
    find_targets,
    is_saved,
)
from qwen_edge.export.checkpoint import FLOAT_DTYPES, Checkpoint
from qwen_edge.export.config_fields import shown
from qwen_edge.export.decoder import EMBEDDING_NAME, HEAD_NAME, DecoderSpec

_PREFIX = "base_model.model."  # peft's wrappers around the model
_TOKEN_ROWS = "token_adapter.trainable_tokens_delta"
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_VOCABULARY = (EMBEDDING_NAME, HEAD_NAME)
_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True)
class AdaptedModel:
    """A model with adapters, before a weight was read.

    Args:
        spec: The decoder after the merge; its head is a matrix of its own where an adapter has
            made embedding and head differ.
        changes: By the name of the tensor.
        notices: What a person should be told: sentences.
    """

    spec: DecoderSpec
    changes: Mapping[str, tuple[TensorChange, ...]]
    notices: tuple[str, ...] = ()

    def merge_into(self, checkpoint: Checkpoint) -> MergedCheckpoint:
        """Return the checkpoint with the adapters in it.

        Args:
            checkpoint: Checked against the decoder as it was before. It is closed.
        """
        entries = dict(checkpoint.entries)
        if not self.spec.is_tied:
            entries.setdefault(HEAD_NAME, replace(entries[EMBEDDING_NAME], name=HEAD_NAME))
        checkpoint.close()
        return MergedCheckpoint(checkpoint.folder, entries, self.changes)


def match_adapters(spec: DecoderSpec, adapters: Sequence[Adapter]) -> AdaptedModel:
    """Find out what adapters do to a model.

    Args:
        spec: The decoder that they are merged into.
        adapters: As opened.

    Raises:
        CheckpointError: Lists an adapter's missing, extra, wrongly shaped and unreadable tensors.
        UsageError: A pattern in a configuration cannot be used.
    """
    shapes = spec.tensor_shapes()
    shapes.setdefault(HEAD_NAME, shapes[EMBEDDING_NAME])
    per_adapter = [_Match(spec, shapes, adapter).run() for adapter in adapters]
    notices: list[str] = []
    if spec.is_tied:
        shared = [_is_shared(found, one) for found, one in zip(per_adapter, adapters, strict=True)]
        per_adapter = [
            _share(found, is_shared=is_shared, is_tied=all(shared))
            for found, is_shared in zip(per_adapter, shared, strict=True)
        ]
        if not all(shared):
            spec = replace(spec, is_tied=False)
            name = adapters[shared.index(False)].name
            notices.append(
                f"The adapter {name!r} makes the embedding and the output head differ, which are "
                "one matrix in this model. They become two, as they were in training; the package "
                "is larger by one of them."
            )
    changes: dict[str, tuple[TensorChange, ...]] = {}
    for found in per_adapter:
        for name, change in found.items():
            changes[name] = (*changes.get(name, ()), change)
    return AdaptedModel(spec, changes, tuple(notices))


def find_base_notices(adapters: Sequence[Adapter], names: Sequence[str | None]) -> tuple[str, ...]:
    """Return a sentence for each adapter that says it was trained on another model.

    Args:
        adapters: As opened.
        names: What the checkpoint is called: its id, and what it was made from.
    """
    known = {_last_part(name) for name in names if name}
    return tuple(
        f"The adapter {one.name!r} says that it was trained on {shown(base)}, and is merged into "
        f"{names[0]!r}. Sizes fit; whether it was made for these weights is not known."
        for one in adapters
        if (base := one.settings.base_model_name_or_path) and _last_part(base) not in known
    )


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def _is_shared(found: Mapping[str, TensorChange], adapter: Adapter) -> bool:
    """Return whether embedding and head of a tied model stay one matrix."""
    embedding, head = found.get(EMBEDDING_NAME), found.get(HEAD_NAME)
    if embedding is not None and head is not None:
        return _is_same(embedding, head)
    one = embedding or head
    # Trained rows belong to both, as peft has it; other changes where the adapter says so.
    is_rows = one is not None and one.token_rows is not None
    is_rows &= one is None or (one.replacement is None and one.low_rank is None)
    return one is None or is_rows or adapter.settings.ensure_weight_tying


def _is_same(embedding: TensorChange | None, head: TensorChange) -> bool:
    """Return whether both are replaced by the same values, and nothing else."""
    if embedding is None or embedding.replacement is None or head.replacement is None:
        return False
    if embedding.names != (embedding.replacement,) or head.names != (head.replacement,):
        return False
    tensors = embedding.adapter.tensors
    # Bytes, not numbers: a NaN in both is for `check_finite` to find.
    a, b = (tensors.raw(change.replacement or "").view(np.uint8) for change in (embedding, head))
    return a.shape == b.shape and all(
        np.array_equal(a[i : i + _ROWS_AT_ONCE], b[i : i + _ROWS_AT_ONCE])
        for i in range(0, len(a), _ROWS_AT_ONCE)
    )


def _share(
    found: Mapping[str, TensorChange], *, is_shared: bool, is_tied: bool
) -> dict[str, TensorChange]:
    """Return the changes of a tied model's adapter, for one matrix or for the two it becomes."""
    rest = {name: change for name, change in found.items() if name not in _VOCABULARY}
    both = {name: found[name] for name in _VOCABULARY if name in found}
    if not is_shared or not both:
        return rest | both
    one = next(iter(both.values()))
    return rest | {EMBEDDING_NAME: one} | ({} if is_tied else {HEAD_NAME: one})


@dataclass
class _Match:
    """One adapter's tensors beside what its configuration asks for.

    Args:
        spec: The decoder.
        shapes: Its tensors, and the head where it is tied.
        adapter: As opened.
    """

    spec: DecoderSpec
    shapes: Mapping[str, tuple[int, ...]]
    adapter: Adapter
    problems: list[str] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)  # name without peft's wrappers → in file
    changes: dict[str, TensorChange] = field(default_factory=dict)

    def run(self) -> dict[str, TensorChange]:
        """Return the change of each tensor."""
        for name in self.adapter.tensors.entries:
            self.stored[_bare_name(name)] = name
        self._find_replacements()
        self._find_token_rows()
        for module, target in self._find_targets().items():
            self._find_product(module, target)
        self.problems += [self._describe_extra(name) for name in self.stored]
        if not self.problems and not self.changes:
            self.problems.append("its configuration means no module of this model")
        if self.problems:
            raise CheckpointError(
                f"The adapter {self.adapter.name!r} does not fit this model in "
                f"{len(self.problems):,} places: {join_problems(self.problems)}.",
                "merge it into the model that it was trained on"
                + (f", {shown(base)}" if (base := self._base) else "")
                + "; where the vocabulary was enlarged, merge it with peft and export that folder",
                adapter=self.adapter.name,
                problems=self.problems,
            )
        return self.changes

    @property
    def _base(self) -> str | None:
        return self.adapter.settings.base_model_name_or_path

    def _find_replacements(self) -> None:
        """Find tensors that were trained whole, and biases that were."""
        settings = self.adapter.settings
        saved = settings.modules_to_save or ()
        targets = find_targets(settings, self.spec)
        for name, shape in self.shapes.items():
            module = name.rpartition(".")[0]
            is_bias = name.endswith(".bias") and (
                settings.bias == "all" or (settings.bias == "lora_only" and module in targets)
            )
            # Embedding and head are also saved where the vocabulary's size was changed, or asked.
            is_wanted = is_bias or is_saved(saved, module)
            shared = name in _VOCABULARY and self.spec.is_tied
            if name not in self.stored and (not is_wanted or shared):
                continue
            if not is_wanted and name not in _VOCABULARY:
                continue  # left over, and listed as such
            stored = self._take(name, shape)
            if stored is not None:
                self.changes[name] = replace(self._change(name), replacement=stored)

    def _find_token_rows(self) -> None:
        given = self.adapter.settings.trainable_token_indices
        if given is None:
            return
        by_module = given if isinstance(given, Mapping) else {"embed_tokens": given}
        for end, ids in by_module.items():
            module = next(
                (m for m in (EMBEDDING_MODULE, HEAD_MODULE) if m == end or m.endswith(f".{end}")),
                None,
            )
            if module is None or not all(0 <= i < self.spec.vocab_size for i in ids):
                self.problems.append(
                    f"'trainable_token_indices' of {shown(end)} are no rows of this vocabulary, "
                    f"which has {self.spec.vocab_size:,}"
                )
                continue
            stored = self._take(f"{module}.{_TOKEN_ROWS}", (len(ids), self.spec.hidden_size))
            if stored is not None:
                name = f"{module}.weight"
                self.changes[name] = replace(
                    self._change(name), token_ids=tuple(ids), token_rows=stored
                )

    def _find_targets(self) -> dict[str, Target]:
        """Return the modules with a product; the embedding alone where the head shares it.

        Source:
            peft 0.21.2: with ensure_weight_tying it adapts both, and stores the head's product as
            the embedding's transposed. Trained in bfloat16, the two drift apart.
        """
        targets = find_targets(self.adapter.settings, self.spec)
        target = targets.get(EMBEDDING_MODULE) or targets.get(HEAD_MODULE)
        is_tied = self.spec.is_tied and self.adapter.settings.ensure_weight_tying
        if target is None or not is_tied:
            return targets
        pairs = [
            (f"{HEAD_MODULE}.lora_A.weight", f"{EMBEDDING_MODULE}.lora_embedding_B"),
            (f"{HEAD_MODULE}.lora_B.weight", f"{EMBEDDING_MODULE}.lora_embedding_A"),
        ]
        if not all(name in self.stored for pair in pairs for name in pair):
            return targets
        head = self.changes.get(HEAD_NAME)
        if all(self._is_transposed(*pair) for pair in pairs) and (
            head is None or _is_same(self.changes.get(EMBEDDING_NAME), head)
        ):
            self.changes.pop(HEAD_NAME, None)
            for copy, _ in pairs:
                del self.stored[copy]
            targets.pop(HEAD_MODULE, None)
            return {EMBEDDING_MODULE: target} | targets
        return {EMBEDDING_MODULE: target} | targets | {HEAD_MODULE: target}

    def _is_transposed(self, first: str, second: str) -> bool:
        tensors = self.adapter.tensors
        a, b = (tensors.entries[self.stored[name]] for name in (first, second))
        if a.dtype != b.dtype or a.dtype not in FLOAT_DTYPES:
            return False
        return np.array_equal(tensors.raw(a.name), tensors.raw(b.name).T)

    def _find_product(self, module: str, target: Target) -> None:
        name = f"{module}.weight"
        rows, width = self.shapes[name]
        is_embedding = module == EMBEDDING_MODULE
        if is_embedding:
            first = self._take(f"{module}.lora_embedding_A", (target.rank, rows))
            second = self._take(f"{module}.lora_embedding_B", (width, target.rank))
        else:
            first = self._take(f"{module}.lora_A.weight", (target.rank, width))
            second = self._take(f"{module}.lora_B.weight", (rows, target.rank))
        magnitude = None
        if self.adapter.settings.use_dora:
            length = width if is_embedding else rows
            magnitude = self._take(f"{module}.lora_magnitude_vector", (length,))
        if first is not None and second is not None:
            product = LowRank(first, second, target.scale, is_embedding, magnitude)
            self.changes[name] = replace(self._change(name), low_rank=product)
        if self.adapter.settings.lora_bias and not is_embedding:
            self._find_bias(module, rows, target)

    def _find_bias(self, module: str, rows: int, target: Target) -> None:
        stored = self._take(f"{module}.lora_B.bias", (rows,))
        if f"{module}.bias" not in self.shapes:
            self.problems.append(f"{module!r} has no bias that the adapter's could be added to")
        elif stored is not None:
            name = f"{module}.bias"
            self.changes[name] = replace(
                self._change(name), addition=stored, addition_scale=target.scale
            )

    def _take(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return the stored name of an expected tensor; None where it does not fit."""
        stored = self.stored.pop(name, None)
        if stored is None:
            self.problems.append(f"{name!r} is missing")
            return None
        entry = self.adapter.tensors.entries[stored]
        before = len(self.problems)
        if entry.shape != shape:
            self.problems.append(f"{name!r} has shape {list(entry.shape)}, expected {list(shape)}")
        if entry.dtype not in FLOAT_DTYPES:
            self.problems.append(f"{name!r} has dtype {entry.dtype}, expected BF16, F16 or F32")
        return stored if len(self.problems) == before else None

    def _change(self, name: str) -> TensorChange:
        """Return what is known so far of a tensor's change."""
        return self.changes.get(name, TensorChange(self.adapter))

    def _describe_extra(self, name: str) -> str:
        layer = _LAYER.match(name)
        if layer and int(layer.group(1)) >= self.spec.num_layers:
            return f"{shown(name)} is for a layer that this model, of {self.spec.num_layers}, lacks"
        return f"{shown(name)} is nothing that its configuration asks for here"


def _bare_name(name: str) -> str:
    """Return a tensor's name without what peft puts around and between."""
    bare = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
    return bare.removesuffix(".weight") if bare.endswith("magnitude_vector.weight") else bare
