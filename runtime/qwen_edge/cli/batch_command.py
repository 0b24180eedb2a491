"""`qwen-edge batch`: many prompts in one run, answers as they are done."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.answer_options import (
    AnswerFlags,
    answer_flags,
    check_flags,
    check_with_model,
    options_of,
)
from qwen_edge.cli.help_sections import SectionedCommand
from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import LoadOptions, load_batch_model, load_options
from qwen_edge.cli.output import Output
from qwen_edge.cli.texts import read_standard_input, read_text_file
from qwen_edge.errors import EdgeError, UsageError, did_you_mean

if TYPE_CHECKING:
    from qwen_edge.runtime.batch_model import BatchAnswer, BatchModel, BatchPrompt

_MAX_FILE_BYTES = 1_000_000_000
_KEYS = ("prompt", "messages")
_PROMPT_FIX = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class _Line:
    """One prompt, and on which line it stands, counted from 1."""

    number: int
    prompt: "BatchPrompt"


@click.command("batch", cls=SectionedCommand)
@click.argument("package")
@click.argument("prompts_file", metavar="FILE")
@load_options
@answer_flags
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most prompts in the making at once. Default: 8.",
)
@click.option("--quiet", is_flag=True, help="No progress, no figures.")
def command(
    package: str,
    prompts_file: str,
    load: LoadOptions,
    flags: AnswerFlags,
    parallel: int | None,
    quiet: bool,
) -> None:
    """Answer every line of FILE with the model in the folder PACKAGE.

    A line is a prompt. One that begins with { or [ is JSON: {"prompt": "..."}, {"messages":
    [...]} or a list of messages. FILE can be - for standard input. Prompts share the engine's
    steps, and what they begin with is computed once.

    The result is one line of JSON for each prompt, with its "line" in FILE, as soon as it is
    done, so not in order. A prompt that cannot be answered has an "error"; the others go on.

    \b
    Examples:
      qwen-edge batch ./qwen3-4b-core-ultra-int4 questions.txt > answers.jsonl
      qwen-edge batch ./qwen3-4b-core-ultra-int4 mails.jsonl --json-schema mail.json --no-think
    """
    out = Output(is_quiet=quiet)
    check_flags(package, load, flags)
    lines = _read_lines(prompts_file, out)
    with leave_soon(), load_batch_model(package, load, parallel, out) as model:
        num_failed = _answer_all(model, lines, flags, out)
        statistics = model.statistics()
    out.notice(
        f"[{len(lines):,} prompts, {num_failed:,} without an answer, {statistics.num_steps:,} "
        f"steps, {statistics.hit_tokens:,} of {statistics.prompt_tokens:,} prompt tokens shared]"
    )
    if num_failed:
        raise UsageError(
            f"{num_failed:,} of {len(lines):,} prompts have no answer.",
            'look for "error" in the result',
            num_failed=num_failed,
        )


def _answer_all(
    model: "BatchModel", lines: Sequence[_Line], flags: AnswerFlags, out: Output
) -> int:
    """Write the answer to each line, and return how many there were none to."""
    options = options_of(flags, thinking=flags.thinking)
    check_with_model(model, options, flags.system)
    num_failed = 0
    prompts = [line.prompt for line in lines]
    with out.steps(is_transient=True, has_results=True) as bars:
        bars("answer prompts", 0, len(lines))
        answers = model.ask_all(prompts, system=flags.system, **options)
        for num_done, answer in enumerate(answers, start=1):
            num_failed += answer.error is not None
            out.result_json_line({"line": lines[answer.index].number, **_describe(answer)})
            bars("answer prompts", num_done, len(lines))
    return num_failed


def _describe(answer: "BatchAnswer") -> dict[str, object]:
    if answer.answer is None:
        assert answer.error is not None
        return {"error": answer.error.problem, "fix": answer.error.fix}
    given = answer.answer
    return {
        "answer": given.text,
        "reasoning": given.reasoning,
        "finish_reason": given.finish_reason,
        "prompt_tokens": given.timings.prompt_tokens,
        "reused_tokens": given.timings.reused_tokens,
        "new_tokens": given.timings.decode_tokens,
        "dropped_messages": len(given.dropped_messages),
        "total_s": given.timings.total_s,
    }


def _read_lines(name: str, out: Output) -> list[_Line]:
    """Return the prompts of a file, or of standard input: texts and conversations."""
    if name == "-":
        where = "Standard input"
        text = read_standard_input(out, "give a file", max_bytes=_MAX_FILE_BYTES)
    else:
        where = f"FILE {name!r}"
        text = read_text_file("FILE", name, max_bytes=_MAX_FILE_BYTES)
    # Not splitlines(), which would also cut at characters that JSON and prompts may hold.
    texts = [line.strip() for line in text.split("\n")]
    lines = [
        _Line(number, _read_prompt(text, number))
        for number, text in enumerate(texts, start=1)
        if text
    ]
    if not lines:
        raise UsageError(f"{where} holds no prompts.", "write one on each line", path=name)
    return lines


def _read_prompt(line: str, number: int) -> "BatchPrompt":
    """Return one prompt; what begins like JSON has to be JSON."""
    if not line.startswith(("{", "[")):
        return line
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"Line {number:,} begins like JSON and is none: {error}.",
            'write {"prompt": "..."} for a prompt that begins with a bracket',
            line=number,
        ) from error
    if isinstance(data, dict):
        data = _read_object(data, number)
    return _check_messages(data, number)


def _read_object(data: dict[str, object], number: int) -> object:
    """Return the messages of a line that is an object."""
    unknown = next((key for key in data if key not in _KEYS), None)
    problem = ""
    if unknown is not None:
        problem = f"holds {unknown!r}.{did_you_mean(unknown, _KEYS)}"
    elif len(data) != 1:
        problem = 'holds both "prompt" and "messages".' if data else "holds nothing."
    elif "messages" in data:
        return data["messages"]
    prompt = data.get("prompt")
    if not problem and not (isinstance(prompt, str) and prompt.strip()):
        problem = 'has no text as its "prompt".'
    if problem:
        raise UsageError(f"Line {number:,} {problem}", _PROMPT_FIX, line=number)
    return [{"role": "user", "content": prompt}]


def _check_messages(messages: object, number: int) -> "BatchPrompt":
    """Return a conversation that can be answered."""
    from qwen_edge.runtime.chat import check_messages

    if not isinstance(messages, list):
        raise UsageError(
            f'Line {number:,} has no list as its "messages".', _PROMPT_FIX, line=number
        )
    try:
        return check_messages(messages)
    except EdgeError as error:
        raise UsageError(f"Line {number:,}: {error.problem}", error.fix, line=number) from error
