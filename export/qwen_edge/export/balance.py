"""AWQ's factors, and where they go.

A channel that carries much, or whose weights are small beside those of its group, must not be
rounded as coarsely as the others. The columns of a weight are multiplied by a factor each, and
what they read is divided by it where it comes from: in the norm before, in `v_proj` before
`o_proj`, in `up_proj` before `down_proj`. The function stays and no node is added. Here factors are
chosen by the weights alone; `calibrated/balance.py` heeds what flows as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qwen_edge.export.calibrated.moments import (
    ATTENTION_INPUT,
    ATTENTION_OUTPUT,
    MLP_INPUT,
    MLP_OUTPUT,
    SITES,
    Site,
)
from qwen_edge.export.decoder import DecoderSpec, bias_name, layer_prefix

Vector = npt.NDArray[np.float32]

_LEAST = np.float32(1e-4)  # what calibration never used may be used: float16 holds 10,000 of it
_FLOOR = 1e-4  # of the largest channel: what carries nothing has no say


@dataclass
class Balance:
    """Factors for one layer.

    Args:
        columns: Weight name -> float32 [in], what its columns are multiplied by.
        rows: Weight or bias name -> float32 [out], what its rows are multiplied by.
        norms: Norm weight name -> float32 [size], what it is multiplied by.
        sites: Site -> float32 [in], the same factors as `columns` has for its readers.
        strengths: Site name -> the chosen strength; None where no factors were better.
    """

    columns: dict[str, Vector] = field(default_factory=dict)
    rows: dict[str, Vector] = field(default_factory=dict)
    norms: dict[str, Vector] = field(default_factory=dict)
    sites: dict[Site, Vector] = field(default_factory=dict)
    strengths: dict[str, float | None] = field(default_factory=dict)


def balance_by_weights(
    spec: DecoderSpec,
    layer_index: int,
    is_coarse: Mapping[str, bool],
    magnitude_of: Callable[[str, Vector | None], Vector],
) -> Balance:
    """Choose the factors of one layer by its weights alone: all columns become as large.

    Scaling a channel of the model up and what reads it down, as training does, then changes
    nothing of what is stored.

    Args:
        spec: The architecture.
        layer_index: From 0.
        is_coarse: Weight name -> whether it is rounded to 4 bits; sites that none of these reads
            stay as they are.
        magnitude_of: Called with a weight's name and what its rows are multiplied by; returns the
            mean magnitude of its columns, float32 [in].

    Source:
        Lin and others, "AWQ", 2023; NNCF 3.4.0, weight_compression/awq.py, whose data-free step
        does this at `down_proj`, the only one of its patterns that a Qwen3 layer has.
    """
    prefix = layer_prefix(layer_index)
    balance = Balance()
    # From the last: rows that a later site scales are those whose columns an earlier one does.
    for site in reversed(SITES):
        names = [f"{prefix}{reader}.weight" for reader in site.readers]
        if not any(is_coarse[name] for name in names):
            continue
        found = [magnitude_of(name, balance.rows.get(name)) for name in names]
        sizes = share_heads(spec, site, np.mean(found, axis=0))
        if not sizes.any():
            continue
        apply_factors(spec, layer_index, site, make_factors(np.ones_like(sizes), sizes, 0), balance)
    return balance


def apply_factors(
    spec: DecoderSpec, layer_index: int, site: Site, factors: Vector, balance: Balance
) -> None:
    """Multiply the columns of a site's readers, and divide what they read, where it is made.

    Args:
        spec: The architecture.
        layer_index: From 0.
        site: Where the factors are.
        factors: float32 [in].
        balance: Added to.
    """
    prefix = layer_prefix(layer_index)
    names = [f"{prefix}{reader}.weight" for reader in site.readers]
    balance.columns |= dict.fromkeys(names, factors)
    balance.sites[site] = factors
    inverse = np.float32(1) / factors
    if site is ATTENTION_INPUT:
        balance.norms[f"{prefix}.input_layernorm.weight"] = inverse
        return
    if site is MLP_INPUT:
        balance.norms[f"{prefix}.post_attention_layernorm.weight"] = inverse
        return
    name = (
        f"{prefix}.mlp.up_proj.weight"
        if site is MLP_OUTPUT
        else f"{prefix}.self_attn.v_proj.weight"
    )
    if site is ATTENTION_OUTPUT:  # one value head is read in the place of several
        repeats = spec.num_heads // spec.num_kv_heads
        inverse = inverse.reshape(spec.num_kv_heads, repeats, spec.head_dim)[:, 0].reshape(-1)
    balance.rows[name] = inverse
    if spec.has_bias(name):
        balance.rows[bias_name(name)] = inverse


def make_factors(carried: Vector, sizes: Vector, strength: float) -> Vector:
    """Return factors of one strength: by the weights alone at 0, by the activations alone at 1.

    Scaling a channel of a model, as some have been by training, changes these so that nothing
    else changes: the factors undo it. They leave the middle one of all channels as it is, so that
    a few that carry nothing or a lot move no others.

    Source:
        Lin and others, "AWQ", 2023, whose first search had these two; float32 [in].
    """
    carried = np.maximum(carried, carried.max() * np.float32(_FLOOR) ** 2)
    sizes = np.maximum(sizes, sizes.max() * np.float32(_FLOOR) ** 2)
    logarithms = strength * np.log(carried) - (1 - strength) * np.log(sizes)
    factors: Vector = np.exp(logarithms - np.median(logarithms)).astype(np.float32)
    return np.maximum(factors, _LEAST)


def share_heads(spec: DecoderSpec, site: Site, values: Vector) -> Vector:
    """Return channels' values with the mean in the place of those that must have the same factors.

    Several query heads read one value head, whose rows can be scaled only once.
    """
    repeats = spec.num_heads // spec.num_kv_heads
    if site is not ATTENTION_OUTPUT or repeats == 1:
        return values.astype(np.float32)
    parts = values.astype(np.float32).reshape(-1, repeats, spec.head_dim)
    return np.broadcast_to(parts.mean(axis=1, keepdims=True), parts.shape).reshape(-1)
