"""The fake model: scripted answers in order, whatever is cached, edited or asked twice."""

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime import Model
from qwen_edge.runtime.fake_model import make_fake_tokenizer


def test_answers_come_in_order_and_the_last_is_repeated() -> None:
    chat = Model.fake(["One", "Two <3"]).session()
    assert [chat.ask("?").text for _ in range(3)] == ["One", "Two <3", "Two <3"]
    assert chat.ask([{"role": "user", "content": "?"}]).text == "One"


def test_thinking_off_does_not_shift_the_script() -> None:
    chat = Model.fake(["Hi"]).session(thinking=False)
    assert chat.ask("?").text == "Hi"


def test_every_text_makes_the_round_trip() -> None:
    tokenizer = make_fake_tokenizer()
    text = "äöü 👋 <think> <|im_end|> \x00\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text.encode("utf-8"))


def test_no_answers_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one text"):
        Model.fake([])
