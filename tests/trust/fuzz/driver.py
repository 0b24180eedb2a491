"""Runs targets in child processes and says which inputs broke one; a child's end stays its own.

    python driver.py --package FOLDER [--target NAME] [--seed N] [--cases N | --minutes N]
    python driver.py --package FOLDER --found

Prints one line of JSON a target: cases tried, seconds computed, failures. Every input that breaks
a target is kept in `found/`, and `--found` tries those again.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import broken
import targets
from lab import Lab, Target
from worker import MAX_CASE_CPU_S, work

_MAX_CASE_S = 90.0  # on a clock, for what waits instead of computing
_MAX_KEPT = 20  # of one run of a target
DEFAULT_SEED = 8


def run_target(
    target: Target, package: Path, *, stop: int, seed: int, start: int = 0, **more: object
) -> dict[str, Any]:
    """Try cases of one target; returns how many, how many were answered, and what failed."""
    failures: list[dict[str, Any]] = []
    num_answers = num_cases = 0
    begin_s = _children_cpu_s()
    number = start
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while number < stop:
            lab = Lab(Path(folder) / f"{number}", package)
            lab.work.mkdir()
            task = {"start": number, "stop": stop, "seed": seed, **more}
            told, last = _run_worker(target, lab, task)
            failures += [_with_input(line, lab.work) for line in told if "problem" in line]
            num_cases += sum(line.get("cases", 0) for line in told)
            num_answers += sum(line.get("answers", 0) for line in told)
            number = stop if last is None else last + 1
    return {
        "target": target.name,
        "cases": num_cases if more.get("is_control") else stop - start,
        "answers": num_answers,  # of what a worker that died had done, nothing
        "cpu_s": round(_children_cpu_s() - begin_s, 2),
        "failures": failures,
    }


def _run_worker(
    target: Target, lab: Lab, task: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], int | None]:
    """Fork one worker; returns what it told, and the case it died of, None for none."""
    process = os.fork()  # nothing here has threads: engines are imported by workers
    if not process:
        _become_worker(target, lab, task)
    status, ended = _watch(process, lab.work / "number")
    lines = (lab.work / "out").read_text(encoding="utf-8", errors="replace").splitlines()
    told = [json.loads(line) for line in lines if line.startswith(('{"number"', '{"answers"'))]
    where = _read_number(lab.work / "number")
    if where == "done" and status == 0:
        return told, None
    tail = (lab.work / "err").read_text(encoding="utf-8", errors="replace")[-2_000:]
    if not where.isdigit():
        raise RuntimeError(
            f"the worker of {target.name!r} ended at {where!r} with {status}: {tail}"
        )
    told.append({"number": int(where), "problem": _describe(status, ended, tail)})
    return told, int(where)


def _become_worker(target: Target, lab: Lab, task: Mapping[str, Any]) -> NoReturn:
    """Redirect what this process writes, try the cases and end."""
    code = 1
    try:
        home = lab.work / "home"
        home.mkdir()
        names = ("HOME", "TMPDIR", "QWEN_EDGE_CACHE_DIR", "QWEN_EDGE_CONFIG_DIR")
        os.environ.update(dict.fromkeys(names, str(home)), MALLOC_ARENA_MAX="2")
        os.chdir(lab.work)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(lab.work / name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        work(target, lab, task)
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(process: int, progress: Path) -> tuple[int, str]:
    """Wait for a worker's end, and end it where one case takes too long; returns its end."""
    last, since_s, step_s = "", time.monotonic(), 0.01
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), ""
        time.sleep(step_s)
        step_s = min(0.3, step_s * 1.5)
        now = _read_number(progress)
        if now != last:
            last, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > _MAX_CASE_S:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return -signal.SIGKILL, f"it waited for {_MAX_CASE_S:g} s"


def _describe(status: int, ended: str, tail: str) -> str:
    if status == -signal.SIGPROF:
        return f"it computed for more than {MAX_CASE_CPU_S:g} s"
    return ended or f"the process ended with {status}: {tail}"


def _read_number(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _with_input(failure: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return a failure with its input; a worker that died of it wrote it before it began."""
    own = work / f"input-{failure['number']}"
    data = (own if own.exists() else work / "input").read_bytes()
    return {**failure, "input": data}


def _try_found(target: Target, package: Path) -> dict[str, Any]:
    files = [str(path) for path in targets.found(target.name)]
    result = run_target(target, package, stop=len(files), seed=0, files=files)
    for failure in result["failures"]:
        failure["file"] = files[failure["number"]]
    return result


def _try_good(target: Target, package: Path) -> dict[str, Any]:
    """Give a target what nothing was done to: all of it is to be answered."""
    return run_target(target, package, stop=1, seed=0, is_control=True)


def _run_once(
    target: Target, package: Path, *, stop: int, seed: int, start: int = 0, keeps: bool
) -> bool:
    """Try cases of a target, print what came of it, and return whether none failed."""
    result = run_target(target, package, start=start, stop=stop, seed=seed)
    for index, failure in enumerate(result["failures"]):
        failure["seed"] = seed
        if keeps and index < _MAX_KEPT:
            failure["file"] = str(targets.keep(target.name, failure["input"]))
    return _show(result)


def _show(result: dict[str, Any]) -> bool:
    """Print what came of a target; returns whether nothing failed."""
    for failure in result["failures"]:
        failure["input"] = repr(failure["input"][:200])
    print(json.dumps(result), flush=True)
    return not result["failures"]


def main() -> int:
    """Run what the command line asks for; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True, help="a package of the demo model")
    parser.add_argument("--target", action="append", help="one target; may be repeated")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--cases", type=int, help="of each target; default: what the suite tries")
    parser.add_argument("--minutes", type=float, help="new seeds until so much time is over")
    parser.add_argument("--control", action="store_true", help="only what nothing was done to")
    parser.add_argument("--found", action="store_true", help="only what was found before")
    parser.add_argument("--no-keep", action="store_true", help="do not write what is found")
    parser.add_argument("--with-broken", action="store_true", help="know targets made to break")
    args = parser.parse_args()
    known = broken.TARGETS if args.with_broken else targets.TARGETS
    chosen = [one for one in known if args.target is None or one.name in args.target]
    if not chosen or len(chosen) < len(set(args.target or ())):
        parser.error(f"--target: expected some of {', '.join(one.name for one in known)}")
    package, is_good = args.package.resolve(), True
    if args.found or args.control:
        for target in chosen:
            result = _try_found(target, package) if args.found else _try_good(target, package)
            is_good = _show(result) and is_good
        return 0 if is_good else 1
    end_s = time.monotonic() + 60 * (args.minutes or 0)
    seed = args.seed
    while True:
        for target in chosen:
            stop = args.cases or target.cases
            good = _run_once(target, package, stop=stop, seed=seed, keeps=not args.no_keep)
            is_good = is_good and good
            if args.minutes and time.monotonic() > end_s:
                break
        seed += 1
        if time.monotonic() > end_s:
            return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
