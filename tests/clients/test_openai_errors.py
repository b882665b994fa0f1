"""What openai-python raises: each refusal as its own exception, and what it does about it by itself."""
import threading
import time

import httpx
import openai
import pytest

from conftest import KEY, client_of
from questions import CONVERSATIONS

FOREVER = {"max_tokens": 6000, "extra_body": {"ignore_eos": True}}


def ask(client, model="base", **more):
    return client.chat.completions.create(model=model, **{"messages": CONVERSATIONS[0], "max_tokens": 4, **more})


@pytest.mark.parametrize("param, more", [
    ("temperature", {"temperature": 3}),
    ("top_p", {"top_p": 0}),
    ("n", {"n": 0}),
    ("max_tokens", {"max_tokens": -1}),
    ("messages", {"messages": []}),
    ("messages", {"messages": [{"role": "wizard", "content": "x"}]}),
    ("logit_bias", {"logit_bias": {"999999": 1}}),
    ("top_logprobs", {"top_logprobs": 3}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stop", {"stop": [""]}),
    ("functions", {"functions": [{"name": "f", "parameters": {}}]}),
])
def test_a_field_that_cannot_be_is_a_bad_request(client, param, more):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    error = caught.value
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert f"`{param}" in error.body["message"]
    assert error.request_id


def test_a_prompt_that_is_too_long_has_its_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "river " * 9000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, max_tokens=8192)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("model", ["gpt-4o", "base:gpt-4o", "../adapters/red", "RED"])
def test_an_unknown_model_is_not_found_and_never_the_base(client, model):
    for asked in [lambda: ask(client, model), lambda: client.completions.create(model=model, prompt="x")]:
        with pytest.raises(openai.NotFoundError) as caught:
            asked()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)


def test_what_is_not_served_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="no embeddings"):
        client.embeddings.create(model="base", input="x")


def test_keys(locked):
    for key in ["none-of-the-keys", KEY[:-1], KEY + "x"]:
        with client_of(locked, api_key=key) as client, pytest.raises(openai.AuthenticationError) as caught:
            ask(client)
        assert caught.value.code == "invalid_api_key" and key not in str(caught.value)
    with client_of(locked, api_key=KEY) as client:
        assert ask(client).choices[0].message.role == "assistant"


def test_adapters_are_not_loaded_where_that_is_off(narrow):
    with client_of(narrow) as client, pytest.raises(openai.PermissionDeniedError) as caught:
        client.post("/load_lora_adapter", body={"lora_name": "green", "lora_path": "green"}, cast_to=object)
    assert caught.value.code == "adapter_loading_disabled"


def test_a_full_queue_is_a_rate_limit_with_retry_after(narrow):
    with client_of(narrow) as client:
        running = ask(client, stream=True, **FOREVER)
        narrow.wait_until(lambda: narrow.running() == 1)
        waiting = httpx.Client(base_url=narrow.url)
        body = {"model": "red", "messages": CONVERSATIONS[0], "stream": True, "max_tokens": 4}
        with waiting.stream("POST", "/v1/chat/completions", json=body) as second:
            narrow.wait_until(lambda: narrow.waiting() == 1)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(client)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert (caught.value.type, caught.value.code) == ("rate_limit_error", "queue_full")
            running.close()
            # The one that waited is served now.
            assert "data: [DONE]" in second.read().decode()
    narrow.wait_until(lambda: narrow.running() == narrow.waiting() == 0)


def test_the_client_tries_again_by_itself_and_is_served(narrow):
    with client_of(narrow, max_retries=3) as client:
        running, waiting = (ask(client, stream=True, **FOREVER) for _ in range(2))
        narrow.wait_until(lambda: (narrow.running(), narrow.waiting()) == (1, 1))
        turned_away = count_of(narrow, 429)

        def free():
            while count_of(narrow, 429) == turned_away:
                time.sleep(0.02)
            waiting.close()
            running.close()

        thread = threading.Thread(target=free)
        thread.start()
        answer = ask(client)
        thread.join()
        assert answer.usage.completion_tokens >= 1 and count_of(narrow, 429) > turned_away


def count_of(server, status):
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(f'taper:http_responses_total{{status="{status}"}}')]
    return sum(float(line.split()[-1]) for line in lines)


def test_a_client_that_runs_out_of_time_frees_the_place(server):
    with client_of(server, timeout=1.0) as client:
        with pytest.raises(openai.APITimeoutError):
            ask(client, **FOREVER)
    server.wait_until(lambda: server.running() == 0, seconds=5)


def test_a_request_that_takes_too_long_ends(start):
    server = start("--request-timeout=1")
    with client_of(server, max_retries=2) as client:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, **FOREVER)
        # It is told not to try again.
        assert time.monotonic() - began < 3
        assert (caught.value.status_code, caught.value.code) == (504, "request_timeout")
        with pytest.raises(openai.APIError, match="longer than this server allows"):
            for _ in ask(client, stream=True, **FOREVER):
                pass
    server.wait_until(lambda: server.running() == 0, seconds=5)
