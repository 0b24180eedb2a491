"""One answer among others, read as far as it is, without waiting.

For readers with a loop of their own, such as a server's: the batcher says when there is something
new, `read` returns it. `BatchModel.stream` is for those who want to wait.
"""

from qwen_edge.runtime.batching.answer_handle import AnswerHandle
from qwen_edge.runtime.events import Event, FinishReason
from qwen_edge.runtime.planning import AnswerPlan
from qwen_edge.runtime.turn import AnswerReader


class AnswerFeed:
    """The events of one request of a batcher.

    Args:
        plan: What the answer is made by.
        handle: The request.

    State:
        `is_finished` and, after a failure, `error` are set by the `read` that came to the end.
        Belongs to one thread; the request behind it grows in others.
    """

    def __init__(self, plan: AnswerPlan, handle: AnswerHandle) -> None:
        self.is_finished = False
        self.error: BaseException | None = None
        self._plan = plan
        self._handle = handle
        self._reader = AnswerReader(plan.text, plan.stop_token_ids)
        self._num_read = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self._plan.prompt_ids)

    def read(self) -> list[Event]:
        """Return the events that are new; the last one of a whole answer is of the kind "done".

        State:
            A request whose reader has enough, for a stop string, is cancelled.
        """
        events: list[Event] = []
        if self.is_finished:
            return events
        is_done = self._handle.is_done  # asked first: tokens may come in between
        for token in self._handle.read(self._num_read):
            self._num_read += 1
            events.extend(self._reader.push(token))
            if self._reader.finish_reason is not None:
                self._handle.cancel()
                is_done = True
                break
        if is_done:
            self._finish(events)
        return events

    def cancel(self) -> None:
        """End the request, which then leaves at the next step. Harmless when it is done."""
        self._handle.cancel()

    def _finish(self, events: list[Event]) -> None:
        self.is_finished = True
        if self._reader.finish_reason is None:
            self.error = self._handle.result().error
            if self.error is not None:
                return
        events.extend(self._reader.finish())
        events.append(make_last_event(self._plan, self._handle, self._reader.finish_reason))


def make_last_event(plan: AnswerPlan, handle: AnswerHandle, reason: FinishReason | None) -> Event:
    """Return the event that ends an answer.

    Args:
        plan: What the answer was made by.
        handle: Its request, ended.
        reason: Why the text ended; None where the tokens came to an end.
    """
    result = handle.result()
    is_cancelled = reason is None and result.finish_reason == "cancelled"
    return plan.text.done(
        reason or ("cancelled" if is_cancelled else "length"),
        result.timings,
        plan.dropped_messages,
    )
