"""openai-python: tools and answers of a given form. The base knows neither, so that only the server can be what holds it to them."""
import enum
import json

import jsonschema
import openai
import pydantic
import pytest

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Oslo", "São Paulo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
COLOUR = {"type": "object", "properties": {"name": {"enum": ["red", "blue"]}}, "required": ["name"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "paint", "description": "Paint the house", "parameters": COLOUR}},
]
PARAMETERS = {"get_weather": WEATHER, "paint": COLOUR}
ORDER = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["order", "question"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
        "urgent": {"type": "boolean"},
        "note": {"anyOf": [{"type": "null"}, {"const": "none"}]},
    },
    "required": ["kind", "number", "tags", "urgent", "note"],
    "additionalProperties": False,
}
# Nothing in these schemas is without end, white space included, so that an answer of so many tokens has to end by itself.
ENOUGH = 2000
ASKED = [{"role": "user", "content": "What is the weather?"}]


def ask(client, messages=ASKED, model="base", **more):
    return client.chat.completions.create(model=model, messages=messages, **{"temperature": 0, "max_tokens": ENOUGH, **more})


def check_call(call):
    assert call.type == "function" and call.id.startswith("call_")
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model", ["base", "red"])
def test_a_required_call_is_one_of_the_tools(client, model, seed):
    answer = ask(client, model=model, tools=TOOLS, tool_choice="required", temperature=1, seed=seed)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert len(choice.message.tool_calls) == 1
    check_call(choice.message.tool_calls[0])


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_tool_is_called(client, name):
    choice = ask(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": name}}).choices[0]
    assert choice.message.tool_calls[0].function.name == name
    check_call(choice.message.tool_calls[0])


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {"type": "object", "properties": {}, "additionalProperties": False}}])
def test_a_tool_without_parameters_is_called_with_none(client, parameters):
    tool = {"type": "function", "function": {"name": "ring", **parameters}}
    choice = ask(client, tools=[tool], tool_choice="required").choices[0]
    call = choice.message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments)) == ("ring", {})


def test_no_tool_is_called_where_none_may_be(client):
    none = ask(client, tools=TOOLS, tool_choice="none", max_tokens=12).choices[0]
    assert none.message.tool_calls is None and none.finish_reason in ("stop", "length")
    assert none.message.content == ask(client, max_tokens=12).choices[0].message.content


def test_tools_are_printed_into_the_prompt(client, reference):
    auto = ask(client, tools=TOOLS, max_tokens=4)
    assert auto.usage.prompt_tokens == len(reference.chat_ids(ASKED, TOOLS))


def test_streamed_calls_are_the_whole_ones(client):
    more = {"tools": TOOLS, "tool_choice": "required"}
    whole = ask(client, **more).choices[0].message.tool_calls[0]
    calls, reasons = {}, []
    for chunk in ask(client, stream=True, **more):
        choice = chunk.choices[0]
        reasons.append(choice.finish_reason)
        assert not choice.delta.content
        for piece in choice.delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"id": None, "name": None, "arguments": ""})
            call["id"] = piece.id or call["id"]
            call["name"] = piece.function.name or call["name"]
            call["arguments"] += piece.function.arguments or ""
    assert list(calls) == [0] and reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}
    assert (calls[0]["name"], calls[0]["arguments"]) == (whole.function.name, whole.function.arguments)
    assert calls[0]["id"].startswith("call_")
    with client.chat.completions.stream(model="base", messages=ASKED, temperature=0, max_tokens=ENOUGH, **more) as stream:
        gathered = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert (gathered.function.name, gathered.function.arguments) == (whole.function.name, whole.function.arguments)


def test_a_conversation_goes_on_behind_a_call(client, reference):
    call = ask(client, tools=TOOLS, tool_choice="required").choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "12 degrees"}
    answer = ask(client, [*ASKED, call, result], tools=TOOLS, tool_choice="none", max_tokens=8)
    arguments = json.loads(call.tool_calls[0].function.arguments)
    plain = {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": call.tool_calls[0].function.name, "arguments": arguments}}
    ]}
    assert answer.usage.prompt_tokens == len(reference.chat_ids([*ASKED, plain, result]))


def test_a_call_that_is_cut_off_is_no_call(client):
    choice = ask(client, tools=TOOLS, tool_choice="required", max_tokens=5).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls
    # The tag that opens a call stood in the prompt, and is not what was written.
    assert "<tool_call>" not in (choice.message.content or "")


def test_tools_that_cannot_be_are_bad_requests(client):
    for more in [
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sing"}}},
        {"tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": "sometimes"},
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **more)
        assert caught.value.type == "invalid_request_error" and caught.value.param.startswith("tool")


def as_schema(schema, name="order"):
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model", ["base", "blue"])
def test_answers_have_their_schema(client, model, seed):
    choice = ask(client, model=model, response_format=as_schema(ORDER), temperature=1, seed=seed).choices[0]
    assert choice.finish_reason == "stop", choice.message.content
    jsonschema.validate(json.loads(choice.message.content), ORDER)


def test_answers_have_their_schema_in_a_stream_and_beside_others(client):
    whole = ask(client, response_format=as_schema(ORDER)).choices[0].message.content
    streamed = ask(client, response_format=as_schema(ORDER), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole
    several = ask(client, response_format=as_schema(ORDER), n=4, temperature=1, seed=5)
    assert len({choice.message.content for choice in several.choices}) > 1
    for choice in several.choices:
        jsonschema.validate(json.loads(choice.message.content), ORDER)


class Mood(str, enum.Enum):
    good = "good"
    bad = "bad"


class Review(pydantic.BaseModel):
    mood: Mood
    stars: int = pydantic.Field(ge=1, le=5)
    again: bool


def test_the_clients_parse_gives_an_object(client):
    answer = client.chat.completions.parse(model="base", messages=ASKED, response_format=Review, temperature=0, max_tokens=ENOUGH)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Review) and parsed.mood in Mood and 1 <= parsed.stars <= 5


def test_json_objects(client, reference):
    """What ends by itself is an object. A bias for the closing brace brings that about: the base would write for ever."""
    closing = {str(reference.tokenizer.token_to_id("}")): 12}
    ended = 0
    for seed in range(4):
        choice = ask(
            client, response_format={"type": "json_object"}, temperature=1, seed=seed, logit_bias=closing, max_tokens=300
        ).choices[0]
        assert choice.message.content.lstrip().startswith("{")
        if choice.finish_reason == "stop":
            ended += 1
            assert isinstance(json.loads(choice.message.content), dict)
    assert ended >= 1


def test_completions_and_vllms_words_for_forms(client):
    answer = client.completions.create(
        model="base", prompt="The colour is", temperature=0, max_tokens=40, extra_body={"guided_choice": ["crimson", "teal"]}
    )
    assert answer.choices[0].text in ("crimson", "teal")
    answer = ask(client, extra_body={"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2}"}}, max_tokens=40)
    text = answer.choices[0].message.content
    assert len(text) == 6 and set(text[:3]) <= set("abcdef") and text[3] == "-" and text[4:].isdigit()


def test_schemas_that_cannot_be_are_bad_requests(client):
    for bad in [
        {"type": "json_schema", "json_schema": {"name": "x"}},
        as_schema({"type": "nothing"}),
        as_schema({"$ref": "https://example.com/schema.json"}),
        {"type": "xml"},
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, response_format=bad)
        assert caught.value.param.startswith("response_format"), caught.value
