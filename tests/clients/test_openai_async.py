"""openai-python's asynchronous client: many requests at a time, streams, and going away."""
import asyncio

import openai
import pytest

from questions import CONVERSATIONS, MODELS


def with_client(server, work):
    """Run `work(client)` over a client of its own."""

    async def run():
        options = {"api_key": "none", "max_retries": 0, "timeout": 120}
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", **options) as client:
            return await work(client)

    return asyncio.run(run())


async def written(client, model, messages, **more):
    answer = await client.chat.completions.create(model=model, messages=messages, **{"temperature": 0, "max_tokens": 32, **more})
    return answer.choices[0].message.content


async def streamed(client, model, messages, **more):
    stream = await client.chat.completions.create(
        model=model, messages=messages, stream=True, **{"temperature": 0, "max_tokens": 32, **more}
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_sixteen_at_a_time_write_what_each_writes_alone(client, server):
    """Base and adapters in one batch, half of them streamed."""
    more = {"extra_body": {"ignore_eos": True}}
    asked = [(model, messages) for messages in CONVERSATIONS[:4] for model in MODELS]
    assert len(asked) == 16
    alone = [
        client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=32, **more).choices[0].message.content
        for model, messages in asked
    ]
    assert len(set(alone)) >= 8

    async def work(client):
        ways = [written, streamed] * 8
        return await asyncio.gather(*(way(client, *one, **more) for way, one in zip(ways, asked)))

    assert with_client(server, work) == alone


def test_seeded_texts_do_not_depend_on_who_else_asks(client, server):
    more = {"temperature": 1, "extra_body": {"ignore_eos": True}}
    alone = client.chat.completions.create(
        model="red", messages=CONVERSATIONS[0], seed=11, max_tokens=32, **more
    ).choices[0].message.content

    async def work(client):
        return await asyncio.gather(*(written(client, "red", CONVERSATIONS[0], seed=seed, **more) for seed in range(8, 16)))

    texts = with_client(server, work)
    assert texts[3] == alone and len(set(texts)) == 8


def test_a_stream_that_is_left_frees_its_place(server):
    async def work(client):
        stream = await client.chat.completions.create(
            model="red", messages=CONVERSATIONS[0], stream=True, max_tokens=6000, extra_body={"ignore_eos": True}
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert server.running() == 1
        await stream.close()

    aborted = server.metric("vllm:request_success_total")
    with_client(server, work)
    server.wait_until(lambda: server.running() == 0, seconds=5)
    server.wait_until(lambda: server.metric("vllm:request_success_total") == aborted + 1, seconds=5)


def test_a_task_that_is_cancelled_frees_its_place(server):
    async def work(client):
        task = asyncio.create_task(written(client, "base", CONVERSATIONS[0], max_tokens=6000, extra_body={"ignore_eos": True}))
        while server.running() == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_client(server, work)
    server.wait_until(lambda: server.running() == 0, seconds=5)


def test_tools_over_the_asynchronous_client(server):
    tool = {"type": "function", "function": {"name": "ring", "parameters": {
        "type": "object", "properties": {"times": {"enum": [1, 2, 3]}}, "required": ["times"], "additionalProperties": False,
    }}}

    async def work(client):
        return await client.chat.completions.create(
            model="base", messages=CONVERSATIONS[0], tools=[tool], tool_choice="required", max_tokens=1000
        )

    call = with_client(server, work).choices[0].message.tool_calls[0].function
    assert call.name == "ring" and call.arguments in [f'{{"times":{n}}}' for n in (1, 2, 3)]
