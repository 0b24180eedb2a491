"""What keeps the project in shape: import direction, namespace, sizes, forbidden calls."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("export", "runtime", "profiles")
# Package → our packages it may import.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "profiles": {"errors"},
    "runtime": {"errors", "profiles"},
    "export": {"errors", "profiles", "runtime"},
    "server": {"errors", "profiles", "runtime"},
    "bundle": {"errors", "profiles", "runtime"},
    "cli": {"errors", "profiles", "runtime", "server", "bundle"},
    "pyinstaller_hooks": set(),
}
# The places where the command line meets the export, inside functions.
EXPORT_COMMANDS = (
    "runtime/qwen_edge/cli/export_command.py",
    "runtime/qwen_edge/cli/export_view.py",
    "runtime/qwen_edge/cli/frontier_view.py",
    "runtime/qwen_edge/cli/quality_command.py",
)
HEAVY = {
    "torch",
    "transformers",
    "nncf",
    "onnx",
    "onnx_ir",
    "onnxruntime_genai",
    "optimum",
    "huggingface_hub",
    "safetensors",
}
# Module → the engine that may be imported nowhere else, and how its name begins.
ENGINES = {"engine": "openvino", "providers": "onnxruntime"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CLI_IMPORT_S = 0.5


def our_files() -> list[Path]:
    """Return every module of the three source roots."""
    return sorted(p for top in SOURCE_ROOTS for p in (ROOT / top / "qwen_edge").rglob("*.py"))


def script_files() -> list[Path]:
    """Return every script."""
    return sorted((ROOT / "scripts").glob("*.py"))


def name_of(path: Path) -> str:
    """Return a path as it is written in this file."""
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> str:
    """Return which of our packages a module belongs to."""
    return path.relative_to(ROOT).parts[2]


def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the modules a tree imports, with the level of a relative import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def imports_when_run(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported as soon as the module is: not in functions, not for types only."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ClassDef):
            body = [n for n in node.body if not isinstance(n, ast.FunctionDef)]
            yield from (name for part in body for name, _ in imports(part))
            continue
        yield from (name for name, _ in imports(node))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with what is called, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_check() -> None:
    assert {package_of(path) for path in our_files()} == set(ALLOWED)


@pytest.mark.parametrize("path", our_files(), ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    package = package_of(path)
    for name, level in imports(tree_of(path)):
        assert level == 0, f"{name_of(path)} has a relative import"
        assert name != "qwen_edge", "write 'from qwen_edge.<package> import ...'"
        if not name.startswith("qwen_edge."):
            continue
        target = name.split(".")[1]
        if target == "export" and name_of(path) in EXPORT_COMMANDS:
            continue
        assert target == package or target in ALLOWED[package], f"imports {name}"


@pytest.mark.parametrize("path", EXPORT_COMMANDS)
def test_commands_import_the_export_inside_functions_only(path: str) -> None:
    names = list(imports_when_run(tree_of(ROOT / path)))
    assert not [name for name in names if name.startswith("qwen_edge.export")]


@pytest.mark.parametrize(("module", "engine"), ENGINES.items())
@pytest.mark.parametrize("path", our_files(), ids=name_of)
def test_engines_come_through_one_module_each(path: Path, module: str, engine: str) -> None:
    """Whoever imports one directly wakes its telemetry; imports for types only are allowed."""
    if name_of(path) == f"runtime/qwen_edge/runtime/{module}.py":
        return
    tree = tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = {name.split(".")[0] for name, _ in imports(tree)}
    assert engine not in found
    loaded = {ast.unparse(call) for name, call in calls(tree) if name.endswith("import_module")}
    assert not [call for call in loaded if f"'{engine}" in call and "tokenizers" not in call]


@pytest.mark.parametrize("path", our_files(), ids=name_of)
def test_heavy_packages_are_imported_inside_functions_only(path: Path) -> None:
    found = {name.split(".")[0] for name in imports_when_run(tree_of(path))}
    engines = {"openvino", "onnxruntime", "google"}
    assert not found & (engines | {"torch", "transformers", "nncf", "onnx", "optimum"})
    if package_of(path) != "export":
        every = {name.split(".")[0] for name, _ in imports(tree_of(path))}
        assert not every & HEAVY


def test_the_namespace_has_no_init_and_roots_hold_nothing_else() -> None:
    for top in SOURCE_ROOTS:
        assert [p.name for p in (ROOT / top).iterdir() if p.name != "__pycache__"] == ["qwen_edge"]
        assert not (ROOT / top / "qwen_edge" / "__init__.py").exists()
        packages = [p for p in (ROOT / top / "qwen_edge").iterdir() if p.name != "__pycache__"]
        for package in packages:
            assert package.name in ALLOWED
            assert (package / "__init__.py").is_file(), package
            assert (package / "py.typed").is_file(), package


@pytest.mark.parametrize("path", our_files() + script_files(), ids=name_of)
def test_modules_say_what_they_are_and_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{node.name} has {num_lines} lines"


@pytest.mark.parametrize("path", our_files(), ids=name_of)
def test_nothing_prints_but_the_output_module(path: Path) -> None:
    names = {name for name, _ in calls(tree_of(path))}
    if name_of(path) != "runtime/qwen_edge/cli/output.py":
        forbidden = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
        assert not names & forbidden


@pytest.mark.trust("T-TPL-06")
@pytest.mark.parametrize("path", our_files() + script_files(), ids=name_of)
def test_nothing_runs_code_from_data(path: Path) -> None:
    tree = tree_of(path)
    modules = {name.split(".")[0] for name, _ in imports(tree)}
    assert not modules & {"pickle", "dill", "shelve", "marshal"}
    for name, call in calls(tree):
        assert name not in {"eval", "exec", "compile", "__import__"}, ast.unparse(call)
        # Templates of a package run in the sandbox or not at all.
        is_plain = name.split(".")[-1] in {"Environment", "NativeEnvironment", "Template"}
        assert not (is_plain and "jinja2" in modules), name
        for keyword in call.keywords:
            if keyword.arg in {"shell", "trust_remote_code", "allow_pickle"}:
                assert ast.unparse(keyword.value) == "False", ast.unparse(call)
        if name.endswith("os.system") or name in {"os.popen", "os.fork", "os.symlink"}:
            pytest.fail(f"{name} is called")


@pytest.mark.parametrize("path", our_files(), ids=name_of)
def test_settings_are_frozen_and_globals_left_alone(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, ast.Global), "no `global`"


def test_the_command_line_is_light(tmp_path: Path) -> None:
    """A fresh interpreter imports it without the engine, numpy or anything of the export."""
    code = (
        "import json, sys, time; start = time.perf_counter(); import qwen_edge.cli; "
        "seconds = time.perf_counter() - start; "
        "names = sorted({name.split('.')[0] for name in sys.modules}); "
        "ours = sorted(name for name in sys.modules if name.startswith('qwen_edge.')); "
        "print(json.dumps([seconds, names, ours]))"
    )
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / top) for top in SOURCE_ROOTS),
        "HOME": str(tmp_path),
    }
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-B", "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=env,
            cwd=tmp_path,
        )
        runs.append(json.loads(done.stdout))
    _, names, ours = runs[0]
    heavy = HEAVY | {"openvino", "onnxruntime", "google", "numpy", "tokenizers", "jinja2", "rich"}
    assert not heavy & set(names)
    assert not [name for name in ours if name.startswith(("qwen_edge.export", "qwen_edge.runtime"))]
    assert min(run[0] for run in runs) < MAX_CLI_IMPORT_S
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["run", "chat", "batch", "verify", "profiles", "doctor", "export", "tune"]
)
def test_help_is_light(command: str) -> None:
    """`--help` must not wait for an engine."""
    code = (
        "import sys; from qwen_edge.cli.main import run\n"
        f"code = run([{command!r}, '--help'])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / top) for top in SOURCE_ROOTS),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    engines = {"openvino", "onnxruntime", "google", "tokenizers", "jinja2"}
    assert not (HEAVY | engines) & set(done.stderr.split())
