"""How a batcher shares its steps, and what it says of itself."""

from dataclasses import dataclass, fields

from qwen_edge.errors import UsageError


@dataclass(frozen=True)
class BatchOptions:
    """What a batcher does in a step.

    Args:
        max_running: Most requests in the making at once.
        max_waiting: Most requests waiting to begin; more are refused.
        step_tokens: About as many tokens of prompts per step while no answer is being given.
            Engines read long pieces of a prompt faster.
        shared_step_tokens: The same while answers are being given: each of them gets a token
            per step, so this is what a running answer waits for.

    Raises:
        UsageError: A field is below one.
    """

    max_running: int = 8
    max_waiting: int = 64
    step_tokens: int = 512
    shared_step_tokens: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(
                    f"{field.name} is {value!r}; expected a whole number of at least 1.",
                    f"give {field.name} such a number, or leave it out",
                    field=field.name,
                    value=value,
                )


@dataclass(frozen=True)
class BatchStatistics:
    """What a batcher is doing and has done.

    Args:
        num_running: Requests in the making.
        num_waiting: Requests that have not begun, or were put back.
        num_blocks: Blocks of the cache that there may be.
        num_blocks_used: Blocks that running requests hold.
        num_blocks_cached: Blocks nobody holds that a later request may go on from.
        num_steps: Calls of the engine so far.
        prompt_tokens: Tokens of all prompts begun so far.
        hit_tokens: How many of them did not have to be computed.
        num_preemptions: How often a request was put back for lack of memory.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_blocks_used: int
    num_blocks_cached: int
    num_steps: int
    prompt_tokens: int
    hit_tokens: int
    num_preemptions: int
