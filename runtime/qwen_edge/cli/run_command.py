"""`qwen-edge run`: one prompt, one answer, streamed to standard output."""

import sys
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.answering import show_events
from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import (
    AnswerOptions,
    answer_options,
    check_answer_options,
    check_text,
    describe_timings,
    load_model,
    sampling_of,
)
from qwen_edge.cli.output import Output
from qwen_edge.errors import ContextFullError, UsageError, format_bytes

if TYPE_CHECKING:
    from qwen_edge.runtime.events import Answer
    from qwen_edge.runtime.model import Model

# No context holds as much: 262,144 tokens of 60 bytes each.
_MAX_INPUT_BYTES = 16_000_000


@click.command("run")
@click.argument("package")
@click.argument("prompt", required=False)
@answer_options
@click.option("--quiet", is_flag=True, help="The answer only: no reasoning, no figures.")
@click.option("--json", "as_json", is_flag=True, help="Print answer and figures as JSON.")
def command(
    package: str, prompt: str | None, options: AnswerOptions, quiet: bool, as_json: bool
) -> None:
    """Answer PROMPT with the model in the folder PACKAGE.

    Standard output holds the answer and nothing else. Without PROMPT the prompt is read from
    standard input; with both, the input follows PROMPT.

    \b
    Examples:
      qwen-edge run ./qwen3-4b-core-ultra-int4 "Why is the sky blue?"
      qwen-edge run ./qwen3-4b-core-ultra-int4 "Summarise this:" < notes.txt
      git diff | qwen-edge run ./qwen3-4b-core-ultra-int4 --no-think --quiet "Explain:" > out.txt
    """
    out = Output(is_quiet=quiet, as_json=as_json)
    check_answer_options(options)
    text = _read_prompt(prompt, out)
    with leave_soon(), load_model(package, options, out) as model:
        sampling = sampling_of(options, model, options.thinking)
        with model.session(system=options.system, thinking=options.thinking) as chat:
            if as_json:
                answer = chat.ask(
                    text,
                    sampling=sampling,
                    max_new_tokens=options.max_new_tokens,
                    stop=options.stop,
                )
                out.result_json(_describe(answer, model))
                return
            events = chat.stream(
                text, sampling=sampling, max_new_tokens=options.max_new_tokens, stop=options.stop
            )
            done = show_events(events, out)
    if done.timings is not None:
        out.notice(f"[{describe_timings(done.timings, done.finish_reason)}]")


def _describe(answer: "Answer", model: "Model") -> dict[str, object]:
    choice, timings = model.device_choice, answer.timings
    return {
        "answer": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "model": model.name,
        "backend": model.backend_name,
        "device": choice.value.device if choice else None,
        "device_reason": choice.reason if choice else None,
        "prompt_tokens": timings.prompt_tokens,
        "new_tokens": timings.decode_tokens,
        "ttft_s": timings.ttft_s,
        "total_s": timings.total_s,
        "prefill_tokens_per_s": timings.prefill_tokens_per_s,
        "decode_tokens_per_s": timings.decode_tokens_per_s,
    }


def _read_prompt(prompt: str | None, out: Output) -> str:
    """Return the prompt: what was given, what was piped in, or one after the other."""
    if prompt is not None:
        check_text("The prompt", prompt)
    parts = [part for part in (prompt, _read_input(out)) if part and part.strip()]
    if not parts:
        given = "it is empty" if prompt is not None else "none was given"
        raise UsageError(
            f"There is no prompt: {given}, and standard input holds none.",
            'qwen-edge run PACKAGE "your question", or pipe text into it',
        )
    return "\n\n".join(parts)


def _read_input(out: Output) -> str:
    """Return what was piped in, without line ends behind it; empty at a terminal."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    with out.notice_if_slow("Reading standard input to its end (with < /dev/null none is read) …"):
        # Bytes, so that a console's code page does not decide what a pipe holds.
        data = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    if len(data) > _MAX_INPUT_BYTES:
        raise ContextFullError(
            f"Standard input holds more than {format_bytes(_MAX_INPUT_BYTES)}, and so more than "
            "any model's context.",
            "pipe in less, for example: head -c 20000 notes.txt | qwen-edge run PACKAGE",
            max_input_bytes=_MAX_INPUT_BYTES,
        )
    # What PowerShell writes into files begins with this mark.
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f": byte {data[error.start]:#04x} at position {error.start:,}"
        raise UsageError(
            f"Standard input is not text in UTF-8{byte if encoding != 'utf-16' else ''}.",
            "convert it first, for example: iconv -f latin1 -t utf-8 notes.txt",
            position=error.start,
        ) from error
    check_text("Standard input", text)
    return text.rstrip("\r\n")
