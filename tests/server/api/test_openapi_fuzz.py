"""Requests invented from the server's own description: each operation, valid and damaged."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qwen_edge.server.api.openapi import make_openapi

NUM_EXAMPLES = 50
LIMIT_S = 30
GOOD_FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 4,
    },
    "/v1/completions": {"prompt": "Hi", "max_tokens": 4},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 4},
}
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    f"{operation.method} {operation.path}": operation
    for found in schemathesis.openapi.from_dict(make_openapi()).get_all_operations()
    for operation in [found.ok()]
}
# Any text is a name, so nothing can be damaged in what is only read.
TRIALS = [
    *((name, GenerationMode.POSITIVE) for name in OPERATIONS),
    *((name, GenerationMode.NEGATIVE) for name in OPERATIONS if name.startswith("post")),
]
SETTINGS = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a failure shows its request, and shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def url(start_scripted: Callable[..., Any]) -> str:
    """Return the address of a server that says a short answer."""
    address: str = start_scripted(["Hello, 👋."]).url
    return address


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Return connections that are kept."""
    with requests.Session() as kept:
        yield kept


def check(url: str, session: requests.Session, given_case: Any) -> int:
    """Send one request and check its answer; return the status."""
    reply = given_case.call(base_url=url, session=session, timeout=LIMIT_S)
    given_case.validate_response(reply, checks=CHECKS)
    status: int = reply.status_code
    return status


def is_well(url: str) -> bool:
    """Return whether an ordinary request is answered as ever."""
    body = GOOD_FIELDS["/v1/chat/completions"]
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=LIMIT_S)
    return bool(reply.json()["choices"][0]["message"]["content"] == "Hell")


@pytest.mark.trust("T-SRV-02", "T-SRV-07")
@pytest.mark.parametrize(("name", "mode"), TRIALS)
def test_no_invented_request_is_a_bug_of_the_server(
    url: str, session: requests.Session, name: str, mode: GenerationMode, cases: Any
) -> None:
    """Answered within the time, as the description says, and never with a 5xx."""
    operation = OPERATIONS[name]
    statuses: list[int] = []

    @SETTINGS
    @given(invented=operation.as_strategy(generation_mode=mode))
    def send(invented: Any) -> None:
        statuses.append(check(url, session, invented))

    send()
    cases(len(statuses), claim="fuzzed")
    assert is_well(url)


@pytest.mark.trust("T-SRV-02", "T-SRV-07")
@pytest.mark.parametrize("path", GOOD_FIELDS)
def test_no_invented_field_beside_good_ones_is_either(
    url: str, session: requests.Session, path: str, cases: Any
) -> None:
    """What is invented is hardly ever a conversation, so these begin with one."""
    statuses: list[int] = []

    @settings(SETTINGS, max_examples=2 * NUM_EXAMPLES)
    @given(OPERATIONS[f"post {path}"].as_strategy(), st.randoms(use_true_random=False))
    def send(invented: Any, draw: Random) -> None:
        given_fields = {name for name, value in invented.body.items() if value is not None}
        names = sorted(given_fields - {"model", *GOOD_FIELDS[path]})
        few = draw.sample(names, min(len(names), 3))
        invented.body = GOOD_FIELDS[path] | {name: invented.body[name] for name in few}
        statuses.append(check(url, session, invented))

    send()
    cases(len(statuses), claim="fuzzed")
    assert {200, 400} <= set(statuses)
    assert is_well(url)
