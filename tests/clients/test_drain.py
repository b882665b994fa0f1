"""How a server ends: what was taken is answered, what comes is turned away, and the exit code is 0."""
import signal

import httpx
import openai
import pytest

from conftest import client_of
from questions import CONVERSATIONS

ASKED = {"model": "red", "messages": CONVERSATIONS[0], "max_tokens": 800, "extra_body": {"ignore_eos": True}, "temperature": 0}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_end_and_no_more_are_taken(start, by):
    server = start()
    with client_of(server) as client:
        stream = client.chat.completions.create(stream=True, **ASKED)
        chunks = [next(stream) for _ in range(3)]
        server.ask_to_end(by)
        server.wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**ASKED)
        assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    code, log = server.ended()
    assert code == 0 and "every request that was taken has its answer" in log


def test_a_request_that_waits_is_answered_too(start):
    server = start("--max-batch=1")
    with client_of(server) as client:
        first, second = (client.chat.completions.create(stream=True, **{**ASKED, "max_tokens": 200}) for _ in range(2))
        server.wait_until(lambda: server.waiting() == 1)
        server.ask_to_end()
        for stream in [first, second]:
            assert list(stream)[-1].choices[0].finish_reason == "length"
    assert server.ended()[0] == 0


def test_what_takes_longer_than_the_drain_may_is_cut_off(start):
    server = start("--drain-timeout=0.5")
    with client_of(server) as client:
        stream = client.chat.completions.create(stream=True, **{**ASKED, "max_tokens": 8000})
        next(stream)
        server.ask_to_end()
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass
    code, log = server.ended(10)
    assert code == 0 and "1 requests were cut off" in log
