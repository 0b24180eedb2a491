"""`qwen-edge run`: one prompt, one answer, streamed to standard output."""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.answer_options import (
    AnswerFlags,
    answer_flags,
    check_flags,
    given_sampling,
    options_of,
    read_tools_file,
    speculate_option,
)
from qwen_edge.cli.answering import describe_call, describe_end, show_events
from qwen_edge.cli.help_sections import SectionedCommand
from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import (
    LoadOptions,
    draft_option,
    load_model,
    load_options,
)
from qwen_edge.cli.output import Output
from qwen_edge.cli.plan_view import explain_run
from qwen_edge.cli.texts import check_text, read_standard_input
from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.sampling import SamplingParams

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.sampling import TokenLogprobs
    from qwen_edge.runtime.events import Answer
    from qwen_edge.runtime.model import Model

_SEED_BITS = 32  # few digits to type, and exact in every reader of JSON
_SHORTER_FIX = "pipe in less, for example: head -c 20000 notes.txt | qwen-edge run PACKAGE"


@click.command("run", cls=SectionedCommand)
@click.argument("package")
@click.argument("prompt", required=False)
@load_options
@draft_option
@answer_flags
@speculate_option
@click.option(
    "--tools",
    "tools_file",
    metavar="FILE",
    help="JSON list of functions that the model may call (OpenAI's schemas). Calls are printed, "
    "one line of JSON each, in place of text.",
)
@click.option(
    "--tool-choice",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto, none, required, or the function that has to be called.",
)
@click.option(
    "-n",
    "num_answers",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --json: a list of N answers.",
)
@click.option(
    "--logprobs",
    type=int,
    metavar="N",
    help="With --json: how likely each token was, with the N likeliest beside it.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Show what running it takes here: memory, context, time; answer nothing.",
)
@click.option("--quiet", is_flag=True, help="The answer only: no reasoning, no figures.")
@click.option("--json", "as_json", is_flag=True, help="Print answer, seed and figures as JSON.")
def command(
    package: str,
    prompt: str | None,
    load: LoadOptions,
    flags: AnswerFlags,
    tools_file: str | None,
    tool_choice: str,
    num_answers: int | None,
    logprobs: int | None,
    explain: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT with the model in the folder PACKAGE.

    Standard output holds the answer and nothing else. Without PROMPT the prompt is read from
    standard input; with both, the input follows PROMPT.

    \b
    Examples:
      qwen-edge run ./qwen3-4b-core-ultra-int4 "Why is the sky blue?"
      qwen-edge run ./qwen3-4b-core-ultra-int4 "Summarise this:" < notes.txt
      git diff | qwen-edge run ./qwen3-4b-core-ultra-int4 --no-think --quiet "Explain:" > out.txt
      qwen-edge run ./qwen3-4b-core-ultra-int4 --json-schema invoice.json "Extract:" < mail.txt
    """
    out = Output(is_quiet=quiet, as_json=as_json)
    _check_json_only(as_json, {"--logprobs": logprobs, "-n": num_answers})
    SamplingParams(num_logprobs=logprobs)  # refuses what is out of range
    tools = None if tools_file is None else read_tools_file(tools_file)
    check_flags(package, load, flags, tools=tools, tool_choice=tool_choice)
    if explain:
        explain_run(package, load, out, as_json=as_json)
        return
    text = _read_prompt(prompt, out)
    with leave_soon(), load_model(package, load, out) as model:
        options = options_of(flags, thinking=flags.thinking)
        options |= {"tools": tools, "tool_choice": tool_choice}
        with model.session(system=flags.system, **options) as chat:
            if not as_json:
                done = show_events(chat.stream(text), out, may_call=tools is not None)
                out.notice(f"[{describe_end(done)}]")
                return
            # With a seed, so that it can be told and the answer repeated.
            given = {"seed": secrets.randbits(_SEED_BITS), **given_sampling(flags)}
            sampling = {**given, "num_logprobs": logprobs}
            answers = chat.ask_several(text, n=num_answers or 1, sampling=sampling)
        seeds = SamplingParams(seed=given["seed"])
        described = [
            _describe(answer, model, seed=seeds.for_answer(index).seed)
            for index, answer in enumerate(answers)
        ]
    out.result_json(described[0] if num_answers is None else described)


def _check_json_only(as_json: bool, given: Mapping[str, int | None]) -> None:
    """Refuse options whose result only JSON can show."""
    names = [name for name, value in given.items() if value is not None]
    if names and not as_json:
        raise UsageError(f"{names[0]} shows its result in JSON only.", f"add --json to {names[0]}")


def _describe(answer: "Answer", model: "Model", *, seed: int | None) -> dict[str, object]:
    choice, timings = model.device_choice, answer.timings
    result: dict[str, object] = {
        "answer": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": [describe_call(call) for call in answer.tool_calls],
        "finish_reason": answer.finish_reason,
        "seed": seed,
        "model": model.name,
        "backend": model.backend_name,
        "device": choice.value.device if choice else None,
        "device_reason": choice.reason if choice else None,
        "refusals": [str(refusal) for refusal in model.refusals],
        "notices": list(answer.notices),
        "prompt_tokens": timings.prompt_tokens,
        "new_tokens": timings.decode_tokens,
        "forced_tokens": timings.forced_tokens,
        "reasoning_tokens": timings.reasoning_tokens,
        "ttft_s": timings.ttft_s,
        "total_s": timings.total_s,
        "prefill_tokens_per_s": timings.prefill_tokens_per_s,
        "decode_tokens_per_s": timings.decode_tokens_per_s,
    }
    if answer.speculation is not None:
        result["drafted_tokens"] = answer.speculation.num_proposed
        result["accepted_tokens"] = answer.speculation.num_accepted
    if answer.logprobs:
        result["logprobs"] = [
            _describe_token(model, token_id, logprobs)
            for token_id, logprobs in zip(answer.token_ids, answer.logprobs, strict=True)
        ]
    return result


def _describe_token(
    model: "Model", token_id: int, logprobs: "TokenLogprobs | None"
) -> dict[str, object]:
    """Return one token with how likely it and others were; forced ones were not looked at."""
    described: dict[str, object] = {"id": token_id, "token": _show_token(model, token_id)}
    if logprobs is not None:
        described["logprob"] = logprobs.logprob
        described["top"] = [
            {"id": other, "token": _show_token(model, other), "logprob": logprob}
            for other, logprob in logprobs.top
        ]
    return described


def _show_token(model: "Model", token_id: int) -> str:
    return model.tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


def _read_prompt(prompt: str | None, out: Output) -> str:
    """Return the prompt: what was given, what was piped in, or one after the other."""
    if prompt is not None:
        check_text("The prompt", prompt)
    piped = read_standard_input(out, _SHORTER_FIX).rstrip("\r\n")
    parts = [part for part in (prompt, piped) if part and part.strip()]
    if not parts:
        given = "it is empty" if prompt is not None else "none was given"
        raise UsageError(
            f"There is no prompt: {given}, and standard input holds none.",
            'qwen-edge run PACKAGE "your question", or pipe text into it',
        )
    return "\n\n".join(parts)
