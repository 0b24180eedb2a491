"""Nothing writes, and nothing follows a name that stands in a file, past `runtime/files`.

Each way round is named here with its reason; a new one makes these tests fail.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOOR = "runtime/qwen_edge/runtime/files/"
# Methods of paths, and functions of os, shutil, tempfile and engines, that change a disk.
CHANGING = frozenset({
    "write_text", "write_bytes", "unlink", "rmdir", "mkdir", "makedirs", "touch", "symlink_to",
    "hardlink_to", "symlink", "link", "rename", "renames", "remove", "removedirs", "rmtree",
    "move", "copy", "copy2", "copyfile", "copytree", "copymode", "fsync", "fdatasync",
    "ftruncate", "truncate", "tofile", "save_model", "save_file", "mkstemp", "mkdtemp",
    "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory", "SpooledTemporaryFile", "chmod",
    "utime", "sendfile", "mkfifo", "savez",
})  # fmt: skip
MODULES = frozenset({"os", "shutil", "tempfile", "ov", "ir"})
# Names that other things than files have too: only as functions of these modules.
ONLY_OF_MODULES = frozenset({
    "remove", "move", "copy", "link", "rename", "renames", "truncate", "symlink",
})  # fmt: skip
ALLOWED_WRITES = {
    ("export/adapters/merging.py", "TemporaryFile"): "a spool without a name, gone when closed",
    ("export/hub_cache.py", "link"): "content of another commit in the cache, checked by its hash",
    ("export/openvino_files.py", "save_model"): "the engine writes; said with note_written",
    ("export/tokenizer_files.py", "save_model"): "the engine writes; said with note_written",
    ("export/transfer.py", "open"): "a download goes on at the end of what it has",
    ("export/transfer.py", "fsync"): "of that download",
    ("runtime/benchmark/cold_start.py", "TemporaryFile"): "what a child prints, gone when closed",
    ("runtime/devices/compile_cache.py", "utime"): "the newest folder of its kind is kept",
    ("runtime/devices/trial_process.py", "write_text"): "the kernel's own file about this process",
    ("runtime/machine/speed.py", "TemporaryFile"): "measures the disk, gone when closed",
    ("runtime/machine/speed.py", "fsync"): "of that",
    ("bundle/archive.py", "open"): "an entry of a zip that the door writes",
    ("bundle/elf.py", "open"): "changes bytes of a file that was just copied into the bundle",
    ("bundle/pipeline.py", "chmod"): "programs of the bundle can be started",
    ("bundle/program_files.py", "chmod"): "programs of the bundle can be started",
}
FOLDERS = re.compile(r"folder|path|root|target|cache|staging|snapshot|_lib|output|Path\(", re.I)
# Names joined to a folder without `inside`: (file, how it is written) → where the name is from.
ALLOWED_JOINS = {
    ("export/calibrated/calibration.py", "source.folder / name"): "names chosen by `select_files`",
    ("export/hub_cache.py", "self.folder / 'snapshots' / commit"): "40 hex digits, checked",
    ("export/optimum_frontend.py", "folder / name"): "two constants",
    ("export/package_facts.py", "folder / names[1]"): "constants",
    ("export/pipeline.py", "self.source.folder / name"): "constants",
    ("export/pipeline.py", "folder / name"): "names of a listing of the folder itself",
    ("export/pipeline.py", "self.staging.folder / name"): "constants",
    ("export/resource_plan.py", "source.folder / file.name"): "names chosen by `select_files`",
    ("export/source.py", "folder / n"): "names of a listing of the folder itself",
    ("export/warm_prompt.py", "folder / name"): "constants",
    ("runtime/resources/plan.py", "folder / name"): "constants",
    ("runtime/records.py", "cache_dir / self.kind"): "constants",
    (
        "runtime/devices/compile_cache.py",
        "cache_dir / _KIND / f'{package_hash[:32]}-{device}' / digest[:32]",
    ): "hex digits",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield name and tree of every product file but the door's own."""
    for top in ("export", "runtime", "profiles"):
        for path in sorted((ROOT / top / "qwen_edge").rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(DOOR):
                short = path.relative_to(ROOT / top / "qwen_edge").as_posix()
                yield short, ast.parse(path.read_text(encoding="utf-8"))


def changes(tree: ast.AST) -> Iterator[str]:
    """Yield what changes a disk: the names of calls."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if is_open_for_writing(node):
            yield "open"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            owner = ast.unparse(node.func.value)
            if node.func.attr not in ONLY_OF_MODULES or owner in MODULES:
                yield node.func.attr
        elif ast.unparse(node.func) in ("os.replace", "os.open"):
            flags = ast.unparse(node)
            if "O_WRONLY" in flags or "O_RDWR" in flags or "os.replace" in flags:
                yield ast.unparse(node.func)


def is_open_for_writing(node: ast.Call) -> bool:
    """Return whether a call of `open` or `Path.open` has a mode that writes."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    modes = [
        value.value for value in ast.walk(ast.List(elts=given)) if isinstance(value, ast.Constant)
    ]
    return name == "open" and any(
        isinstance(mode, str) and re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+")
        for mode in modes
    )


def joins(tree: ast.Module) -> Iterator[str]:
    """Yield where a name that is no constant is joined to a folder."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
            continue
        left, right = ast.unparse(node.left), node.right
        is_constant = isinstance(right, ast.Constant | ast.JoinedStr)
        is_constant = is_constant or bool(re.fullmatch(r"_?[A-Z][A-Z_]+", ast.unparse(right)))
        if FOLDERS.search(left) and not is_constant and "bytes" not in left + ast.unparse(right):
            yield ast.unparse(node)


@pytest.mark.trust("T-EXP-13")
def test_all_writing_goes_through_one_module() -> None:
    found = {(name, what) for name, tree in modules() for what in changes(tree)}
    assert found - set(ALLOWED_WRITES) == set()
    assert set(ALLOWED_WRITES) - found == set(), "no longer needed"


# What the names of a wheel, a system's libraries or this project's own code are joined to, and
# folders of settings and caches; none of these names stands in a file of a model.
OWN_NAMES = re.compile(r"bundle/|runtime/devices/drivers|runtime/environment|server/ovms")


@pytest.mark.trust("T-IN-03")
def test_names_from_files_are_followed_through_one_module() -> None:
    found = {
        (name, how) for name, tree in modules() for how in joins(tree) if not OWN_NAMES.match(name)
    }
    assert found - set(ALLOWED_JOINS) == set()
    assert set(ALLOWED_JOINS) - found == set(), "no longer needed"


@pytest.mark.parametrize(
    "text",
    [
        "path.open('wb')", "open(path, mode='a')", "path.write_text('x')", "os.replace(a, b)",
        "shutil.copy2(a, b)", "os.open(path, os.O_RDWR)", "path.unlink()", "tempfile.mkdtemp()",
    ],
)  # fmt: skip
def test_the_search_sees_each_way_to_write(text: str) -> None:
    assert list(changes(ast.parse(text)))


@pytest.mark.parametrize("text", ["path.open('rb')", "a.replace('x', 'y')", "names.remove(x)"])
def test_the_search_leaves_others_alone(text: str) -> None:
    assert not list(changes(ast.parse(text)))
