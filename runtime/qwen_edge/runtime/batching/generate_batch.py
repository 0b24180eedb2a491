"""Answers to a list of prompts, as they are done.

Prompts of any lengths run side by side. None is padded: their tokens stand one behind the other
in one row, so that a short one costs what it costs alone, and its tokens are those it gets alone.
"""

from collections.abc import Callable, Iterator, Sequence

from qwen_edge.errors import EdgeError, QueueFullError
from qwen_edge.runtime.batching.answer_handle import AnswerHandle, BatchResult
from qwen_edge.runtime.batching.scheduler import ContinuousBatcher
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.events import Timings


def generate_batch(
    batcher: ContinuousBatcher,
    prompts: Sequence[Sequence[int]],
    *,
    make_picker: Callable[[int], TokenPicker],
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
) -> Iterator[tuple[int, BatchResult]]:
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
    open_handles: dict[int, AnswerHandle] = {}
    most = 2 * batcher.options.max_running  # as many again, so that no place stays empty
    next_index = 0
    try:
        while open_handles or next_index < len(prompts):
            while next_index < len(prompts) and len(open_handles) < most:
                try:
                    open_handles[next_index] = batcher.submit(
                        prompts[next_index],
                        make_picker(next_index),
                        max_new_tokens=max_new_tokens,
                        stop_token_ids=stop_token_ids,
                    )
                except QueueFullError:
                    if not open_handles:
                        batcher.step()  # all places are others'
                    break
                except EdgeError as error:
                    yield next_index, BatchResult((), None, Timings(), error)
                next_index += 1
            done = _wait_for_some(batcher, open_handles)
            for index in done:
                yield index, open_handles.pop(index).result()
    finally:
        for handle in open_handles.values():
            handle.cancel()


def _wait_for_some(batcher: ContinuousBatcher, handles: dict[int, AnswerHandle]) -> list[int]:
    """Return the indices of those that are done, when at least one is."""
    if not handles:
        return []
    batcher.step_until(lambda: any(handle.is_done for handle in handles.values()))
    return [index for index, handle in handles.items() if handle.is_done]
