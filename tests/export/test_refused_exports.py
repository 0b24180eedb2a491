"""Exports that must not end in a package: weights or results that are none, places of others."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from trust_rows import Cases

import qwen_edge.export
from qwen_edge.errors import CheckpointError, ParityError
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.runtime.package import package_hash

CheckpointMaker = Callable[..., Path]
ROOT = Path(__file__).parents[2]
DEMO = Path(qwen_edge.export.__file__).parent / "demo"


@pytest.mark.trust("T-EXP-18")
@pytest.mark.parametrize("recipe", ["fp16", "int4-awq"])
def test_a_weight_that_is_no_number_is_refused_wherever_it_stands(
    recipe: str,
    demo_package: Path,
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    cases: Cases,
) -> None:
    """Each kind of tensor, one value of it; the whole export, into an earlier package."""
    target = tmp_path / "out" / "p"
    shutil.copytree(demo_package, target)
    earlier = package_hash(target)
    layer = "model.layers.1"
    names = ["model.embed_tokens.weight", "model.norm.weight", f"{layer}.input_layernorm.weight"]
    names += [f"{layer}.self_attn.{name}.weight" for name in ("k_norm", "o_proj")]
    names += [f"{layer}.mlp.down_proj.weight", "lm_head.weight", f"{layer}.self_attn.q_proj.bias"]
    for index, name in enumerate(names):
        value = (np.nan, np.inf, -np.inf)[index % 3]

        def spoil(arrays: dict[str, npt.NDArray[np.float32]], name: str = name) -> None:
            arrays[name].reshape(-1)[-1] = value  # noqa: B023 – called within this turn

        source = make_checkpoint(
            tmp_path / "source",
            change=spoil,
            dtype=("BF16", "F16", "F32")[index % 3],
            tie_word_embeddings=False,
            attention_bias=True,
        )
        request = ExportRequest(
            str(source),
            "generic-x86",
            recipe=recipe,
            output=target,
            force=True,
            skip_quality=True,
        )
        with pytest.raises(CheckpointError, match=r"1 values that are NaN or infinite") as caught:
            export(request)
        assert repr(name) in caught.value.problem
        assert package_hash(target) == earlier
        assert list(target.parent.iterdir()) == [target]
        shutil.rmtree(source)
    cases(len(names))


EMBEDDING = "model.embed_tokens.weight"
CORRUPTED = {
    "one-is-nan": (np.nan, r"1 of 1,024 logits that are no finite numbers"),
    "one-is-large": (60.0, r"has lost the model: KL .* Nothing was sealed"),
}


@pytest.mark.trust("T-EXP-19")
@pytest.mark.parametrize(("factor", "told"), CORRUPTED.values(), ids=CORRUPTED)
def test_one_corrupt_scale_of_a_converted_model_is_noticed(
    factor: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of one row of the output head, of 1,024; as a fault of the conversion would make it."""
    add = WeightStore.add

    def corrupt(
        self: WeightStore,
        name: str,
        fmt: Any,
        shape: tuple[int, int],
        group_size: int,
        parts: Mapping[str, list[npt.NDArray[Any]]],
    ) -> None:
        if name == EMBEDDING:
            scale = parts["scale"][0].copy()
            scale[262] *= np.float16(factor)
            parts = {**parts, "scale": [scale, *parts["scale"][1:]]}
        add(self, name, fmt, shape, group_size, parts)

    monkeypatch.setattr(WeightStore, "add", corrupt)
    monkeypatch.setattr("qwen_edge.export.quality.assessment.SHORT_TOKENS", 120)
    with pytest.raises(ParityError, match=told):
        export(ExportRequest("demo", "generic-x86", recipe="int8", output=tmp_path / "p"))
    left = {"p.quality.html"} if factor == 60.0 else set()
    assert {path.name for path in tmp_path.iterdir()} == left


# What is imported, and read of the project, is so before: he may not be let into its folders.
SOMEBODY = """
import os, sys
from pathlib import Path
from qwen_edge.errors import EdgeError
from qwen_edge.export import ExportRequest, pipeline, prepare_export, run_export
prepared = [
    prepare_export(
        ExportRequest("demo", "generic-x86", output=Path(text), force=True, skip_quality=True)
    )
    for text in sys.argv[1:]
]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for export in prepared:
    try:
        run_export(export)
        print("no error")
    except EdgeError as error:
        print(type(error).__name__, error.exit_code, error.problem, "|", error.fix)
"""


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root may become another")
@pytest.mark.trust("T-EXP-12")
def test_somebody_who_may_not_write_there(demo_package: Path) -> None:
    """A parent that is not his, with a package in it or without, and a disk to read from only."""
    with tempfile.TemporaryDirectory() as name:  # those of pytest are for one user's eyes only
        check_places(Path(name), demo_package)


def check_places(theirs: Path, demo_package: Path) -> None:
    theirs.chmod(0o755)
    shutil.copytree(demo_package, theirs / "package")
    before = package_hash(theirs / "package")
    places = [theirs / "new", theirs / "package", Path("/proc/package"), Path("/sys/package")]
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    run = subprocess.run(
        [sys.executable, "-c", SOMEBODY, *map(str, places)],
        env={**os.environ, "PYTHONPATH": path, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == len(places)
    for line, place in zip(lines, places, strict=True):
        assert line.startswith("OutputFolderError 2 "), line
        assert f"'{place.parent}'" in line and "cannot be written to" in line, line
    assert package_hash(theirs / "package") == before
    assert sorted(path.name for path in theirs.iterdir()) == ["package"]
