"""Runs cases of one target in this process, which may die of one; `driver.py` forks it.

It writes the number of each case to a file before it begins, so that who started it knows which
one it died of, and one line of JSON for each case that fails. The system ends it where a case
computes for too long, whatever it is doing.
"""

import json
import resource
import signal
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import targets
from lab import Lab, Reader, Target

from qwen_edge.errors import EdgeError

MAX_CASE_CPU_S = 5.0
_MAX_MEMORY_BYTES = 6 << 30
_MAX_MESSAGE_CHARS = 50_000


def make_input(target: Target, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Return the input of one case, the same at every time."""
    rng = Random(f"{target.name}/{seed}/{number}")
    return rng.choice(target.changes)(rng, rng.choice(seeds))


def try_input(read: Reader, data: bytes) -> str | None:
    """Return what went wrong: "" for an answer, None for a refusal of ours."""
    try:
        read(data)
    except EdgeError as error:
        text = str(error)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return f"the refusal cannot be printed: {text!a:.300}"
        if len(text) > _MAX_MESSAGE_CHARS:
            return f"the refusal has {len(text):,} characters: {text:.200}"
    except BaseException:  # a panic of Rust is no Exception
        return traceback.format_exc()
    else:
        return ""
    return None


def _inputs(target: Target, lab: Lab, arguments: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
    files, seeds = arguments.get("files"), list(target.seeds(lab))
    if arguments.get("is_control"):
        yield from enumerate(seeds)
        return
    for number in range(arguments["start"], arguments["stop"]):
        if files is not None:
            yield number, targets.unpack(Path(files[number]))
        else:
            yield number, make_input(target, seeds, arguments["seed"], number)


def work(target: Target, lab: Lab, arguments: Mapping[str, Any]) -> None:
    """Try the cases that the arguments say; prints a line of JSON for each that fails."""
    inputs = _inputs(target, lab, arguments)
    read = target.prepare(lab)
    try_input(read, target.seeds(lab)[0])  # what is imported at the first call is no case's time
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    num_answers = num_cases = 0
    with (lab.work / "number").open("wb", buffering=0) as progress:
        for number, data in inputs:
            progress.seek(0)
            progress.write(f"{number:<12}".encode())
            (lab.work / "input").write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, MAX_CASE_CPU_S)
            problem = try_input(read, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            num_cases, num_answers = num_cases + 1, num_answers + (problem == "")
            if problem:
                (lab.work / f"input-{number}").write_bytes(data)
                print(json.dumps({"number": number, "problem": problem}), flush=True)
        progress.seek(0)
        progress.write(b"done        ")
    print(json.dumps({"answers": num_answers, "cases": num_cases}), flush=True)
