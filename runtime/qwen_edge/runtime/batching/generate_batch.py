"""Answers to a list of prompts, as they are done.

Prompts of any lengths run side by side. None is padded: their tokens stand one behind the other
in one row, so that a short one costs what it costs alone, and its tokens are those it gets alone.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from qwen_edge.errors import EdgeError, QueueFullError
from qwen_edge.runtime.batching.answer_handle import AnswerHandle, BatchResult
from qwen_edge.runtime.batching.scheduler import ContinuousBatcher
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.events import Timings


def run_requests(
    batcher: ContinuousBatcher,
    num_requests: int,
    submit: Callable[[int], AnswerHandle],
    *,
    is_finished: Callable[[int, AnswerHandle], bool] = lambda index, handle: handle.is_done,
) -> Generator[tuple[int, AnswerHandle | EdgeError], None, None]:
    """Hand in many requests, not all at once, and yield those that are finished first first.

    Args:
        batcher: May be answering others at the same time.
        num_requests: How many there are.
        submit: Index of a request → it, handed in; called when it is its turn, and again where
            the line was full.
        is_finished: Asked after each step with something new for a request that runs. A reader
            who has enough before its end cancels it.

    Yields:
        `(index, handle)`, or `(index, error)` for one that was refused, which does not keep the
        others from being answered.

    State:
        Closing the iterator cancels what is not finished.
    """
    running: dict[int, AnswerHandle] = {}
    most = 2 * batcher.options.max_running  # as many again, so that no place stays empty
    next_index = 0
    try:
        while running or next_index < num_requests:
            while next_index < num_requests and len(running) < most:
                try:
                    running[next_index] = submit(next_index)
                except QueueFullError:
                    if not running:
                        batcher.step()  # all places are others'
                    break
                except EdgeError as error:
                    yield next_index, error
                next_index += 1
            _wait_for_news(batcher, running)
            for index in [index for index, handle in running.items() if is_finished(index, handle)]:
                yield index, running.pop(index)
    finally:
        for handle in running.values():
            handle.cancel()


def generate_batch(
    batcher: ContinuousBatcher,
    prompts: Sequence[Sequence[int]],
    *,
    make_picker: Callable[[int], TokenPicker],
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
) -> Generator[tuple[int, BatchResult], None, None]:
    """Yield an answer to each prompt, those that are done first first.

    Args:
        batcher: May be answering others at the same time.
        prompts: Token ids.
        make_picker: Index of a prompt → what chooses its tokens; called when it is its turn.
        max_new_tokens: Most tokens of each answer, at least one.
        stop_token_ids: Ids that end an answer.

    Yields:
        `(index, result)`. A prompt that is refused or goes wrong has its error in its result
        and does not keep the others from being answered.

    State:
        Closing the iterator cancels what is not done.
    """

    def submit(index: int) -> AnswerHandle:
        return batcher.submit(
            prompts[index],
            make_picker(index),
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
        )

    with closing(run_requests(batcher, len(prompts), submit)) as runs:
        for index, outcome in runs:
            if isinstance(outcome, EdgeError):
                yield index, BatchResult((), None, Timings(), outcome)
            else:
                yield index, outcome.result()


def _wait_for_news(batcher: ContinuousBatcher, running: Mapping[int, AnswerHandle]) -> None:
    """Make steps until one of the requests has a token more, or is done."""
    if not running:
        return
    handles = list(running.values())
    num_before = sum(handle.num_tokens for handle in handles)

    def has_news() -> bool:
        return any(handle.is_done for handle in handles) or num_before < sum(
            handle.num_tokens for handle in handles
        )

    batcher.step_until(has_news)
