"""A request cannot bring a chat template, or variables for the package's own."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
}
_TEMPLATE = "{{ cycler.__init__.__globals__.os.system('true') }}"
ATTACKS: dict[str, dict[str, Any]] = {
    "template": {"chat_template": _TEMPLATE},
    "empty-template": {"chat_template": ""},
    "camel-case": {"chatTemplate": _TEMPLATE},
    "named-template": {"template": _TEMPLATE},
    "kwargs-template": {"chat_template_kwargs": {"chat_template": _TEMPLATE}},
    "kwargs-variable": {"chat_template_kwargs": {"bos_token": "<|im_start|>"}},
    "kwargs-messages": {"chat_template_kwargs": {"messages": []}},
    "kwargs-no-object": {"chat_template_kwargs": _TEMPLATE},
    "tokenize": {"tokenize": False},
    "add-generation-prompt": {"add_generation_prompt": False},
    "continue": {"continue_final_message": True},
    "documents": {"documents": [{"title": "x", "text": _TEMPLATE}]},
}


@pytest.mark.trust("T-TPL-04")
@pytest.mark.parametrize("path", BODIES)
def test_no_route_takes_a_template_from_a_request(
    start_scripted: Callable[..., Any], path: str, cases: Any
) -> None:
    server = start_scripted(["Hello."])
    url = server.url + path
    assert httpx.post(url, json=BODIES[path], timeout=30).status_code == 200
    for name, attack in ATTACKS.items():
        answer = httpx.post(url, json={**BODIES[path], **attack}, timeout=30)
        assert answer.status_code == 400, name
        [field] = attack
        assert field in answer.json()["error"]["message"], answer.text
    assert httpx.post(url, json=BODIES[path], timeout=30).status_code == 200
    cases(len(ATTACKS))
