"""Sessions in files: a conversation together with what the model's cache holds of it.

The file belongs to one package and its settings (`snapshots/`); what is in it is checked as a
stranger's would be.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.chat import Message, check_messages
from qwen_edge.runtime.limits import read_path
from qwen_edge.runtime.snapshots.snapshot_file import load_snapshot, save_snapshot

if TYPE_CHECKING:
    from qwen_edge.runtime.answer_options import AnswerOptions
    from qwen_edge.runtime.model import Model
    from qwen_edge.runtime.session import Session


def save_session(
    model: "Model",
    path: Path | str,
    system: Sequence[Message],
    messages: Sequence[Message],
    token_ids: Sequence[int],
) -> None:
    """Write a conversation to a file, with what the model's cache holds of it.

    Args:
        model: Whose cache it is.
        path: Replaced when the file is whole, and not before.
        system: What the conversation began with.
        messages: All of it.
        token_ids: Of the conversation; those that the cache holds are saved with it.

    Raises:
        EdgeError: As `Session.save`.
    """
    target = read_path(path)
    with model.borrow_cache():
        model.wait_until_warm()
        snapshot = model.prefix_cache.snapshot(token_ids)
    conversation = {"messages": list(messages), "system": list(system)}
    save_snapshot(target, snapshot, binding=model.binding, conversation=conversation)


def load_session(model: "Model", path: Path, options: "AnswerOptions") -> "Session":
    """Return a saved conversation, its cache in the place of what the model's cache holds.

    Args:
        model: Of the package that the session was saved with.
        path: A file that `Session.save` wrote.
        options: Defaults of the session's answers.

    Raises:
        EdgeError: As `Model.load_session`.
    """
    loaded = load_snapshot(path, binding=model.binding, max_tokens=model.max_context_tokens)
    conversation = loaded.conversation or {}
    system, messages = _read(path, conversation, "system"), _read(path, conversation, "messages")
    session = model.session(**options)
    with model.borrow_cache():
        model.wait_until_warm()
        model.prefix_cache.restore(loaded.cache, owner=session)
        session.resume(system, messages, loaded.cache.token_ids)
    return session


def _read(path: Path, conversation: Any, name: str) -> tuple[Message, ...]:
    """Return checked messages of a saved conversation."""
    try:
        messages = conversation[name]
        return tuple(check_messages(messages, is_complete=False)) if messages else ()
    except (KeyError, TypeError, UsageError) as error:
        raise PackageError(
            f"{str(path)!r} holds no conversation: {error}.",
            "load a file that session.save() or /save wrote",
            path=str(path),
        ) from error
