"""From a checked request to what has to be done for it, the same for all interfaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qwen_edge.runtime.answer_feed import AnswerFeed
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.server.api.chat_answer import ChatAnswer
from qwen_edge.server.api.chat_request import ChatRequest
from qwen_edge.server.api.completion_answer import CompletionAnswer
from qwen_edge.server.api.completion_request import CompletionRequest
from qwen_edge.server.api.event_stream import AnswerWriter, Json
from qwen_edge.server.api.field_names import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    RESPONSES_FIELDS,
    naming_fields,
)
from qwen_edge.server.api.fields import read_request
from qwen_edge.server.api.responses_answer import ResponsesAnswer
from qwen_edge.server.api.responses_request import ResponsesRequest
from qwen_edge.server.response_store import ResponseStore

Tell = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What one request asks for.

    Args:
        model: Name of the model; None for the only one.
        num_answers: How many answers.
        is_stream: Whether they are sent as they are made.
        open: Hands the requests in at a model; for a thread. Its second argument is called when
            there is news.
        make_writer: Model and its name to what writes the answers.
    """

    model: str | None
    num_answers: int
    is_stream: bool
    open: Callable[[BatchModel, Tell], Sequence[AnswerFeed]]
    make_writer: Callable[[BatchModel, str], AnswerWriter]


def read_chat_job(body: object) -> Job:
    """Return the job of a request for `/v1/chat/completions`.

    Raises:
        EdgeError: The request is not one.
    """
    request = read_request(ChatRequest, body)
    has_output = request.response_format is not None
    with naming_fields(CHAT_FIELDS, has_output=has_output):
        messages, options = request.conversation(), request.options()
    count, includes_usage = request.n or 1, request.includes_usage()

    def open_feeds(model: BatchModel, tell: Tell) -> list[AnswerFeed]:
        with naming_fields(CHAT_FIELDS, has_output=has_output):
            return _open_all(
                count,
                lambda i: model.open_answer(messages, on_change=tell, answer_index=i, **options),
            )

    def make_writer(model: BatchModel, name: str) -> AnswerWriter:
        token_bytes = model.tokenizer.token_bytes if request.logprobs else None
        return ChatAnswer(name, count, token_bytes, includes_usage=includes_usage)

    return Job(request.model, count, bool(request.stream), open_feeds, make_writer)


def read_completion_job(body: object) -> Job:
    """Return the job of a request for `/v1/completions`.

    Raises:
        EdgeError: The request is not one.
    """
    request = read_request(CompletionRequest, body)
    prompts, options, each = request.prompts(), request.options(), request.n or 1
    stream_options = request.stream_options
    includes_usage = stream_options is not None and stream_options.include_usage

    def open_feeds(model: BatchModel, tell: Tell) -> list[AnswerFeed]:
        with naming_fields(COMPLETION_FIELDS):
            return _open_all(
                len(prompts) * each,
                lambda i: model.open_completion(
                    prompts[i // each], on_change=tell, answer_index=i % each, **options
                ),
            )

    def make_writer(model: BatchModel, name: str) -> AnswerWriter:
        token_bytes = model.tokenizer.token_bytes if request.logprobs is not None else None
        return CompletionAnswer(
            name, len(prompts), each, token_bytes, includes_usage=includes_usage
        )

    count = len(prompts) * each
    return Job(request.model, count, bool(request.stream), open_feeds, make_writer)


def read_responses_job(body: object, store: ResponseStore) -> Job:
    """Return the job of a request for `/v1/responses`.

    Args:
        body: JSON data.
        store: Where responses are kept, and those that are gone on from.

    Raises:
        EdgeError: The request is not one.
        HttpRefusal: The response to go on from is not stored.
    """
    request = read_request(ResponsesRequest, body)
    has_output = request.text is not None and request.text.format is not None
    with naming_fields(RESPONSES_FIELDS, has_output=has_output):
        options, messages = request.options(), request.new_messages()
    if request.previous_response_id is not None:
        earlier = store.find(request.previous_response_id, "previous_response_id").messages
        messages = [*map(dict, earlier), *messages]
    conversation = messages
    if request.instructions is not None:
        conversation = [{"role": "system", "content": request.instructions}, *messages]

    def open_feeds(model: BatchModel, tell: Tell) -> list[AnswerFeed]:
        with naming_fields(RESPONSES_FIELDS, has_output=has_output):
            return [model.open_answer(conversation, on_change=tell, **options)]

    def keep(response_id: str, response: Json, message: Mapping[str, object]) -> None:
        if request.store is not False:
            store.add(response_id, response, [*messages, message])

    def make_writer(model: BatchModel, name: str) -> AnswerWriter:
        token_bytes = model.tokenizer.token_bytes if request.wants_logprobs else None
        return ResponsesAnswer(request, name, token_bytes, keep)

    return Job(request.model, 1, bool(request.stream), open_feeds, make_writer)


def _open_all(count: int, open_one: Callable[[int], AnswerFeed]) -> list[AnswerFeed]:
    """Open several answers; where one is refused, those before it are cancelled."""
    feeds: list[AnswerFeed] = []
    try:
        for index in range(count):
            feeds.append(open_one(index))
    except BaseException:
        for feed in feeds:
            feed.cancel()
        raise
    return feeds
