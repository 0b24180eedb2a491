"""Compare this runtime with other programs on the same work, on this machine. Last line: JSON.

    python scripts/bench_peers.py PACKAGE [--onnx-package PACKAGE] [--gguf FILE] [--rounds 5]

The work is a prompt of 512 tokens with an answer of 128, and a start from nothing to the first
token after a prompt of 32. The others are OpenVINO GenAI with its defaults on the same package,
llama.cpp with a Q4_0 file of the same shape and random weights, which is made here, and
onnxruntime-genai with our ONNX package of the same model. Each runs in a process of its own; in
each round each answers the same prompt once, in an order that changes, and memory's bandwidth is
measured beside it. Processes stay while memory holds them all; else each is started anew in every
round. Ratios are medians of the rounds' own ratios, above 1 where this runtime is faster. Leave the
machine alone meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from make_random_gguf import write_gguf
from peer_engines import ENGINES, MARK, find_version

from qwen_edge.errors import EdgeError
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.benchmark.cold_start import (
    child_environment,
    measure_cold_start,
    read_through,
)
from qwen_edge.runtime.benchmark.prompts import RandomPrompts
from qwen_edge.runtime.benchmark.work import count_work
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.machine.roofline import measure_bandwidth
from qwen_edge.runtime.manifest import MODEL_ONNX_DATA, Manifest
from qwen_edge.runtime.package import read_manifest
from qwen_edge.runtime.verified import check_verified

OURS = "qwen-edge"
COLD_TOKENS = 32
WARM_UP_TOKENS = 4
ROOM_TOKENS = 16  # beyond prompt and answer, for the engines that reserve a cache
HELD_FACTOR = 1.4  # private memory of a program for a byte of its model's file, and some room
BANDWIDTH_SECONDS = 0.3
PAUSE_SECONDS = 0.3  # for threads that spin a while before they sleep


@dataclass
class Peer:
    """One program with what was measured of it.

    State:
        Grows with each measurement. `problem` says why there are no more; None while all is well.
    """

    name: str
    model: Path | None = None
    problem: str | None = None
    private_bytes: int = 0
    cold_s: list[float] = field(default_factory=list)
    answers: dict[int, tuple[float, float]] = field(default_factory=dict)


class PeerError(Exception):
    """A program that is compared could not do its work."""


class Worker:
    """A process that holds one program's model.

    Args:
        peer: Which; its model is set.
        threads: For those that have to be told.
        max_tokens: Most of prompt and answer.
    """

    def __init__(self, peer: Peer, threads: int, max_tokens: int) -> None:
        script = Path(__file__).with_name("peer_engines.py")
        arguments = [peer.name, str(peer.model), str(threads), str(max_tokens)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=child_environment(),
        )

    def answer(self, prompt_ids: Sequence[int], new_tokens: int) -> dict[str, Any]:
        """Return what one answer took; raises PeerError when the program ends instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([list(prompt_ids), new_tokens]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._read()  # says why
        while "first_s" not in (told := self._read()):
            pass
        return told

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            if isinstance(facts, dict) and MARK in facts:
                return dict(facts[MARK])
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no word")
        raise PeerError(f"ended with {self._process.returncode}: {last[:200]}")


@contextmanager
def opened(peer: Peer, threads: int, max_tokens: int) -> Iterator[Worker]:
    """Start a program for the time of the block."""
    worker = Worker(peer, threads, max_tokens)
    try:
        yield worker
    finally:
        worker.close()


def find_peers(arguments: argparse.Namespace, folder: Path) -> list[Peer]:
    """Return every program, with the reason for those that cannot be run.

    Args:
        arguments: Of the command line.
        folder: Where to write a GGUF file, unless one was given.
    """
    peers = [Peer(name) for name in ENGINES if name in arguments.peers]
    for peer in peers:
        if find_spec(ENGINES[peer.name][1]) is None:
            peer.problem = f"{ENGINES[peer.name][2]} is not installed"
        elif peer.name == "llama.cpp":
            peer.model = arguments.gguf or folder / "random-q4_0.gguf"
            if not peer.model.exists() and find_spec("gguf") is None:
                peer.problem = "no --gguf file was given, and gguf is not installed to make one"
        elif peer.name == "onnxruntime-genai":
            peer.model = arguments.onnx_package or arguments.package
            if not (peer.model / MODEL_ONNX_DATA).is_file():
                peer.problem = "the package has no ONNX model, and no --onnx-package was given"
        else:
            peer.model = arguments.package
    for peer in peers:
        if peer.problem is not None:
            say(f"{peer.name}: not measured, {peer.problem}")
        elif peer.model is not None and not peer.model.exists():
            say(f"writing {peer.model.name} …")
            write_gguf(arguments.package, peer.model)
    return peers


def model_bytes(peer: Peer) -> int:
    """Return the size of the files a program reads its model from."""
    assert peer.model is not None
    if peer.model.is_file():
        return peer.model.stat().st_size
    suffix = ".data" if peer.name == "onnxruntime-genai" else ".bin"
    return sum(path.stat().st_size for path in peer.model.iterdir() if path.suffix == suffix)


def measure_starts(peers: Sequence[Peer], prompts: RandomPrompts, num: int, threads: int) -> None:
    """Start every program from nothing, in turn, to the first token of a short prompt."""
    for number in range(num):
        for peer in rotate(peers, number):
            if peer.problem is not None:
                continue
            assert peer.model is not None
            prompt = prompts.make(COLD_TOKENS)
            warm_files(peer.model)
            try:
                if peer.name == OURS:
                    # As any program would, with the warm-up that loading starts.
                    start = measure_cold_start(
                        peer.model, prompt, device="CPU", backend="openvino", threads=None
                    )
                    peer.cold_s.append(start.total_s)
                else:
                    begun_s = time.perf_counter()
                    with opened(peer, threads, COLD_TOKENS + ROOM_TOKENS) as worker:
                        worker.answer(prompt, 1)
                        peer.cold_s.append(time.perf_counter() - begun_s)
            except (PeerError, EdgeError) as error:
                give_up(peer, error)
                continue
            say(f"cold start {peer.name}: {peer.cold_s[-1]:.2f} s")


def measure_answers(
    peers: Sequence[Peer], prompts: RandomPrompts, arguments: argparse.Namespace, threads: int
) -> list[float]:
    """Let every program answer the same prompts, in turn; return each round's bandwidth."""
    max_tokens = arguments.prompt_tokens + arguments.new_tokens + ROOM_TOKENS
    needed = sum(HELD_FACTOR * model_bytes(peer) for peer in peers if peer.problem is None)
    available = probe_hardware().available_memory_bytes
    stays = available is None or needed < available
    say("all programs stay loaded" if stays else "memory does not hold all programs at once")
    workers: dict[str, Worker] = {}
    bandwidths = []
    try:
        for number in range(arguments.rounds):
            prompt = prompts.make(arguments.prompt_tokens)
            bandwidths.append(measure_bandwidth(seconds=BANDWIDTH_SECONDS))
            for peer in rotate(peers, number):
                if peer.problem is not None:
                    continue
                try:
                    if peer.name not in workers:
                        workers[peer.name] = Worker(peer, threads, max_tokens)
                        warm_up = prompts.make(arguments.prompt_tokens)
                        workers[peer.name].answer(warm_up, WARM_UP_TOKENS)
                    time.sleep(PAUSE_SECONDS)
                    told = workers[peer.name].answer(prompt, arguments.new_tokens)
                except PeerError as error:
                    give_up(peer, error)
                    continue
                finally:
                    if not stays and peer.name in workers:
                        workers.pop(peer.name).close()
                peer.answers[number] = (told["first_s"], told["rest_s"])
                peer.private_bytes = max(peer.private_bytes, told["private_bytes"] or 0)
                say(
                    f"round {number + 1} {peer.name}: {told['first_s']:.2f} + "
                    f"{told['rest_s']:.2f} s"
                )
    finally:
        for worker in workers.values():
            worker.close()
    return bandwidths


def describe(peer: Peer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is told of one program."""
    if not peer.answers:
        return {"problem": peer.problem}
    firsts = [first for first, _ in peer.answers.values()]
    rests = [rest for _, rest in peer.answers.values()]
    return {
        "version": find_version(peer.name),
        "prefill_tokens_per_s": round(arguments.prompt_tokens / median(firsts), 2),
        "decode_tokens_per_s": round((arguments.new_tokens - 1) / median(rests), 3),
        "end_to_end_s": round(median(map(sum, peer.answers.values())), 3),
        "cold_start_s": round(median(peer.cold_s), 2) if peer.cold_s else None,
        "private_bytes": peer.private_bytes or None,
        "rounds": len(peer.answers),
        "problem": peer.problem,
    }


def compare(ours: Peer, peer: Peer) -> dict[str, float]:
    """Return how many times faster ours is; medians of the rounds both were in."""
    both = sorted(ours.answers.keys() & peer.answers.keys())
    if not both:
        return {}
    pairs = [(ours.answers[number], peer.answers[number]) for number in both]
    ratios = {
        "prefill": median(other[0] / mine[0] for mine, other in pairs),
        "decode": median(other[1] / mine[1] for mine, other in pairs),
        "end_to_end": median(sum(other) / sum(mine) for mine, other in pairs),
    }
    if ours.cold_s and peer.cold_s:
        ratios["cold_start"] = median(peer.cold_s) / median(ours.cold_s)
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def share_of_bandwidth(
    ours: Peer, bandwidths: Sequence[float], manifest: Manifest, arguments: argparse.Namespace
) -> float | None:
    """Return our part of the decoding speed that memory allows; the median of the rounds'."""
    if not ours.answers:
        return None
    settings = next(entry for entry in manifest.devices if entry.device == "CPU")
    work = count_work(arguments.package, manifest, settings, "openvino")
    read = work.decode_bytes(arguments.prompt_tokens + arguments.new_tokens / 2)
    num_tokens = int(arguments.new_tokens) - 1
    shares = [
        num_tokens * read / rest_s / bandwidths[number]
        for number, (_, rest_s) in ours.answers.items()
    ]
    return round(median(shares), 3)


def rotate(peers: Sequence[Peer], number: int) -> list[Peer]:
    """Return the programs beginning with another one in each round."""
    start = number % len(peers)
    return [*peers[start:], *peers[:start]]


def warm_files(model: Path) -> None:
    """Have the system hold a model's files in memory."""
    folder = model.parent if model.is_file() else model
    names = [model.name] if model.is_file() else [path.name for path in model.iterdir()]
    read_through(folder, names)


def give_up(peer: Peer, error: Exception) -> None:
    """Note why a program is not asked any more."""
    peer.problem = str(error)
    say(f"{peer.name}: {peer.problem}")


def say(text: str) -> None:
    """Write a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def show_table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the figures for a person."""
    columns = ("prefill_tokens_per_s", "decode_tokens_per_s", "end_to_end_s", "cold_start_s")
    print(f"{'':<18} {'prefill/s':>10} {'decode/s':>10} {'whole s':>10} {'start s':>10}")
    for name, figures in results.items():
        if "version" in figures:
            cells = " ".join(f"{figures[column] or 0:>10,.2f}" for column in columns)
            print(f"{name:<18} {cells}")
        else:
            print(f"{name:<18} {figures['problem']}")


def main() -> None:
    """Measure every program and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--onnx-package", type=Path, help="the same model in ONNX, where apart")
    parser.add_argument("--gguf", type=Path, help="for llama.cpp; made where it does not exist")
    parser.add_argument("--peers", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-starts", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.package)
    # Hashed once, so that no start from nothing has to.
    check_verified(arguments.package, manifest, cache_dir=read_environment().cache_dir)
    hardware = probe_hardware()
    threads = hardware.num_physical_cores or hardware.num_logical_cores
    prompts = RandomPrompts(manifest.model.vocab_size)
    with tempfile.TemporaryDirectory() as name:
        peers = find_peers(arguments, Path(name))
        measure_starts(peers, prompts, arguments.cold_starts, threads)
        bandwidths = measure_answers(peers, prompts, arguments, threads)
    results = {peer.name: describe(peer, arguments) for peer in peers}
    ours = next((peer for peer in peers if peer.name == OURS), Peer(OURS))
    show_table(results)
    facts = {
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "threads": threads,
        "bandwidth_bytes_per_s": round(median(bandwidths)),
        "decode_share_of_bandwidth": share_of_bandwidth(ours, bandwidths, manifest, arguments),
        "results": results,
        "ratios": {peer.name: compare(ours, peer) for peer in peers if peer.name != OURS},
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
