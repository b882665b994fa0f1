"""openai-python: models, conversations and completions, whole and as streams, held against the reference."""
import math

import openai
import pytest

from questions import CONVERSATIONS, MODELS, QUESTIONS

CLOSE = 2e-3
LONG = {"max_tokens": 24, "extra_body": {"ignore_eos": True}}


def ask(client, content=QUESTIONS[0], model="base", **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **{"temperature": 0, **more})


def test_models_are_listed_and_found(client):
    listed = {model.id: model for model in client.models.list()}
    assert {"base", "red", "blue"} <= listed.keys()
    for model in listed.values():
        assert model.object == "model" and model.owned_by and model.created > 1_700_000_000
    assert client.models.retrieve("red") == listed["red"]
    assert listed["red"].parent == "base" and listed["base"].parent is None


@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_the_references(client, reference, model):
    adapters = MODELS[model]
    for messages in CONVERSATIONS:
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
        prompt = reference.chat_ids(messages)
        expected = reference.greedy(prompt, 12, adapters)
        choice = answer.choices[0]
        assert (choice.message.role, choice.message.content) == ("assistant", reference.decode(expected))
        assert choice.finish_reason == ("length" if len(expected) == 12 else "stop")
        assert answer.usage.prompt_tokens == len(prompt)
        # The token that ended it is counted, as OpenAI and vLLM do.
        assert answer.usage.completion_tokens == len(expected) + (choice.finish_reason == "stop")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == model


def test_adapters_are_scaled_and_summed(client, reference):
    texts = {model: ask(client, model=model, **LONG).choices[0].message.content for model in ["base", "red", "blue"]}
    assert len(set(texts.values())) == 3
    off = ask(client, model="red", max_tokens=24, extra_body={"ignore_eos": True, "adapter_scale": 0})
    assert off.choices[0].message.content == texts["base"]
    both = [{"name": "red", "scale": 0.5}, {"name": "blue", "scale": -0.25}]
    answer = ask(client, max_tokens=8, extra_body={"adapters": both})
    expected = reference.greedy(reference.chat_ids(CONVERSATIONS[0]), 8, (("red", 0.5), ("blue", -0.25)))
    assert answer.choices[0].message.content == reference.decode(expected)


def test_a_streamed_conversation_is_the_whole_one(client):
    for model in ["base", "red"]:
        whole = ask(client, model=model, **LONG)
        chunks = list(ask(client, model=model, stream=True, stream_options={"include_usage": True}, **LONG))
        assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
        assert chunks[0].object == "chat.completion.chunk"
        *told, usage = chunks
        assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens == 24
        assert all(chunk.usage is None for chunk in told)
        assert told[0].choices[0].delta.role == "assistant"
        assert len(told) > 5, "the text came in one piece"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == whole.choices[0].message.content
        assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + ["length"]


def test_a_stream_without_usage_has_none(client):
    chunks = list(ask(client, stream=True, max_tokens=4))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


def test_the_clients_own_gathering_of_a_stream(client):
    whole = ask(client, QUESTIONS[2], max_tokens=24)
    assert whole.choices[0].finish_reason == "stop"
    messages = [{"role": "user", "content": QUESTIONS[2]}]
    with client.chat.completions.stream(model="base", messages=messages, temperature=0, max_tokens=24) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_completions_whole_and_streamed(client, reference):
    prompt = "Once upon a time"
    ids = reference.encode(prompt)
    expected = reference.decode(reference.greedy(ids, 12))
    for given in [prompt, ids]:
        whole = client.completions.create(model="base", prompt=given, temperature=0, max_tokens=12)
        assert (whole.choices[0].text, whole.object) == (expected, "text_completion")
    chunks = list(client.completions.create(
        model="base", prompt=prompt, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
    ))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == len(ids) + 12
    several = client.completions.create(model="base", prompt=[prompt, "The answer is"], temperature=0, max_tokens=12, echo=True)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == prompt + expected and several.choices[1].text.startswith("The answer is")


def test_n_texts_and_seeds(client):
    def texts(seed, n=2, **more):
        answer = ask(client, temperature=1, seed=seed, n=n, **LONG, **more)
        assert [choice.index for choice in answer.choices] == list(range(n))
        assert answer.usage.completion_tokens == 24 * n
        return [choice.message.content for choice in answer.choices]

    first = texts(7)
    assert first[0] != first[1]
    assert texts(7) == first
    assert texts(8) != first
    assert texts(7, n=1) == first[:1]
    # Without a seed it is another text each time.
    assert texts(None) != texts(None)
    same = ask(client, n=2, **LONG)
    assert same.choices[0].message.content == same.choices[1].message.content

    gathered = ["", ""]
    for chunk in ask(client, temperature=1, seed=7, n=2, stream=True, **LONG):
        for choice in chunk.choices:
            gathered[choice.index] += choice.delta.content or ""
    assert gathered == first


def test_stop_strings_end_a_text_and_are_not_in_it(client):
    whole = ask(client, **LONG).choices[0].message.content
    stop = whole[5:8]
    expected = whole[: whole.index(stop)]
    for given in [stop, ["never in it", stop]]:
        choice = ask(client, stop=given, **LONG).choices[0]
        assert (choice.message.content, choice.finish_reason, choice.stop_reason) == (expected, "stop", stop)
    streamed = ask(client, stop=stop, stream=True, **LONG)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected
    text = client.completions.create(model="base", prompt="Once upon a time", temperature=0, max_tokens=20, stop=" ").choices[0]
    assert " " not in text.text and text.finish_reason == "stop"


def test_max_completion_tokens(client):
    answer = ask(client, max_completion_tokens=3, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("model", ["base", "blue"])
def test_log_probabilities_of_a_conversation_are_the_references(client, reference, model):
    adapters, prompt = MODELS[model], reference.chat_ids(CONVERSATIONS[1])
    answer = ask(client, QUESTIONS[1], model, logprobs=True, top_logprobs=5, max_tokens=8, extra_body={"ignore_eos": True})
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    ids = list(prompt)
    for token in content:
        row = reference.logprobs(ids, adapters)[-1]
        best = row.argsort()[::-1][:5]
        assert token.logprob == pytest.approx(row[best[0]], abs=CLOSE)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(row[best].tolist(), abs=CLOSE)
        assert token.token == token.top_logprobs[0].token
        ids.append(int(best[0]))
    written = b"".join(bytes(token.bytes) for token in content)
    assert written.decode() == reference.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=False)


def test_log_probabilities_of_a_stream_are_those_of_the_whole(client):
    more = {"logprobs": True, "top_logprobs": 2, **LONG}
    whole = ask(client, **more).choices[0].logprobs.content
    streamed = []
    for chunk in ask(client, stream=True, **more):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [token.token for token in streamed] == [token.token for token in whole]
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in whole], abs=1e-5)


@pytest.mark.parametrize("model", ["base", "red"])
def test_echoed_prompts_have_the_references_log_probabilities(client, reference, model):
    prompt = "The red house stands by the river."
    ids = reference.encode(prompt)
    choice = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=0, logprobs=3, echo=True).choices[0]
    told = choice.logprobs
    assert choice.text == prompt == "".join(told.tokens) and len(told.tokens) == len(ids)
    assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(len(ids))]
    table = reference.logprobs(ids, MODELS[model])
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    expected = [table[i - 1][ids[i]] for i in range(1, len(ids))]
    assert told.token_logprobs[1:] == pytest.approx(expected, abs=CLOSE)
    for i in range(1, len(ids)):
        likeliest = sorted(table[i - 1])[: -4 : -1]
        assert sorted(told.top_logprobs[i].values())[: -4 : -1] == pytest.approx(likeliest, abs=CLOSE)


def test_a_stop_token_has_its_log_probability(client, reference):
    """Harnesses ask for one token behind an echoed prompt and cut the last entry off: without it they would lose one of the prompt's."""
    prompt = "Please close the window"
    ids = reference.encode(prompt)
    row = reference.logprobs(ids, MODELS["red"])[-1]
    assert int(row.argmax()) in reference.stop_ids
    choice = client.completions.create(model="red", prompt=prompt, temperature=0, max_tokens=1, logprobs=1, echo=True).choices[0]
    assert (choice.text, choice.finish_reason) == (prompt, "stop")
    assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == len(ids) + 1
    assert choice.logprobs.token_logprobs[-1] == pytest.approx(row.max(), abs=CLOSE)


def test_logit_bias_forbids_and_forces(client, reference):
    first = reference.greedy(reference.chat_ids(CONVERSATIONS[0]), 1)[0]
    forbidden = ask(client, max_tokens=1, logit_bias={str(first): -100}).choices[0].message.content
    assert forbidden != reference.decode([first])
    forced = reference.encode(" river")[0]
    answer = ask(client, max_tokens=3, logit_bias={str(forced): 100}).choices[0].message.content
    assert answer == reference.decode([forced] * 3)


@pytest.mark.parametrize("penalties", [{"frequency_penalty": 0.5}, {"presence_penalty": 1.5}, {"frequency_penalty": -1, "presence_penalty": 0.25}])
def test_penalties_are_the_references(client, reference, penalties):
    """Over a text that repeats itself."""
    prompt = "blue, red, blue, red, blue, red,"
    ids = reference.encode(prompt)
    plain = reference.greedy(ids, 16)
    expected = reference.greedy(ids, 16, frequency=penalties.get("frequency_penalty", 0), presence=penalties.get("presence_penalty", 0))
    assert expected != plain
    for ids, more in [(plain, {}), (expected, penalties)]:
        answer = client.completions.create(model="base", prompt=prompt, temperature=0, max_tokens=16, **more)
        assert answer.choices[0].text == reference.decode(ids)


def test_temperature_and_top_p_narrow_the_choice(client):
    greedy = ask(client, **LONG).choices[0].message.content
    for narrow in [{"top_p": 1e-6}, {"temperature": 0.001}]:
        assert ask(client, seed=3, **{"temperature": 1, **narrow}, **LONG).choices[0].message.content == greedy
    one = ask(client, temperature=1, seed=3, max_tokens=24, extra_body={"ignore_eos": True, "top_k": 1})
    assert one.choices[0].message.content == greedy


def test_samples_follow_the_distribution(client, reference):
    """The first token of 128 texts: each of the likeliest comes about as often as it should."""
    ids = reference.encode("The answer is")
    row = reference.logprobs(ids)[-1]
    counts = {}
    for seed in range(8):
        answer = client.completions.create(model="base", prompt=ids, temperature=1, seed=seed, n=16, max_tokens=1, logprobs=0)
        for choice in answer.choices:
            token = choice.logprobs.tokens[0]
            counts[token] = counts.get(token, 0) + 1
    assert sum(counts.values()) == 128
    for token in row.argsort()[::-1][:3]:
        share = math.exp(row[token])
        spread = math.sqrt(128 * share * (1 - share))
        text = reference.tokenizer.decode([int(token)], skip_special_tokens=False)
        assert abs(counts.get(text, 0) - 128 * share) < 4.5 * spread, (text, share, counts)


def test_text_parts_and_developer_messages_are_taken(client):
    parts = [{"type": "text", "text": QUESTIONS[0]}]
    assert ask(client, parts, **LONG).choices[0].message.content == ask(client, **LONG).choices[0].message.content
    told = [{"role": role, "content": "You answer in one sentence."} for role in ["system", "developer"]]
    texts = [
        client.chat.completions.create(
            model="base", messages=[one, {"role": "user", "content": "Hello"}], temperature=0, user="someone", **LONG
        ).choices[0].message.content
        for one in told
    ]
    assert texts[0] == texts[1]
    with pytest.raises(openai.BadRequestError, match="text alone"):
        ask(client, [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])
