"""Tools as they are offered: three forms in, one out, and a refusal that says why."""

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tools.tool import MAX_TOOLS, Tool, read_tool_choice, read_tools

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BARE = {"name": "get_time", "description": "Tells the time.", "parameters": PARAMETERS}


def get_time(city: str) -> str:
    """Tells the time."""
    return city


@pytest.mark.parametrize(
    "given", [BARE, {"type": "function", "function": BARE}, get_time, Tool.from_schema(BARE)]
)
def test_every_form_gives_the_same_tool(given: object) -> None:
    (tool,) = read_tools([given])  # type: ignore[list-item]
    assert (tool.name, tool.description) == ("get_time", "Tells the time.")
    assert tool.parameters["properties"] == PARAMETERS["properties"]
    shown = tool.to_openai()
    assert shown["type"] == "function"
    assert shown["function"]["parameters"]["required"] == ["city"]  # type: ignore[index]


def test_a_schema_is_shown_as_it_was_given() -> None:
    """A model may have learnt keys that are not known here, and the order changes the ids."""
    given = {
        "function": {"parameters": PARAMETERS, "strict": True, "name": "f"},
        "type": "function",
    }
    shown = Tool.from_schema(given).to_openai()
    assert shown == given
    assert list(shown["function"]) == ["parameters", "strict", "name"]  # type: ignore[call-overload]


def test_what_was_checked_cannot_be_changed_from_outside() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    tool = Tool("f", "", parameters)
    parameters["properties"] = None
    tool.to_openai()["function"]["parameters"]["type"] = "array"  # type: ignore[index]
    assert tool.parameters == {"type": "object", "properties": {"a": {"type": "string"}}}
    given = Tool.from_schema(BARE)
    given.to_openai()["function"]["parameters"].clear()  # type: ignore[index]
    assert given.to_openai()["function"] == BARE


def test_a_tool_without_parameters_takes_none() -> None:
    assert Tool.from_schema({"name": "f"}).parameters == {"type": "object", "properties": {}}


@pytest.mark.trust("T-SRV-07")
@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"name": "get time"}, "its name is not made of"),
        ({"name": ""}, "its name"),
        ({"name": "f" * 65}, "its name"),
        ({"name": "zeit_für"}, "its name"),
        ({"parameters": {}}, "tools[1] cannot be used: it has no name"),
        ({"type": "retrieval", "function": BARE}, "expected 'function'"),
        ({"type": "function", "function": [1]}, "its function is list"),
        ({"name": "f", "description": 3}, "its description is int"),
        ({"name": "f", "description": "\ud800"}, "more than JSON data"),
        ({"name": "f", "parameters": [1]}, "its parameters are list"),
        ({"name": "f", "parameters": {"type": "string"}}, "have the type 'string'"),
        ({"name": "f", "parameters": {"properties": []}}, "its properties are list"),
        ({"name": "f", "parameters": {"properties": {"a": "text"}}}, "its parameter 'a' is str"),
        ({"name": "f", "parameters": {"required": "a"}}, "its 'required'"),
        (
            {
                "name": "f",
                "parameters": {"properties": {}, "required": ["a"], "additionalProperties": False},
            },
            "it requires 'a'",
        ),
        ({"name": "f", "parameters": {"properties": {"a": {"default": {1, 2}}}}}, "JSON data"),
        ({"name": "f", "parameters": {"x": float("nan")}}, "JSON data"),
        (3, "tools[1] cannot be used: it is int"),
        (lambda: 1, "its name"),
    ],
)
def test_a_malformed_tool_is_refused(tool: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_tools([BARE, tool])  # type: ignore[list-item]
    assert words in caught.value.problem
    assert caught.value.fix


def test_a_schema_nested_too_deep_is_refused() -> None:
    for depth in (60, 100_000):
        schema: dict[str, object] = {}
        for _ in range(depth):
            schema = {"properties": {"a": schema}}
        with pytest.raises(UsageError, match="nested"):
            Tool("f", "", schema)
        while schema:  # taken apart one by one: freeing it at once would recurse
            schema = schema["properties"]["a"]  # type: ignore[index]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="'get_time' is there 2 times"):
        read_tools([BARE, {"name": "f"}, get_time])


def test_too_many_tools_are_refused() -> None:
    tools = [{"name": f"f{index}"} for index in range(MAX_TOOLS + 1)]
    assert len(read_tools(tools[:-1])) == MAX_TOOLS
    with pytest.raises(UsageError, match="129 tools; the limit is 128"):
        read_tools(tools)


def test_one_tool_is_no_list_of_tools() -> None:
    with pytest.raises(UsageError, match="expected a list"):
        read_tools(BARE)  # type: ignore[arg-type]


def test_choices() -> None:
    tools = read_tools([BARE])
    named = {"type": "function", "function": {"name": "get_time"}}
    for choice in ("auto", "none", "required", "get_time"):
        assert read_tool_choice(choice, tools) == choice
    assert read_tool_choice(named, tools) == "get_time"


@pytest.mark.parametrize("choice", ["get_tim", None, 3, {}, {"function": {"name": "auto"}}])
def test_a_choice_that_is_none_is_refused(choice: object) -> None:
    with pytest.raises(UsageError, match="tool_choice"):
        read_tool_choice(choice, read_tools([BARE]))


def test_a_call_cannot_be_required_without_tools() -> None:
    assert read_tool_choice("auto", []) == "auto"
    with pytest.raises(UsageError, match="no tools"):
        read_tool_choice("required", [])
