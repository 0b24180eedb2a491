"""Answers on the event loop: read as they come, ended when nobody wants them any more.

The batcher's thread makes the steps and says when there is news; here the news are waited for,
together with the client's leaving, the limit of time and the end of the server. A request that
is not wanted any more is cancelled at once, wherever it is: in the line, in its prompt or in its
answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive

from qwen_edge.errors import DeviceError, ResourceError
from qwen_edge.runtime.answer_feed import AnswerFeed
from qwen_edge.runtime.events import Event
from qwen_edge.server.refusals import ClientLeftError
from qwen_edge.server.request_body import wait_until_client_leaves

Result = TypeVar("Result")
OpenFeeds = Callable[[Callable[[], None]], Sequence[AnswerFeed]]
"""Hands in the requests; called in a thread, with what is to be called when there is news."""


class Answering:
    """The answers to one request while they are made.

    Args:
        receive: Of the request, whose body has been read: what comes next is the end.
        limit_s: Longest time for all of it.

    State:
        An async context manager; leaving it cancels what is not finished.
    """

    def __init__(self, receive: Receive, limit_s: float) -> None:
        self._receive = receive
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._feeds: Sequence[AnswerFeed] = ()
        self._is_client_gone = False
        self._is_late = False
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Answering":
        self._watch = asyncio.create_task(self._watch_client())
        self._timer = self._loop.call_later(self._limit_s, self._be_late)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for feed in self._feeds:
            feed.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()

    async def wait_for(self, work: Coroutine[object, object, Result]) -> Result:
        """Return the result of work that others may want too: it goes on when nobody waits here.

        Raises:
            ClientLeftError: The client closed the connection meanwhile.
            ResourceError: The limit of time is over.
            Exception: What the work raised.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(self._end_work)
        while True:
            self._news.clear()
            if task.done():
                return task.result()
            self._check_wanted()
            await self._news.wait()

    async def open(self, open_feeds: OpenFeeds) -> Sequence[AnswerFeed]:
        """Hand in the requests; templates and grammars are made in a thread.

        Raises:
            EdgeError: The request is refused.
        """
        self._feeds = await run_in_threadpool(open_feeds, self._tell)
        return self._feeds

    async def events(self) -> AsyncGenerator[tuple[int, list[Event]], None]:
        """Yield new events with the index of their answer, until all answers are finished.

        Raises:
            ClientLeftError: The client closed the connection.
            ResourceError: The limit of time is over.
            EdgeError: A request went wrong, or the server is stopping.
        """
        while True:
            self._news.clear()
            self._check_wanted()  # also of what was told while the requests were handed in
            for index, feed in enumerate(self._feeds):
                events = feed.read()
                if events:  # what was said before an error is shown
                    yield index, _refuse_cancelled(events)
                if feed.error is not None:
                    raise feed.error
            if all(feed.is_finished for feed in self._feeds):
                return
            await self._news.wait()

    def _check_wanted(self) -> None:
        if self._is_client_gone:
            raise ClientLeftError("the client left before its answer had ended")
        if self._is_late:
            raise ResourceError(
                f"The answer took longer than {self._limit_s:,.0f} s.",
                "ask for fewer tokens, or start the server with a longer --request-timeout",
                limit_s=self._limit_s,
            )

    def _tell(self) -> None:
        """Say that there is news; from any thread, also when the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            return  # the loop is closed: nobody waits

    def _end_work(self, task: "asyncio.Task[Result]") -> None:
        if not task.cancelled():
            task.exception()  # else asyncio complains where nobody waits for it any more
        self._news.set()

    def _be_late(self) -> None:
        self._is_late = True
        self._news.set()

    async def _watch_client(self) -> None:
        await wait_until_client_leaves(self._receive)
        self._is_client_gone = True
        self._news.set()


def _refuse_cancelled(events: list[Event]) -> list[Event]:
    """Raise where the model was closed under an answer; nobody else cancels one that is read."""
    if events and events[-1].finish_reason == "cancelled":
        raise DeviceError("The server is stopping.", "ask again when it runs")
    return events
