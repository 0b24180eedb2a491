"""Reads requests of `/v1/completions`: texts to be gone on with, without a chat template."""

from typing import Literal

from pydantic import Field

from qwen_edge.errors import UsageError
from qwen_edge.runtime.answer_options import AnswerOptions
from qwen_edge.server.api.fields import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    SamplingFields,
    StreamOptions,
    UnusedFields,
    read_stop,
)

DEFAULT_MAX_TOKENS = 16  # OpenAI's own


class CompletionRequest(SamplingFields, UnusedFields):
    """Texts to be gone on with."""

    model: str | None = Field(None, description="may be left out where one package is served")
    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="a text, token ids, or up to 8 of either"
    )
    max_tokens: int | None = Field(None, ge=1, description=f"{DEFAULT_MAX_TOKENS} unless given")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="answers to each prompt")
    best_of: Literal[1] | None = Field(None, description="without effect")
    echo: Literal[False] | None = Field(None, description="not supported")
    suffix: None = Field(None, description="not supported")
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one for each answer.

        Raises:
            UsageError: There are none, or more answers than may be.
        """
        given = self.prompt
        if isinstance(given, str):
            prompts: list[str | list[int]] = [given]
        elif given and isinstance(given[0], int):
            prompts = [[item for item in given if isinstance(item, int)]]
        else:
            prompts = [item for item in given if not isinstance(item, int)]
        num_answers = len(prompts) * (self.n or 1)
        if not 1 <= num_answers <= MAX_CHOICES:
            raise UsageError(
                f"The request is for {num_answers:,} answers; expected 1 to {MAX_CHOICES}.",
                "send several requests",
                param="prompt",
            )
        return prompts

    def options(self) -> AnswerOptions:
        """Return what is asked for.

        Raises:
            UsageError: Fields contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise UsageError(
                "stream_options were given, but stream is not true.",
                "leave them out, or ask for a stream",
                param="stream_options",
            )
        return {
            "sampling": self.sampling(self.logprobs),
            "stop": read_stop(self.stop),
            "max_new_tokens": DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
        }
