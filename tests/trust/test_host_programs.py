"""The library in other people's programs: threads, forks, exits, and what lies around in them."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="forks, users and modes are POSIX's")
FORBIDDEN = {"torch", "transformers", "onnx", "nncf", "scipy", "optimum", "safetensors", "sklearn"}
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def program(demo_package: Path) -> Callable[..., Done]:
    """Return a function that runs a program; `argv[1]` is the demo package."""

    def run(code: str, *, env: dict[str, str] | None = None, **options: object) -> Done:
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [sys.executable, "-c", textwrap.dedent(code), str(demo_package)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=90,
            check=False,
            env={**os.environ, "PYTHONPATH": ROOTS, **(env or {})},
            **options,
        )

    return run


@pytest.mark.trust("T-EMB-03")
def test_a_conversation_imports_nothing_of_the_export(program: Callable[..., Done]) -> None:
    done = program("""
        import sys, json
        from qwen_edge.runtime import load
        with load(sys.argv[1]) as model:
            session = model.session()
            assert session.ask("Hello!").text and session.ask("And now?").text
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
    """)
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout))
    assert {"numpy", "openvino", "tokenizers"} <= modules, "it did run"
    assert not modules & FORBIDDEN


@pytest.mark.trust("T-EMB-09")
def test_calls_from_eight_threads_are_answered_or_refused(program: Callable[..., Done]) -> None:
    done = program("""
        import sys, threading
        from qwen_edge.errors import EdgeError
        from qwen_edge.runtime import load
        model = load(sys.argv[1])
        outcomes, started = [], threading.Barrier(8)
        def ask():
            session = model.session()
            started.wait()
            try:
                outcomes.append(("answer", session.ask("Hello!").text))
            except EdgeError as error:
                outcomes.append(("refusal", type(error).__name__ + ": " + error.problem))
            except BaseException as error:
                outcomes.append(("bug", repr(error)))
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        kinds = [kind for kind, _ in outcomes]
        assert len(outcomes) == 8 and "bug" not in kinds and "answer" in kinds, outcomes
        assert len({text for kind, text in outcomes if kind == "answer"}) == 1, outcomes
        assert {text for kind, text in outcomes if kind == "refusal"} <= {
            next((t for k, t in outcomes if k == "refusal"), "")}, outcomes
        assert model.session().ask("Hello!").text
        for thread in [threading.Thread(target=model.close) for _ in range(8)]: thread.start()
        model.close()
        try:
            model.session().ask("x")
        except EdgeError as error:
            print(error.problem)
    """)
    assert done.returncode == 0, done.stderr
    assert "closed" in done.stdout


# How a program may end while a model is open, and what must not become of it: a crash.
ENDS = {
    "never-closed": "",
    "in-a-global-and-a-cycle": "model.me = model; session.me = session",
    "answer-half-read": "stream = session.stream('Tell me.'); next(stream)",
    "during-the-warm-up": "model.close(); del session; model = load(sys.argv[1])",
    "closed-in-atexit": "import atexit; atexit.register(model.close)",
    "deleted-backwards": "del model; import gc; gc.collect(); session.ask('x')",
    "thread-still-answers": """
        import threading
        threading.Thread(target=lambda: session.ask("Tell me.", max_new_tokens=40)).start()""",
    "daemon-still-answers": """
        import threading, time
        threading.Thread(target=lambda: [session.ask("x") for _ in range(99)], daemon=True).start()
        time.sleep(0.05)""",
    "asyncio": """
        import asyncio
        async def main():
            answers = await asyncio.gather(asyncio.to_thread(session.ask, "Hello!"))
            assert answers[0].text
        asyncio.run(main())""",
}


@pytest.mark.trust("T-EMB-09")
@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_without_a_crash(program: Callable[..., Done], end: str) -> None:
    start = """
        import sys
        from qwen_edge.runtime import load
        model = load(sys.argv[1])
        session = model.session()
        print(session.ask("Hello!").text, flush=True)
    """
    done = program(textwrap.dedent(start) + textwrap.dedent(ENDS[end]))
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.strip()
    if end == "daemon-still-answers":  # the thread is told that its model is closed
        assert done.stderr.count("Traceback") <= 1, done.stderr
    else:
        assert done.stderr == ""


@pytest.mark.trust("T-EMB-09")
@ON_POSIX
def test_a_fork_with_an_open_model_harms_neither(program: Callable[..., Done]) -> None:
    """A child that runs another program or just ends; the parent answers on as before.

    One that ends by `sys.exit` waits for ever in OpenVINO's destructors, whoever compiled a model.
    """
    done = program("""
        import os, subprocess, sys, warnings
        from qwen_edge.runtime import load
        warnings.simplefilter("ignore", DeprecationWarning)
        model = load(sys.argv[1])
        first = model.session().ask("Hello!").text
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        import multiprocessing
        child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
        child.start()
        child.join(30)
        assert child.exitcode == 0, child.exitcode
        assert subprocess.run([sys.executable, "-c", ""], close_fds=False).returncode == 0
        assert model.session().ask("Hello!").text == first
        model.close()
    """)
    assert done.returncode == 0, done.stderr


# What another program leaves in the environment of those that it starts.
JUNK: dict[str, dict[str, str]] = {
    "no-home": {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"},
    "c-locale": {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "", "PYTHONUTF8": "0"},
    "libraries": {
        "LD_LIBRARY_PATH": "{junk}",
        "OPENVINO_LIB_PATHS": "{junk}",
        "INTEL_OPENVINO_DIR": "{junk}",
        "OMP_NUM_THREADS": "999",
        "KMP_AFFINITY": "nonsense",
    },
    "others": {
        "TMPDIR": "/nonexistent",
        "HTTP_PROXY": "http://192.0.2.1:9",
        "ALL_PROXY": "socks5://192.0.2.1:9",
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "1",
    },
}


@pytest.mark.trust("T-EMB-07")
@pytest.mark.parametrize("kind", JUNK)
def test_junk_in_the_environment_does_not_matter(
    program: Callable[..., Done], tmp_path: Path, kind: str
) -> None:
    """The bundle has the same test with foreign modules: it brings its own Python along."""
    for name in ("libtbb.so.12", "libhwloc.so.15", "libonnxruntime.so.1"):
        shutil.copy(sys.executable, tmp_path / name)
    env = {name: value.format(junk=tmp_path) for name, value in JUNK[kind].items()}
    done = program(
        """
        import sys
        from qwen_edge.cli.main import run
        sys.exit(run(["run", sys.argv[1], "Hello!", "--max-new-tokens", "8", "--quiet"]))
        """,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.trust("T-EMB-07")
def test_a_module_that_is_in_the_way_is_named(program: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("VERSION = 'not the one'\n", encoding="utf-8")
    path = os.pathsep.join((str(tmp_path), ROOTS))
    done = program(
        """
        import sys
        from qwen_edge.cli.main import run
        sys.exit(run(["run", sys.argv[1], "Hello!", "--backend", "openvino"]))
        """,
        env={"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode not in (0, 1), done.stderr
    assert "Error: " in done.stderr and "\nFix: " in done.stderr
    assert "openvino" in done.stderr.lower() and "Traceback" not in done.stderr
