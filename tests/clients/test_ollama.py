"""Ollama's own Python client."""
import asyncio
import json
from datetime import datetime

import jsonschema
import ollama
import pytest

from conftest import KEY
from questions import CONVERSATIONS, MODELS, QUESTIONS

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url)


def test_models_are_listed_shown_and_in_memory(client):
    listed = {model.model: model for model in client.list().models}
    assert {"base", "red", "blue"} <= listed.keys()
    for model in listed.values():
        assert model.size > 1000 and len(model.digest) >= 64 and isinstance(model.modified_at, datetime)
        assert model.details.family == "llama" and model.details.parameter_size
    assert listed["red"].details.parent_model == "base"
    for name in ["base", "red", "red:latest"]:
        shown = client.show(name)
        assert "<|im_start|>" in shown.template and set(shown.capabilities) == {"completion", "tools"}
        assert shown.modelinfo["general.architecture"] == "llama" and shown.modelinfo["llama.context_length"] == 8192
    client.generate("red", "x", options={"num_predict": 1})
    assert {"base", "red"} <= {model.model for model in client.ps().models}


def test_the_version_is_told(client):
    answer = client._client.get("/api/version").raise_for_status().json()
    assert answer["version"].count(".") == 2


@pytest.mark.parametrize("model", ["base", "red", "blue:latest"])
def test_chat_is_the_references(client, reference, model):
    for messages in CONVERSATIONS:
        answer = client.chat(model, messages, options=GREEDY)
        prompt = reference.chat_ids(messages)
        expected = reference.greedy(prompt, 12, MODELS[model.removesuffix(":latest")])
        assert (answer.message.role, answer.message.content) == ("assistant", reference.decode(expected))
        assert answer.done and answer.done_reason == ("length" if len(expected) == 12 else "stop")
        assert answer.prompt_eval_count == len(prompt)
        assert answer.eval_count == len(expected) + (answer.done_reason == "stop")
        assert answer.total_duration >= answer.eval_duration > 0 and answer.prompt_eval_duration > 0


def test_streams_are_the_whole(client):
    options = {"temperature": 0.8, "seed": 5, "num_predict": 24}
    whole = client.chat("red", CONVERSATIONS[1], options=options).message.content
    parts = list(client.chat("red", CONVERSATIONS[1], options=options, stream=True))
    assert "".join(part.message.content for part in parts) == whole
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True] and parts[-1].eval_count >= 1
    assert client.chat("red", CONVERSATIONS[1], options={**options, "seed": 6}).message.content != whole
    whole = client.generate("base", QUESTIONS[2], options=options).response
    parts = list(client.generate("base", QUESTIONS[2], options=options, stream=True))
    assert "".join(part.response for part in parts) == whole and parts[-1].done


def test_generate_uses_the_template_or_not(client, reference):
    answer = client.generate("base", QUESTIONS[2], system="Be brief.", options=GREEDY)
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[2]}]
    expected = reference.greedy(reference.chat_ids(told), 12)
    assert answer.response == reference.decode(expected)
    raw = client.generate("base", "Once upon a time", raw=True, options=GREEDY)
    ids = reference.encode("Once upon a time")
    expected = reference.greedy(ids, 12)
    assert raw.response == reference.decode(expected) and list(raw.context) == ids + expected
    # What was written is the beginning of the next.
    on = client.generate("base", " and", raw=True, context=raw.context, options=GREEDY)
    before = ids + expected + reference.encode(" and")
    assert on.response == reference.decode(reference.greedy(before, 12)) and on.prompt_eval_count == len(before)


def test_options_are_honoured(client):
    ask = lambda **options: client.generate("base", "Once upon a time", raw=True, options={"temperature": 0, "num_predict": 24, **options})
    whole = ask().response
    assert ask(stop=[" "]).response == whole.split(" ")[0]
    assert ask(num_predict=3).eval_count == 3
    assert ask(repeat_penalty=5.0).response != whole
    assert ask(temperature=1.5, seed=2).response != whole
    assert ask(temperature=1.5, seed=2, top_k=1).response == whole
    # A shorter context leaves no room.
    assert ask(num_ctx=10).eval_count < 10


@pytest.mark.parametrize("seed", range(3))
def test_formats_are_held(client, seed):
    options = {"temperature": 1, "seed": seed, "num_predict": 200}
    content = client.chat("red", CONVERSATIONS[0], format=SCHEMA, options=options).message.content
    jsonschema.validate(json.loads(content), SCHEMA)
    content = client.generate("base", QUESTIONS[0], format=SCHEMA, options=options).response
    jsonschema.validate(json.loads(content), SCHEMA)
    answer = client.generate("base", QUESTIONS[0], format="json", options=options)
    assert answer.response.lstrip().startswith("{")
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.response), dict)


def test_tools_are_printed_and_results_read(client, reference):
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: one
            b: the other
        """
        return a + b

    plain = client.chat("base", CONVERSATIONS[0], options=GREEDY)
    offered = client.chat("base", CONVERSATIONS[0], tools=[add], options=GREEDY)
    assert offered.prompt_eval_count > plain.prompt_eval_count + 20
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]}
    told = [*CONVERSATIONS[0], call, {"role": "tool", "content": "3", "tool_name": "add"}]
    answer = client.chat("base", told, options=GREEDY)
    assert answer.prompt_eval_count == len(reference.chat_ids(told))


def test_without_a_prompt_the_model_is_loaded(client):
    answer = client.generate("blue")
    assert answer.done and answer.done_reason == "load" and answer.response == ""
    assert "blue" in {model.model for model in client.ps().models}


def test_errors_are_ollamas(client):
    for asked in [lambda: client.chat("llama3", CONVERSATIONS[0]), lambda: client.show("llama3"), lambda: client.generate("llama3", "x")]:
        with pytest.raises(ollama.ResponseError) as caught:
            asked()
        assert caught.value.status_code == 404 and "llama3" in caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("base", CONVERSATIONS[0], options={"temperature": -1})
    assert caught.value.status_code == 400 and "options.temperature" in caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("llama3")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed("base", "x")
    assert caught.value.status_code == 404 and "no embeddings" in caught.value.error


def test_a_stream_that_is_left_frees_its_place(client, server):
    stream = client.generate("base", "Once", raw=True, options={"num_predict": 6000, "temperature": 0}, stream=True)
    next(stream)
    stream.close()
    server.wait_until(lambda: server.running() == 0, seconds=5)


def test_the_asynchronous_client_writes_the_same(client, server):
    whole = [client.chat(model, CONVERSATIONS[2], options=GREEDY).message.content for model in ["base", "red", "blue"]]

    async def one(model):
        parts = await ollama.AsyncClient(host=server.url).chat(model, CONVERSATIONS[2], options=GREEDY, stream=True)
        return "".join([part.message.content async for part in parts])

    async def work():
        return await asyncio.gather(*map(one, ["base", "red", "blue"]))

    assert asyncio.run(work()) == whole


def test_a_key_is_sent_as_a_header(locked):
    with pytest.raises(ollama.ResponseError) as caught:
        ollama.Client(host=locked.url).list()
    assert caught.value.status_code == 401 and isinstance(caught.value.error, str)
    known = ollama.Client(host=locked.url, headers={"Authorization": f"Bearer {KEY}"})
    assert known.generate("base", "Hello", options=GREEDY).done
