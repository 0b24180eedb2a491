"""From a conversation and options to one answer that is ready to be computed.

Everything that can be refused is refused here, before anything is computed: what does not fit
the context, a schema that has no grammar, tools that contradict each other. Read `session.py`
for who asks and `turn.py` for what comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen_edge.errors import UsageError
from qwen_edge.runtime.answer_options import ResolvedOptions
from qwen_edge.runtime.chat import Message
from qwen_edge.runtime.decoding.constraint import Constraint
from qwen_edge.runtime.decoding.fitting import fit_to_model
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.reasoning import (
    ReasoningConstraint,
    make_ending_ids,
    read_reasoning_start,
)
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.decoding.speculation import Speculation
from qwen_edge.runtime.overflow import FittedConversation, find_newest_turn, fit_conversation
from qwen_edge.runtime.reasoning import ReasoningSplitter
from qwen_edge.runtime.soft_switch import will_think
from qwen_edge.runtime.text_model import TextModel
from qwen_edge.runtime.turn import TurnText, make_splitter

if TYPE_CHECKING:
    from qwen_edge.runtime.tools.tool import Tool

_LONG_TEXT_CHARS = 100_000  # from here a lower bound is computed before the exact count


@dataclass(frozen=True)
class AnswerPlan:
    """One checked request: what to feed, how to choose, what to remember.

    Args:
        messages: The conversation that is answered.
        dropped_messages: Those that were left out of it to make it fit.
        prompt_ids: What to feed.
        picker: Chooses the tokens; used once.
        drafter: Guesses ahead, or None.
        max_new_tokens: Most tokens of the answer.
        stop_token_ids: Ids that end it.
        text: Turns ids into events; used once.
        asked_tokens: How long the answer may get, where that was said.
    """

    messages: tuple[Message, ...]
    dropped_messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    picker: TokenPicker
    drafter: Speculation | None
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    text: TurnText
    asked_tokens: int | None = None


def plan_answer(
    model: TextModel,
    messages: Sequence[Message],
    options: ResolvedOptions,
    *,
    answer_index: int = 0,
) -> AnswerPlan:
    """Check a request and return what it needs. Changes nothing.

    Args:
        model: Answers it.
        messages: A checked conversation.
        options: Checked.
        answer_index: Which of several answers to one prompt it is; each has a seed of its own.

    Raises:
        UsageError: The model cannot do what is asked for.
        GrammarError: The output's form or a tool's schema has no grammar.
        ContextFullError: The conversation leaves no room in the context.
        PackageError: The chat template or the tokenizer failed.
    """
    tools = _read_tools(options)
    sampling = fit_to_model(
        _choose_sampling(model, messages, options).for_answer(answer_index),
        model.tokenizer,
        vocab_size=model.vocab_size,
    )
    stop_token_ids = (*model.generation.eos_token_ids, *sampling.stop_token_ids)
    fitted = _fit(model, messages, options, tools)
    prompt_ids = _encode(model, fitted.messages, options, tools)
    model.check_prompt_tokens(len(prompt_ids))
    room = model.max_context_tokens - len(prompt_ids)
    limit = room if options.max_new_tokens is None else options.max_new_tokens
    return AnswerPlan(
        messages=tuple(fitted.messages),
        dropped_messages=tuple(fitted.dropped_messages),
        prompt_ids=tuple(prompt_ids),
        picker=_make_picker(model, sampling, prompt_ids, stop_token_ids, options, tools),
        drafter=model.drafter if options.speculate else None,
        max_new_tokens=min(limit, room),
        stop_token_ids=frozenset(stop_token_ids),
        text=_make_text(model, prompt_ids, options, tools),
        asked_tokens=options.max_new_tokens,
    )


def plan_completion(
    model: TextModel,
    prompt: str | Sequence[int],
    options: ResolvedOptions,
    *,
    answer_index: int = 0,
) -> AnswerPlan:
    """Check a request to go on with a text, without a template. Changes nothing.

    Args:
        model: Answers it.
        prompt: A text, whose control tokens are plain text, or token ids.
        options: Checked; none of those that belong to a conversation.
        answer_index: See `plan_answer`.

    Raises:
        UsageError: The prompt is empty, or an option belongs to a conversation.
        GrammarError: The output's form has no grammar.
        ContextFullError: The prompt leaves no room in the context.
    """
    _check_for_completion(options)
    if isinstance(prompt, str) and len(prompt) >= _LONG_TEXT_CHARS:
        model.check_prompt_tokens(model.tokenizer.count_at_least(prompt), is_lower_bound=True)
    prompt_ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not prompt_ids:
        raise UsageError("The prompt is empty; expected at least one token.", "give a text")
    model.check_prompt_tokens(len(prompt_ids))
    given = options.sampling
    sampling = (
        given
        if isinstance(given, SamplingParams)
        else replace(model.sampling_defaults(), **(given or {}))
    )
    fitted = fit_to_model(
        sampling.for_answer(answer_index), model.tokenizer, vocab_size=model.vocab_size
    )
    inner = None if options.output is None else model.grammars.compile(options.output).start()
    room = model.max_context_tokens - len(prompt_ids)
    limit = room if options.max_new_tokens is None else options.max_new_tokens
    return AnswerPlan(
        messages=(),
        dropped_messages=(),
        prompt_ids=tuple(prompt_ids),
        picker=TokenPicker(Sampler(fitted, prompt_ids=prompt_ids), inner),
        drafter=model.drafter if options.speculate else None,
        max_new_tokens=min(limit, room),
        stop_token_ids=frozenset((*model.generation.eos_token_ids, *fitted.stop_token_ids)),
        # What a model would think is text like any other here.
        text=TurnText(ReasoningSplitter(model.tokenizer.token_bytes, None, None), options.stop),
        asked_tokens=options.max_new_tokens,
    )


def _check_for_completion(options: ResolvedOptions) -> None:
    """Raise UsageError for an option that has no meaning without a conversation."""
    for name in ("thinking", "thinking_budget", "tools"):
        if getattr(options, name):
            raise UsageError(
                f"{name} was given, but a plain text is gone on with: there is no conversation.",
                f"leave {name} out, or ask with messages",
                option=name,
            )


def _read_tools(options: ResolvedOptions) -> "tuple[Tool, ...]":
    """Return the tools that the model is told of."""
    if not options.tools:
        return ()
    from qwen_edge.runtime.tools.tool import read_tool_choice, read_tools

    tools = read_tools(options.tools)
    read_tool_choice(options.tool_choice, tools)
    return tools


def _fit(
    model: TextModel,
    messages: Sequence[Message],
    options: ResolvedOptions,
    tools: "Sequence[Tool]",
) -> FittedConversation:
    """Return the conversation as far as it fits; refuse it early where it is far too long."""
    refuses = options.on_overflow == "refuse"
    for message in messages if refuses else find_newest_turn(messages):
        content = str(message["content"])
        if len(content) >= _LONG_TEXT_CHARS:
            num_tokens = model.tokenizer.count_at_least(content)
            model.check_prompt_tokens(num_tokens, is_lower_bound=True)
    if refuses:
        return FittedConversation(tuple(messages), (), 0)
    return fit_conversation(
        messages,
        lambda shorter: len(_encode(model, shorter, options, tools)),
        model.max_prompt_length,
    )


def _encode(
    model: TextModel,
    messages: Sequence[Message],
    options: ResolvedOptions,
    tools: "Sequence[Tool]",
) -> list[int]:
    schemas = [tool.to_openai() for tool in tools] or None
    return model.chat_template.encode(messages, tools=schemas, thinking=options.thinking)


def _make_picker(
    model: TextModel,
    sampling: SamplingParams,
    prompt_ids: Sequence[int],
    stop_token_ids: Sequence[int],
    options: ResolvedOptions,
    tools: "Sequence[Tool]",
) -> TokenPicker:
    """Return what chooses the tokens: the sampler, and what limits it."""
    vocab_size = model.vocab_size
    sampler = Sampler(sampling, prompt_ids=prompt_ids)
    inner, needed_tokens = _make_inner(model, options, tools)
    open_id, close_id = model.chat.think_open_id, model.chat.think_close_id
    budget = options.thinking_budget
    if open_id is None or close_id is None:
        if budget is not None:
            raise UsageError(
                f"thinking_budget is {budget:,}, but this model does not think.",
                "leave it out",
                option="thinking_budget",
            )
        return TokenPicker(sampler, inner)
    start = read_reasoning_start(prompt_ids, open_id, close_id)
    # A limit on the whole answer ends the thought in time too, so that an answer comes at all.
    is_limited = inner is not None or budget is not None or options.max_new_tokens is not None
    if start == "closed" or not is_limited:
        return TokenPicker(sampler, inner)
    constraint = ReasoningConstraint(
        open_id,
        close_id,
        vocab_size=vocab_size,
        starts_open=start == "open",
        ending_ids=make_ending_ids(model.tokenizer, close_id, budget_tokens=budget),
        budget_tokens=budget,
        inner=inner,
        needed_tokens=needed_tokens,
        # In an open thought a call would be mere text: the model has to close it first.
        stop_token_ids=(*stop_token_ids, model.tool_call_ids[0]) if tools else stop_token_ids,
    )
    return TokenPicker(sampler, constraint)


def _make_inner(
    model: TextModel, options: ResolvedOptions, tools: "Sequence[Tool]"
) -> tuple[Constraint | None, int]:
    """Return the limit on the answer itself, and how many tokens it takes at least to keep it."""
    if options.output is not None:
        grammar = model.grammars.compile(options.output)
        return grammar.start(), grammar.shortest_tokens or 0
    if not tools:
        return None, 0
    from qwen_edge.runtime.tools.call_constraint import make_tool_constraint

    constraint = make_tool_constraint(
        tools,
        options.tool_choice,
        model.grammars,
        open_id=model.tool_call_ids[0],
        close_id=model.tool_call_ids[1],
        vocab_size=model.vocab_size,
        stop_token_ids=model.generation.eos_token_ids,
        is_parallel=options.parallel_tool_calls,
    )
    return constraint, constraint.needed_tokens


def _choose_sampling(
    model: TextModel, messages: Sequence[Message], options: ResolvedOptions
) -> SamplingParams:
    """Return the settings asked for, or the package's for the mode the model will be in."""
    if isinstance(options.sampling, SamplingParams):
        return options.sampling
    thinks = will_think(messages, thinking=options.thinking, mode=model.chat.thinking)
    return replace(model.sampling_defaults(thinks), **(options.sampling or {}))


def _make_text(
    model: TextModel,
    prompt_ids: Sequence[int],
    options: ResolvedOptions,
    tools: "Sequence[Tool]",
) -> TurnText:
    splitter = make_splitter(
        model.tokenizer.token_bytes,
        prompt_ids,
        model.chat.think_open_id,
        model.chat.think_close_id,
    )
    if not tools or options.tool_choice == "none":
        return TurnText(splitter, options.stop)
    from qwen_edge.runtime.tools.call_parser import ToolCallParser

    parser = ToolCallParser([tool.name for tool in tools])
    return TurnText(splitter, options.stop, parser, model.tool_call_ids)
