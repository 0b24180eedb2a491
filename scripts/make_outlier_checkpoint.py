"""Give a checkpoint outliers: the same function in float32, and hard to round. Last line: JSON.

Large models have single channels whose activations are a hundred times those of their neighbours;
small ones trained for a demonstration have not. This puts them there: a channel is multiplied
where it is made and divided where it is used. The factors are powers of two, so every product and
every sum is what it was to the last bit, while a weight that shares its scale with others is now
rounded as coarsely as before and multiplied by far more. The same seed gives the same bytes.

    python scripts/make_outlier_checkpoint.py CHECKPOINT OUT --strength 64 --channels 4
"""

import argparse
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from qwen_edge.export.decoder import (
    FINAL_NORM_NAME,
    HEAD_NAME,
    DecoderSpec,
    bias_name,
    layer_prefix,
    read_spec,
)

PLACES = ("norm", "value", "mlp")
MAX_STRENGTH = 1 << 14
_SPREAD = 2  # a channel's factor lies between a quarter of the strength and all of it
_CHUNK_BYTES = 1 << 24

Factors = npt.NDArray[np.float32]
Scaling = dict[str, tuple[int, Factors]]
"""Tensor name -> (axis, a factor for each entry along it); a tensor may be scaled once an axis."""


def choose_factors(
    size: int, num_channels: int, strength: int, random: np.random.Generator
) -> Factors:
    """Return a power of two for each channel, 1 for all but `num_channels` of them."""
    factors = np.ones(size, np.float32)
    exponent = strength.bit_length() - 1
    chosen = random.choice(size, min(num_channels, size), replace=False)
    drawn = random.integers(max(1, exponent - _SPREAD), exponent + 1, chosen.size)
    factors[chosen] = np.exp2(drawn).astype(np.float32)
    return factors


def plan_scaling(
    spec: DecoderSpec, places: Sequence[str], num_channels: int, strength: int, seed: int
) -> list[Scaling]:
    """Return what each tensor is multiplied with, one mapping per kind of channel.

    Args:
        spec: The architecture.
        places: Of `PLACES`. "norm": what a norm gives to the projections behind it, and to the
            head where it is not the embedding; "value": what attention gives to its output
            projection; "mlp": what the gated product gives to the last projection.
        num_channels: How many channels of each become outliers.
        strength: The largest factor, a power of two.
        seed: Fixes which channels and which factors.
    """
    random = np.random.default_rng(seed)
    plans = []
    for layer_index in range(spec.num_layers):
        plan: Scaling = {}
        prefix = layer_prefix(layer_index)
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        for norm, users in (
            ("input", [f"{attention}.{part}_proj" for part in "qkv"]),
            ("post_attention", [f"{mlp}.gate_proj", f"{mlp}.up_proj"]),
        ):
            factors = choose_factors(spec.hidden_size, num_channels, strength, random)
            if "norm" in places:
                plan[f"{prefix}.{norm}_layernorm.weight"] = (0, factors)
                plan |= {f"{user}.weight": (1, _inverse(factors)) for user in users}
        plans.append(plan)
        made: Scaling = {}
        values = choose_factors(spec.num_kv_heads * spec.head_dim, num_channels, strength, random)
        if "value" in places:
            # Each value head is read by the query heads that share it.
            heads = values.reshape(spec.num_kv_heads, spec.head_dim)
            read = np.repeat(heads, spec.num_heads // spec.num_kv_heads, axis=0).reshape(-1)
            made |= _make(spec, f"{attention}.v_proj.weight", values)
            made[f"{attention}.o_proj.weight"] = (1, _inverse(read))
        product = choose_factors(spec.intermediate_size, num_channels, strength, random)
        if "mlp" in places:
            made |= _make(spec, f"{mlp}.up_proj.weight", product)
            made[f"{mlp}.down_proj.weight"] = (1, _inverse(product))
        plans.append(made)
    if "norm" in places and not spec.is_tied:
        factors = choose_factors(spec.hidden_size, num_channels, strength, random)
        plans.append({FINAL_NORM_NAME: (0, factors), HEAD_NAME: (1, _inverse(factors))})
    return plans


def write_outliers(source: Path, output: Path, plans: Sequence[Scaling]) -> None:
    """Write the checkpoint again with its tensors scaled.

    Args:
        source: The folder of the checkpoint; its other files are copied.
        output: A folder that does not exist yet.
        plans: As `plan_scaling` gives them.
    """
    checkpoint = open_checkpoint(source)
    output.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, output / path.name)
    for path in sorted({entry.path for entry in checkpoint.entries.values()}):
        entries = [entry for entry in checkpoint.entries.values() if entry.path == path]
        names = [entry.name for entry in sorted(entries, key=lambda entry: entry.offset_bytes)]
        try:
            _write_file(output / path.name, checkpoint, names, plans)
        except SystemExit:
            shutil.rmtree(output)
            raise
    checkpoint.close()


def _inverse(factors: Factors) -> Factors:
    inverse: Factors = np.reciprocal(factors)
    return inverse


def _make(spec: DecoderSpec, name: str, factors: Factors) -> Scaling:
    """Return the scaling of a projection's outputs, its bias among them."""
    scaling: Scaling = {name: (0, factors)}
    if spec.has_bias(name):
        scaling[bias_name(name)] = (0, factors)
    return scaling


def _write_file(
    path: Path, checkpoint: Checkpoint, names: Sequence[str], plans: Sequence[Scaling]
) -> None:
    """Write tensors as one safetensors file, in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        entry = checkpoint.entries[name]
        # A quotient may be too small for float16; bfloat16 has float32's exponents.
        is_widened = entry.dtype == "F16" and any(name in plan for plan in plans)
        end = offset + entry.size_bytes * (2 if is_widened else 1)
        header[name] = {
            "dtype": "F32" if is_widened else entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned data
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            raw = checkpoint.raw(name)
            if any(name in plan for plan in plans):
                raw = _scale(checkpoint, name, plans, header[name]["dtype"])
            data = raw.reshape(-1).view(np.uint8)
            for start in range(0, data.size, _CHUNK_BYTES):
                file.write(data[start : start + _CHUNK_BYTES].tobytes())


def _scale(
    checkpoint: Checkpoint, name: str, plans: Sequence[Mapping[str, Any]], dtype: str
) -> npt.NDArray[Any]:
    """Return a tensor scaled by all plans, as it is stored; stop where that is not exact."""
    original = checkpoint.float32(name)
    scaled = original.astype(np.float64)
    for axis, factors in (plan[name] for plan in plans if name in plan):
        scaled *= factors if axis == original.ndim - 1 else factors[:, None]
    stored = scaled.astype(np.float32)
    is_exact = bool((stored == scaled).all())
    if dtype == "BF16":
        bits = stored.view(np.uint32)
        is_exact &= not (bits & 0xFFFF).any()
        stored = (bits >> 16).astype("<u2")
    if not is_exact:
        raise SystemExit(f"{name} cannot be scaled exactly in {dtype}; use a smaller --strength")
    return stored


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="CHECKPOINT")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--strength", type=int, default=64, help="largest factor, a power of two")
    parser.add_argument("--channels", type=int, default=4, help="outliers at each place")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    strength = arguments.strength
    if not 2 <= strength <= MAX_STRENGTH or strength.bit_count() != 1:
        parser.error(f"--strength is {strength}; expected a power of two from 2 to {MAX_STRENGTH}")
    if arguments.channels < 1:
        parser.error(f"--channels is {arguments.channels}; expected 1 or more")
    if arguments.output.exists():
        parser.error(f"{str(arguments.output)!r} exists already; name a new folder")
    spec = read_spec(json.loads((arguments.source / "config.json").read_bytes()))
    check_tensors(open_checkpoint(arguments.source), spec.tensor_shapes(), is_tied=spec.is_tied)
    plans = plan_scaling(spec, arguments.places, arguments.channels, strength, arguments.seed)
    write_outliers(arguments.source, arguments.output, plans)
    largest = max((float(f.max()) for plan in plans for _, f in plan.values()), default=1.0)
    print(json.dumps({"folder": str(arguments.output), "largest_factor": largest}))


if __name__ == "__main__":
    main()
