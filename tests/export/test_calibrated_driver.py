"""Calibration from the embedding to the last layer: stopped anywhere, it comes to the same."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scripted_disks import SmallDisk

import qwen_edge.export
from qwen_edge.errors import CheckpointError, OutputFolderError
from qwen_edge.export.calibrated import activations
from qwen_edge.export.calibrated.activations import LayerRun
from qwen_edge.export.calibrated.calibration import Calibration
from qwen_edge.export.calibrated.driver import STEP, compress_calibrated
from qwen_edge.export.calibration_texts import CalibrationText, read_calibration
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.compress import TensorReport
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.quality.layerwise import Hidden
from qwen_edge.export.quality.measure import measure_quality
from qwen_edge.export.quality.texts import read_built_in, shorten
from qwen_edge.export.weight_store import Format, WeightStore
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.files.writing import using_disk
from qwen_edge.runtime.text_tokenizer import TextTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
DEMO = Path(qwen_edge.export.__file__).parent / "demo"
SAMPLES = ((5, 9, 200, 31, 77, 5, 640), tuple(range(20, 33)))
CheckpointMaker = Callable[..., Path]
MakeStore = Callable[[Path, Path, str], tuple[Any, WeightStore]]


Known = dict[tuple[object, ...], Any]


class Kept:
    """A store in memory, to be compared."""

    def __init__(self) -> None:
        self.vectors: dict[str, npt.NDArray[np.float32]] = {}
        self.matrices: list[tuple[object, ...]] = []

    def add(
        self,
        name: str,
        fmt: Format,
        shape: tuple[int, int],
        group_size: int,
        parts: Mapping[str, list[npt.NDArray[Any]]],
    ) -> None:
        """Keep one matrix as what can be compared."""
        arrays = {key: np.concatenate(blocks) for key, blocks in parts.items()}
        facts = [(key, a.dtype.str, a.shape, a.tobytes()) for key, a in sorted(arrays.items())]
        self.matrices.append((name, fmt, shape, group_size, *facts))

    def add_vector(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Keep a vector."""
        self.vectors[name] = values


@dataclass(frozen=True)
class Result:
    """All that came out, comparable."""

    matrices: tuple[tuple[object, ...], ...]
    vectors: tuple[tuple[str, bytes], ...]
    reports: tuple[TensorReport, ...]


def ignore(what: str, done: int, total: int) -> None:
    del what, done, total


@dataclass(frozen=True)
class Job:
    """A checkpoint, a recipe, and where its calibration keeps its work."""

    checkpoint: Path
    recipe: Recipe
    folder: Path
    samples: tuple[tuple[int, ...], ...] = SAMPLES
    key: str = "the key"

    def run(self, report: Callable[[str, int, int], None] = ignore) -> Result:
        spec = read_spec(json.loads((self.checkpoint / "config.json").read_bytes()))
        text = CalibrationText(self.samples, "own", "0")
        calibration = Calibration(self.recipe, text, self.folder, self.key)
        store, checkpoint = Kept(), open_checkpoint(self.checkpoint)
        reports = compress_calibrated(checkpoint, spec, store, calibration, report)
        checkpoint.close()
        vectors = tuple((name, array.tobytes()) for name, array in store.vectors.items())
        return Result(tuple(store.matrices), vectors, reports)

    @property
    def files(self) -> set[str]:
        """What lies in the work folder."""
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()


@pytest.fixture(scope="module")
def small_recipe() -> Recipe:
    """Return the recipe with every method, in groups that tiny matrices have."""
    return replace(load_recipe("int4-gptq"), group_size=32)


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path, small_recipe: Recipe) -> Job:
    return Job(tiny_checkpoint, small_recipe, tmp_path / ".package.calibration")


@pytest.fixture(scope="module")
def known_layers() -> Known:
    """Return what was computed so far of the checkpoint that most tests share."""
    return {}


@pytest.fixture
def quick_layers(known_layers: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile no layer of the shared checkpoint for an input that it has had before."""

    class Remembered:
        def __init__(self, *arguments: Any) -> None:
            self._arguments = arguments
            self._key = arguments[2:]

        def run(self, hidden: Hidden) -> Any:
            key = (*map(str, self._key), hidden.tobytes())
            if key not in known_layers:
                known_layers[key] = LayerRun(*self._arguments).run(hidden)
            return known_layers[key]

    monkeypatch.setattr(activations, "LayerRun", Remembered)


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: CheckpointMaker, small_recipe: Recipe
) -> Result:
    """Return what comes out of `job` without an interruption."""
    folder = tmp_path_factory.mktemp("straight")
    return Job(make_checkpoint(folder / "tiny"), small_recipe, folder / "work").run()


def test_everything_is_told_and_kept(job: Job, straight: Result) -> None:
    told: list[tuple[str, int, int]] = []
    result = job.run(lambda *event: told.append(event))
    assert result == straight
    assert told == [(STEP, done, 4) for done in (0, 0, 1, 2, 2, 3, 4)]
    assert job.files == {"key", "layer-0.safetensors", "layer-1.safetensors"}
    spec = read_spec(json.loads((job.checkpoint / "config.json").read_bytes()))
    names = [str(matrix[0]) for matrix in result.matrices]
    assert names == [name for name in spec.tensor_shapes() if "proj" in name or "embed" in name]
    assert [report.name for report in result.reports] == names
    assert {matrix[1] for matrix in result.matrices[1:]} == {"int4"}
    vectors = [name for name in spec.tensor_shapes() if name.endswith("norm.weight")]
    assert [name for name, _ in result.vectors] == [vectors[-1], *vectors[:-1]]
    for report in result.reports[1:]:
        assert 0.02 < report.relative_rms_error < 0.3


class Stopped(BaseException):
    """What no one catches."""


def stop_at(patch: pytest.MonkeyPatch, number: int) -> Callable[[str, int, int], None]:
    """Stop everything before it writes or reports for the n-th time; returns the report."""
    count = 0

    def pass_moment() -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Stopped

    def around(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            pass_moment()
            return real(*arguments, **options)

        patch.setattr(owner, name, call)

    around(os, "fsync")
    around(os, "replace")
    around(Path, "unlink")
    around(Path, "mkdir")
    around(Path, "write_text")
    return lambda what, done, total: pass_moment()


@pytest.mark.usefixtures("quick_layers")
def test_stopped_at_every_moment(job: Job, tmp_path: Path) -> None:
    quick = replace(job, recipe=replace(job.recipe, awq=False, scale_estimation=False))
    straight, number, repeated = quick.run(), 0, set()
    while True:
        number += 1
        each = replace(quick, folder=tmp_path / f"work {number}")
        with pytest.MonkeyPatch.context() as patch:
            try:
                each.run(stop_at(patch, number))
                break
            except Stopped:
                pass
        finished = sum(name.startswith("layer-") and "part" not in name for name in each.files)
        told: list[int] = []
        assert each.run(lambda what, done, total, told=told: told.append(done)) == straight
        # What is finished is not done again.
        assert told[0] == finished * len(SAMPLES)
        repeated.add(finished)
        assert each.files == {"key", "layer-0.safetensors", "layer-1.safetensors"}
    assert number > 20
    assert repeated == {0, 1, 2}


KILLED = """
import json, sys, time
from pathlib import Path
from qwen_edge.export.calibrated.calibration import Calibration
from qwen_edge.export.calibrated.driver import compress_calibrated
from qwen_edge.export.calibration_texts import CalibrationText
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.recipe import load_recipe

checkpoint, recipe, folder, spool, samples, moment = sys.argv[1:]

def report(what, done, total):
    if done == int(moment):
        print("there", flush=True)
        time.sleep(600)

text = CalibrationText(json.loads(samples), "own", "0")
spec = read_spec(json.loads((Path(checkpoint) / "config.json").read_bytes()))
calibration = Calibration(load_recipe(recipe), text, Path(folder), "the key")
compress_calibrated(
    open_checkpoint(Path(checkpoint)), spec, WeightStore(Path(spool)), calibration, report
)
"""


def test_killed_in_the_middle_of_a_layer(job: Job, straight: Result, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text('extends = "int4-gptq"\ngroup_size = 32\n', encoding="utf-8")
    arguments = [job.checkpoint, recipe, job.folder, tmp_path / "spool", json.dumps(SAMPLES), 3]
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": roots, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.kill()
        assert process.wait(60) != 0
    assert job.files == {"key", "layer-0.safetensors", "hidden-1.bin"}
    told: list[int] = []
    assert job.run(lambda what, done, total: told.append(done)) == straight
    assert told == [2, 2, 3, 4]


def interrupt(job: Job, moment: int) -> None:
    """Run until so many samples are done."""

    def report(what: str, done: int, total: int) -> None:
        if done == moment:
            raise Stopped

    with pytest.raises(Stopped):
        job.run(report)


def first_told(job: Job) -> tuple[int, Result]:
    told: list[int] = []
    result = job.run(lambda what, done, total: told.append(done))
    return told[0], result


@pytest.mark.usefixtures("quick_layers")
@pytest.mark.parametrize("change", ["key", "samples and key", "recipe and key"])
def test_other_inputs_start_anew(job: Job, straight: Result, tmp_path: Path, change: str) -> None:
    other = replace(job, key="another key")
    if "samples" in change:
        other = replace(other, samples=(SAMPLES[1], (*SAMPLES[0], 3)))
    if "recipe" in change:
        other = replace(other, recipe=replace(job.recipe, gptq=False))
    interrupt(job, 3)
    told, result = first_told(other)
    assert told == 0
    assert result == replace(other, folder=tmp_path / "elsewhere").run()
    assert (result == straight) == (change == "key")
    assert (job.folder / "key").read_text(encoding="utf-8") == "another key"
    assert first_told(other)[0] == 4


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("mine", encoding="utf-8"),
    "a folder": lambda path: (path / "photos").mkdir(parents=True),
    "a file among ours": lambda path: (
        path.mkdir(),
        (path / "key").write_text("old", encoding="utf-8"),
        (path / "layer-0.safetensors").write_bytes(b"x"),
        (path / "layer-0.safetensors.bak").write_bytes(b"x"),
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_left_alone(job: Job, kind: str) -> None:
    FOREIGN[kind](job.folder)
    before = {path: path.is_file() and path.read_bytes() for path in job.folder.parent.rglob("*")}
    with pytest.raises(OutputFolderError, match="holds something else") as caught:
        job.run()
    assert caught.value.facts["folder"] == str(job.folder)
    after = {path: path.is_file() and path.read_bytes() for path in job.folder.parent.rglob("*")}
    assert after == before


def test_a_link_is_not_followed(job: Job, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hidden-0.bin").write_bytes(b"of another")
    try:
        job.folder.symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    with pytest.raises(OutputFolderError, match="holds something else"):
        job.run()
    assert (elsewhere / "hidden-0.bin").read_bytes() == b"of another"


@pytest.mark.usefixtures("quick_layers")
@pytest.mark.parametrize("left", ["nothing", "half a key", "no key"])
def test_work_that_was_never_begun_is_begun(job: Job, straight: Result, left: str) -> None:
    if left == "no key":
        interrupt(job, 1)
        (job.folder / "key").unlink()
    else:
        job.folder.mkdir()
    if left == "half a key":
        (job.folder / "key").write_text(job.key[:4], encoding="utf-8")
    assert first_told(job) == (0, straight)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "other header": lambda content: content.replace(b"layers.0.mlp.up", b"layers.0.mlp.xx", 1),
}


@pytest.mark.usefixtures("quick_layers")
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_layer_is_refused_before_more_work_is_done(
    job: Job, straight: Result, kind: str
) -> None:
    """Of a power cut, for example; once it was found after hours spent on the other layers."""
    interrupt(job, 3)
    path = job.folder / "layer-0.safetensors"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    told: list[int] = []
    with pytest.raises(CheckpointError, match="was damaged on the disk, and has been removed"):
        job.run(lambda what, done, total: told.append(done))
    assert not job.folder.exists()
    assert not told
    assert first_told(job) == (0, straight)


@pytest.mark.usefixtures("quick_layers")
@pytest.mark.parametrize("kind", ["cut", "longer", "gone"])
def test_damaged_states_are_computed_again(job: Job, straight: Result, kind: str) -> None:
    interrupt(job, 3)
    path = job.folder / "hidden-1.bin"
    content = path.read_bytes()
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-4] if kind == "cut" else content + b"0000")
    assert first_told(job) == (0, straight)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("mlp.up_proj", 1), ("mlp.down_proj", 0), ("self_attn.v_proj", 0), ("mlp.down_proj", 1)],
)
def test_a_layer_that_overflows_is_named(
    make_checkpoint: CheckpointMaker, job: Job, tmp_path: Path, tensor: str, layer: int
) -> None:
    """Its weights are finite, what it gives is not; never found in the layer behind it."""

    def change(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[f"model.layers.{layer}.{tensor}.weight"] *= np.float32(1e37)
        arrays[f"model.layers.{layer}.{tensor}.weight"] *= np.float32(20)

    broken = replace(job, checkpoint=make_checkpoint(tmp_path / "broken", change=change))
    for _ in range(2):  # nothing of it is gone on with
        with pytest.raises(CheckpointError, match=f"^Layer {layer} .* NaN or infinite") as caught:
            broken.run()
        assert caught.value.facts["layer"] == layer
    assert f"layer-{layer}.safetensors" not in broken.files


@pytest.mark.usefixtures("quick_layers")
def test_a_full_disk_leaves_what_is_done(job: Job, straight: Result, tmp_path: Path) -> None:
    measured = replace(job, folder=tmp_path / "measured")
    disk = SmallDisk(measured.folder, 1 << 30)
    with using_disk(disk):
        measured.run()
    needed = (1 << 30) - disk.room_bytes
    finished = []
    for share in (0.0, 0.3, 0.99):
        each = replace(job, folder=tmp_path / f"work {share}")
        disk = SmallDisk(each.folder, int(share * needed))
        with using_disk(disk), pytest.raises(OSError) as caught:
            each.run()
        assert caught.value.errno == errno.ENOSPC
        told, result = first_told(each)
        assert result == straight
        finished.append(told // 2)
    assert finished == sorted(finished)
    assert set(finished) == {0, 1}


@pytest.mark.parametrize(
    "formats",
    [
        {"layers.0.self_attn.q_proj": "int8", "layers.*.mlp.down_proj": "fp16"},
        {f"layers.1.{name}": "int8" for name in ("self_attn.o_proj", "mlp.down_proj")},
        {
            f"layers.0.{name}_proj": "int8"
            for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")
        }
        | {f"layers.0.mlp.{name}_proj": "int8" for name in ("gate", "up", "down")},
    ],
    ids=["mixed", "a site without", "a layer without"],
)
def test_exceptions_are_kept(job: Job, formats: dict[str, Any]) -> None:
    """Also where a layer has nothing left for calibration."""
    exceptions = {
        key: MatrixFormat(weights, symmetric=False, group_size=-1)
        for key, weights in formats.items()
    }
    mixed = replace(job, recipe=replace(job.recipe, matrices=exceptions))
    interrupt(mixed, 3)
    told, result = first_told(mixed)
    assert told == 2
    for name, fmt, *_ in result.matrices:
        assert fmt == mixed.recipe.matrix_format(str(name)).weights


def test_widths_that_groups_do_not_divide(
    make_checkpoint: CheckpointMaker, job: Job, tmp_path: Path
) -> None:
    """They get smaller groups, or a scale per row."""
    config = {"hidden_size": 96, "head_dim": 18, "intermediate_size": 72}
    folder = make_checkpoint(tmp_path / "odd", **config)
    odd = replace(job, checkpoint=folder, recipe=load_recipe("int4-gptq"))
    sizes = {
        str(name).rpartition(".layers.0.")[2]: size for name, _, _, size, *_ in odd.run().matrices
    }
    assert sizes["self_attn.q_proj.weight"] == 32
    assert sizes["self_attn.o_proj.weight"] == -1
    assert sizes["mlp.down_proj.weight"] == -1


def peak_bytes(job: Job) -> int:
    tracemalloc.start()
    try:
        job.run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_one_layer(
    make_checkpoint: CheckpointMaker, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the layers need no more, beyond the names of their tensors."""
    monkeypatch.setattr(Kept, "add", lambda *arguments: None)
    peaks, recipe = [], replace(job.recipe, awq=False, scale_estimation=False)
    config = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256}
    for count in (2, 8):
        folder = make_checkpoint(tmp_path / f"{count}", num_hidden_layers=count, **config)
        each = Job(folder, recipe, tmp_path / f"work {count}", (tuple(range(200)),) * 3)
        peaks.append(peak_bytes(each))
        record = (each.folder / "layer-0.safetensors").stat().st_size
    assert record < peaks[0]
    assert peaks[1] - peaks[0] < 3 * record


def test_calibration_pays(
    tmp_path: Path, compress_checkpoint: MakeStore, demo_tokenizer: TextTokenizer
) -> None:
    """On texts that it has not seen: each method loses clearly less than the one before."""
    text = read_calibration(None, demo_tokenizer, None, "never", max_samples=8, max_tokens=64)
    held_out = shorten(read_built_in(demo_tokenizer), 250)
    losses = []
    for name in ("int4", "int4-awq-se", "int4-gptq"):
        recipe, checkpoint = load_recipe(name), open_checkpoint(DEMO)
        if recipe.is_calibrated:
            spec = read_spec(json.loads((DEMO / "config.json").read_bytes()))
            store = WeightStore(tmp_path / f"spool {name}")
            calibration = Calibration(recipe, text, tmp_path / name, "key")
            compress_calibrated(checkpoint, spec, store, calibration, ignore)
            store.freeze()
        else:
            spec, store = compress_checkpoint(tmp_path / f"spool {name}", DEMO, name)
        with store:
            quality = measure_quality(spec, checkpoint, store, held_out)
        assert quality.weights is not None
        losses.append(quality.weights.total.mean_kl.value)
    plain, scales, gptq = losses
    assert scales < 0.9 * plain
    assert gptq < 0.7 * scales
