"""Answer random JSON schemas with a model of random weights. Last line: JSON.

    python scripts/check_schemas.py [--schemas 2000] [--seed 0] [--package PACKAGE]

Such a model knows nothing: what is right in its answers is what the grammar made right. Each
answer has a limit a little above the shortest possible one and must be whole, JSON, and valid by
the `jsonschema` package. What cannot be compiled must be refused before the first token. Without
PACKAGE a tiny one is made, with Qwen3's real tokenizer.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Context, Decimal, setcontext
from pathlib import Path

from random_schemas import Schema, SchemaMaker

import qwen_edge.runtime
from qwen_edge.errors import GrammarError
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.structured.grammar import Grammar, GrammarCompiler
from qwen_edge.runtime.structured.output_format import OutputFormat

PROMPT = "Answer in JSON."
MAX_SPARE_TOKENS = 160
NUM_SHOWN = 10
MAX_EXPONENT = 400  # beyond those of binary doubles


@dataclass
class Tally:
    """What became of the schemas."""

    kinds: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    num_tokens: int = 0
    num_forced: int = 0
    compile_s: float = 0.0
    slowest_compile_s: float = 0.0
    answer_s: float = 0.0

    def add(self, kind: str, seed: int = 0, text: str = "") -> None:
        """Count one schema; show it where it should not have come to this."""
        self.kinds[kind] += 1
        if kind not in ("valid", "refused"):
            self.problems.append(f"{kind}, schema {seed}: {text}")
            if len(self.problems) <= NUM_SHOWN:
                print(self.problems[-1][:1500], file=sys.stderr)


@contextmanager
def open_model(package: Path | None) -> Iterator[Model]:
    """Open the package, or a tiny one of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            package = make_tiny_package(Path(folder))
        with qwen_edge.runtime.load(package, device="CPU", verify="sizes") as model:
            yield model


def make_tiny_package(folder: Path) -> Path:
    """Export a tiny checkpoint of random weights with Qwen3's tokenizer."""
    from make_random_checkpoint import SHAPES, write_checkpoint

    from qwen_edge.export import ExportRequest, export

    write_checkpoint(SHAPES["tiny"], folder / "checkpoint", 0)
    request = ExportRequest(
        model=str(folder / "checkpoint"),
        profile="generic-x86",
        output=folder / "package",
        skip_quality=True,
    )
    return export(request).folder


def answer(model: Model, grammar: Grammar, seed: int, max_new_tokens: int) -> tuple[list[int], int]:
    """Return the tokens of one answer without the last, and how many were forced.

    Raises:
        ValueError: The answer did not come to its end.
    """
    prompt_ids = model.tokenizer.encode(PROMPT)
    # The whole distribution: a model of random weights then writes everything that is allowed.
    params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    picker = TokenPicker(Sampler(params, prompt_ids=prompt_ids), grammar.start())
    stop_ids = model.generation.eos_token_ids
    model.backend.reset()
    tokens = list(
        generate_tokens(
            model.backend,
            prompt_ids,
            picker=picker,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_ids,
        )
    )
    token_ids = [token.token_id for token in tokens]
    if not token_ids or token_ids[-1] not in stop_ids:
        text = model.tokenizer.decode(token_ids)
        raise ValueError(f"cut off after {len(token_ids)} of {max_new_tokens} tokens: {text!r}")
    return token_ids[:-1], sum(token.is_forced for token in tokens)


def read_number(text: str) -> Decimal:
    """Return a number exactly, but for exponents that no arithmetic can take: those are cut."""
    digits, _, exponent = text.lower().partition("e")
    bounded = max(min(int(exponent or 0), MAX_EXPONENT), -MAX_EXPONENT)
    return Decimal(f"{digits}e{bounded}")


def check_answer(schema: Schema, text: str) -> str:
    """Return what is wrong with an answer, or nothing. Numbers are compared exactly."""
    import jsonschema

    try:
        value = json.loads(text, parse_float=read_number)
    except ValueError as error:
        return f"no JSON: {error}"
    exact = json.loads(json.dumps(schema), parse_float=read_number)
    validator = jsonschema.Draft202012Validator(exact)
    return "; ".join(error.message for error in validator.iter_errors(value))[:300]


def check_schema(model: Model, compiler: GrammarCompiler, seed: int, tally: Tally) -> None:
    """Compile one schema, answer it and check the answer."""
    maker = SchemaMaker(seed)
    schema = maker.make()
    shown = json.dumps(schema, ensure_ascii=False)
    begun_s = time.perf_counter()
    try:
        grammar = compiler.compile(OutputFormat.json_schema(schema))
    except GrammarError as error:
        tally.refusals[error.problem[:100]] += 1
        tally.add("wrongly refused" if maker.is_supported else "refused", seed, f"{error}\n{shown}")
        return
    finally:
        seconds = time.perf_counter() - begun_s
        tally.compile_s += seconds
        tally.slowest_compile_s = max(tally.slowest_compile_s, seconds)
    if grammar.shortest_tokens is None:
        tally.add("no shortest answer", seed, shown)
        return
    begun_s = time.perf_counter()
    max_new_tokens = grammar.shortest_tokens + seed % MAX_SPARE_TOKENS
    try:
        token_ids, num_forced = answer(model, grammar, seed, max_new_tokens)
    except ValueError as error:
        tally.add("cut off", seed, f"{error}\n{shown}")
        return
    tally.answer_s += time.perf_counter() - begun_s
    tally.num_tokens += len(token_ids) + 1
    tally.num_forced += num_forced
    text = model.tokenizer.decode(token_ids)
    problem = check_answer(schema, text)
    tally.add("invalid" if problem else "valid", seed, f"{problem}\n{text}\n{shown}")


def main() -> int:
    """Check, print and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemas", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schema")
    parser.add_argument("--package", type=Path)
    arguments = parser.parse_args()
    setcontext(Context(prec=5_000))  # for exact remainders of long numbers
    tally = Tally()
    with open_model(arguments.package) as model:
        compiler = GrammarCompiler(
            model.tokenizer,
            vocab_size=model.backend.vocab_size,
            eos_token_ids=model.generation.eos_token_ids,
        )
        begun_s = time.perf_counter()
        for seed in range(arguments.seed, arguments.seed + arguments.schemas):
            try:
                check_schema(model, compiler, seed, tally)
            except Exception:
                tally.add("crash", seed, traceback.format_exc())
        elapsed_s = time.perf_counter() - begun_s
    good = tally.kinds["valid"] + tally.kinds["refused"]
    result = {
        "schemas": arguments.schemas,
        "seed": arguments.seed,
        "kinds": dict(tally.kinds),
        "refusals": dict(tally.refusals),
        "tokens": tally.num_tokens,
        "forced_share": round(tally.num_forced / max(tally.num_tokens, 1), 3),
        "mean_compile_ms": round(1000 * tally.compile_s / max(arguments.schemas, 1), 2),
        "slowest_compile_ms": round(1000 * tally.slowest_compile_s, 1),
        "tokens_per_s": round(tally.num_tokens / max(tally.answer_s, 1e-9), 1),
        "elapsed_s": round(elapsed_s, 1),
    }
    print(json.dumps(result, ensure_ascii=False))
    return 0 if good == arguments.schemas else 1


if __name__ == "__main__":
    sys.exit(main())
