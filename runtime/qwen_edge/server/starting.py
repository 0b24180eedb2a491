"""Whether the server can answer: not before its model is loaded, nor when it is stopping."""

from qwen_edge.errors import EdgeError
from qwen_edge.server.refusals import HttpRefusal, to_refusal

_RETRY_AFTER = (b"retry-after", b"2")


class Starting:
    """The state of a server at its start.

    State:
        `is_loading` until the first model is there; `failure` when it could not be loaded;
        `is_stopping` from the signal to stop on.
    """

    def __init__(self) -> None:
        self.is_loading = False
        self.is_stopping = False
        self.failure: BaseException | None = None

    def check(self) -> None:
        """Refuse a request that cannot be answered yet.

        Raises:
            HttpRefusal: 503, while the model is loaded or after that failed.
        """
        if self.is_stopping:
            raise refuse_while_stopping()
        if self.failure is not None:
            raise HttpRefusal(
                503,
                f"The model could not be loaded: {_problem(self.failure)}",
                to_refusal(self.failure).fix,
                code="load_failed",
            )
        if self.is_loading:
            raise HttpRefusal(
                503,
                "The model is being loaded.",
                "ask again in a moment; GET /health says when it is ready",
                code="loading",
                headers=(_RETRY_AFTER,),
            )

    def describe(self) -> tuple[int, dict[str, object]]:
        """Return status and body of `/health`."""
        if self.is_stopping:
            return 503, {"status": "stopping"}
        if self.failure is not None:
            return 503, {"status": "failed", "error": _problem(self.failure)}
        if self.is_loading:
            return 503, {"status": "loading"}
        return 200, {"status": "ok"}


def refuse_while_stopping() -> HttpRefusal:
    """Return the refusal of whatever was not answered before the server stopped."""
    return HttpRefusal(503, "The server is stopping.", "ask again when it runs", code="stopping")


def _problem(error: BaseException) -> str:
    return error.problem if isinstance(error, EdgeError) else to_refusal(error).problem
