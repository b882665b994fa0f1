"""curl: bytes on the wire, connections, who is let in, and what is answered to those who are not."""
import json
import re
import shutil
import socket
import ssl
import subprocess

import openai
import pytest

from conftest import KEY, client_of
from questions import MODELS

CHAT = {"model": "base", "messages": [{"role": "user", "content": "Where is my order?"}], "temperature": 0, "max_tokens": 8}


def curl(*arguments, body=None, **process):
    """The output of curl, which must end well."""
    given = [] if body is None else ["-H", "Content-Type: application/json", "--data-binary", "@-"]
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "60", *given, *arguments]
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    done = subprocess.run(command, input=data, capture_output=True, timeout=90, **process)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return done.stdout


def answer(*arguments, body=None):
    """Status, headers (lower case) and body."""
    head, _, rest = curl("-i", "-H", "Expect:", *arguments, body=body).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return int(first.split()[1]), headers, rest


def error(*arguments, body=None):
    status, _, rest = answer(*arguments, body=body)
    told = json.loads(rest)["error"]
    assert set(told) == {"message", "type", "param", "code"}, told
    return status, told["code"]


def test_probes(server):
    for path, status in [("/health", "ok"), ("/v1/health", "ok"), ("/ping", "ok"), ("/ready", "ready")]:
        assert answer(server.url + path)[::2] == (200, json.dumps({"status": status}, separators=(",", ":")).encode())
    assert json.loads(curl(server.url + "/version"))["version"]
    assert answer("-I", server.url + "/health")[0] == 200


def test_a_stream_is_server_sent_events_to_the_byte(server):
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    status, headers, rest = answer("-N", f"{server.url}/v1/chat/completions", body=asked)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache" and headers["x-request-id"]
    *events, done, end = rest.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = []
    for event in events:
        assert event.startswith("data: ") and "\n" not in event
        chunks.append(json.loads(event.removeprefix("data: ")))
    assert all(list(chunk)[:5] == ["id", "object", "created", "model", "choices"] for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["delta"] == {} and chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    whole = json.loads(curl(f"{server.url}/v1/chat/completions", body={**CHAT, "ignore_eos": True}))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text == whole["choices"][0]["message"]["content"]


def test_ollamas_streams_are_lines_and_the_default(server):
    asked = {"model": "base", "prompt": "Hello", "options": {"num_predict": 4, "temperature": 0}}
    status, headers, rest = answer("-N", f"{server.url}/api/generate", body=asked)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in rest.decode().splitlines()]
    assert lines[-1]["done"] and not any(line["done"] for line in lines[:-1])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", lines[0]["created_at"])


def test_a_connection_is_used_again(server):
    chat, more = f"{server.url}/v1/chat/completions", ["-o", "/dev/null", "-w", "%{http_code} %{num_connects} %{http_version}\n"]
    out = curl(*more, chat, *more, chat, *more, chat, body={**CHAT, "stream": True}).decode().split("\n")
    assert out[:3] == ["200 1 1.1", "200 0 1.1", "200 0 1.1"]
    # A refusal does not cost the connection either.
    out = curl(*more, chat, *more, chat, body={**CHAT, "temperature": 9}).decode().split("\n")
    assert out[:2] == ["400 1 1.1", "400 0 1.1"]


def test_http_1_0_gets_a_body_without_chunks(server):
    for stream in [False, True]:
        asked = {**CHAT, "stream": stream}
        raw = curl("--http1.0", "--raw", "-i", f"{server.url}/v1/chat/completions", body=asked)
        head, _, rest = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200") and b"chunked" not in head.lower()
        assert rest.startswith(b"data: {") if stream else json.loads(rest)["choices"]


def test_a_body_in_chunks_is_taken(server):
    assert json.loads(curl("-H", "Transfer-Encoding: chunked", f"{server.url}/v1/chat/completions", body=CHAT))["choices"]
    assert json.loads(curl("-H", "Expect: 100-continue", f"{server.url}/v1/chat/completions", body=CHAT))["choices"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "base", "messages": ' + b"[" * 100_000, b"\xff\xfe", b'{"model": "b'])
def test_what_is_no_json_object_is_a_bad_request(server, body):
    assert error("-X", "POST", f"{server.url}/v1/chat/completions", body=body) == (400, None)


def test_bodies_that_are_too_large_or_packed_are_refused(server):
    big = json.dumps({**CHAT, "user": "x" * (5 << 20)}).encode()
    assert error(f"{server.url}/v1/chat/completions", body=big) == (413, "request_too_large")
    assert error("-H", "Content-Encoding: gzip", f"{server.url}/v1/chat/completions", body=CHAT) == (415, "unsupported_encoding")


def test_addresses_and_methods_that_do_not_exist(server):
    assert error(f"{server.url}/v1/nothing") == (404, "not_found")
    assert error(f"{server.url}/v1/chat/completions") == (405, "method_not_allowed")
    assert error("--path-as-is", f"{server.url}/v1/models/../../etc/passwd") == (404, "model_not_found")
    status, _, rest = answer(f"{server.url}/api/nothing")
    assert status == 404 and isinstance(json.loads(rest)["error"], str)


def test_only_requests_with_the_key_pass(locked):
    chat, models = f"{locked.url}/v1/chat/completions", f"{locked.url}/v1/models"
    with_key = lambda value: ["-H", f"Authorization: {value}"]
    for wrong in [[], with_key("Bearer wrong-key-wrong"), with_key(f"Basic {KEY}"), with_key(KEY), with_key(f"Bearer {KEY}") * 2]:
        assert error(*wrong, models) == (401, "invalid_api_key")
    assert error(chat, body=CHAT) == (401, "invalid_api_key")
    status, headers, _ = answer(models)
    assert status == 401 and headers["www-authenticate"] == "Bearer"
    for path in ["/metrics", "/api/tags", "/lora-adapters", "/version", "/v1/models/base", "/nothing"]:
        assert answer(locked.url + path)[0] == 401, path
    for path in ["/health", "/ready"]:
        assert answer(locked.url + path)[0] == 200, path
    assert answer(*with_key(f"Bearer {KEY}"), models)[0] == 200


def test_a_foreign_host_is_turned_away(server):
    """DNS rebinding: a page under a foreign name that was made to point here."""
    port = server.url.rsplit(":", 1)[1]
    for host in ["evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"localhost.evil.example:{port}"]:
        assert error("-H", f"Host: {host}", f"{server.url}/v1/models") == (403, "host_not_allowed")
    resolved = ["--resolve", f"rebound.example:{port}:127.0.0.1", f"http://rebound.example:{port}/v1/models"]
    assert error(*resolved) == (403, "host_not_allowed")
    assert answer("-H", "Host:", f"{server.url}/v1/models")[0] == 400
    for host in [f"localhost:{port}", f"127.0.0.1:{port}"]:
        assert answer("-H", f"Host: {host}", f"{server.url}/v1/models")[0] == 200


def test_pages_of_others_are_turned_away_and_listed_ones_are_told_so(server):
    chat = f"{server.url}/v1/chat/completions"
    for origin in ["http://evil.example", "null", "https://app.example.evil.example", "http://app.example"]:
        assert error("-H", f"Origin: {origin}", chat, body=CHAT) == (403, "origin_not_allowed")
        asks = ["-X", "OPTIONS", "-H", f"Origin: {origin}", "-H", "Access-Control-Request-Method: POST"]
        status, headers, _ = answer(*asks, chat)
        assert status == 403 and "access-control-allow-origin" not in headers
    listed = ["-H", "Origin: https://app.example"]
    asks = ["-X", "OPTIONS", "-H", "Access-Control-Request-Method: POST", "-H", "Access-Control-Request-Headers: authorization,content-type"]
    status, headers, rest = answer(*listed, *asks, chat)
    assert status in (200, 204) and rest == b""
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in headers["access-control-allow-methods"] and "authorization" in headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in headers
    status, headers, _ = answer(*listed, chat, body=CHAT)
    assert status == 200 and headers["access-control-allow-origin"] == "https://app.example" and "origin" in headers["vary"].lower()
    # Without an Origin nothing is said of them.
    assert not any(name.startswith("access-control") for name in answer(chat, body=CHAT)[1])


def test_a_preflight_needs_no_key_and_gives_none_away(locked):
    asks = ["-X", "OPTIONS", "-H", "Origin: http://evil.example", "-H", "Access-Control-Request-Method: GET"]
    status, headers, _ = answer(*asks, f"{locked.url}/v1/models")
    assert status == 403 and "access-control-allow-origin" not in headers


def test_adapters_are_loaded_and_unloaded_as_in_vllm(server, reference):
    load, unload, chat = (server.url + path for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"])
    asked = {"model": "green", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}
    assert error(chat, body=asked) == (404, "model_not_found")
    green = {"lora_name": "green", "lora_path": "green"}
    assert curl(load, body=green) == b"Success: LoRA adapter 'green' added successfully."
    ids = reference.encode(asked["prompt"])
    written = json.loads(curl(chat, body=asked))["choices"][0]["text"]
    assert written == reference.decode(reference.greedy(ids, 8, (("green", 1.0),)))
    assert error(load, body=green)[0] == 400
    assert answer(load, body={**green, "load_inplace": True})[0] == 200
    assert error(load, body={"lora_name": "base", "lora_path": "green"})[0] == 400
    assert error(load, body={"lora_name": "other"})[0] == 400
    assert curl(unload, body={"lora_name": "green"}) == b"Success: LoRA adapter 'green' removed successfully."
    assert error(chat, body=asked) == (404, "model_not_found")
    assert error(unload, body={"lora_name": "green"})[0] == 404


@pytest.mark.parametrize("path", ["../base", "..", ".", "/etc", "green/../red", "green/", "%2e%2e", "..\\base", "green\0", "", "a" * 5000, 3])
def test_paths_are_no_adapters(server, folder, path):
    status, _, rest = answer(f"{server.url}/v1/load_lora_adapter", body={"lora_name": "sly", "lora_path": path})
    told = json.loads(rest)["error"]
    assert status == 400 and told["param"] == "lora_path"
    assert str(folder) not in told["message"]
    names = {model["id"] for model in json.loads(curl(f"{server.url}/v1/models"))["data"]}
    assert "sly" not in names and names >= set(MODELS) - {"base:red"}


def test_a_link_out_of_the_root_is_no_adapter(server, folder):
    link = folder / "adapters" / "linked"
    link.symlink_to(folder / "base")
    try:
        assert error(f"{server.url}/v1/load_lora_adapter", body={"lora_name": "sly", "lora_path": "linked"})[0] == 400
    finally:
        link.unlink()


def test_metrics_are_prometheus_text(server):
    curl(f"{server.url}/v1/chat/completions", body={**CHAT, "model": "blue"})
    status, headers, rest = answer(f"{server.url}/metrics")
    assert status == 200 and headers["content-type"].startswith("application/openmetrics-text")
    text = rest.decode()
    assert text.endswith("# EOF\n")
    for name in ["vllm:num_requests_running", "vllm:time_to_first_token_seconds_bucket", "vllm:generation_tokens_total"]:
        assert f"\n{name}" in text, name
    assert 'taper:adapter_requests_total{adapter="blue"}' in text


def test_tokenize_as_in_vllm(server, reference):
    told = json.loads(curl(f"{server.url}/tokenize", body={"model": "base", "prompt": "The red house"}))
    assert told["tokens"] == reference.encode("The red house") and told["count"] == len(told["tokens"])
    told = json.loads(curl(f"{server.url}/tokenize", body={"model": "base", "messages": CHAT["messages"]}))
    assert told["tokens"] == reference.chat_ids(CHAT["messages"])
    told = json.loads(curl(f"{server.url}/detokenize", body={"model": "base", "tokens": reference.encode("The red house")}))
    assert told["prompt"] == "The red house"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", *named]
    subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    server = start(f"--tls-cert={cert}", f"--tls-key={key}")
    assert server.url.startswith("https:")
    trusted = ["--cacert", str(cert)]
    assert answer(*trusted, f"{server.url}/ready")[0] == 200
    whole = json.loads(curl(*trusted, f"{server.url}/v1/chat/completions", body=CHAT))
    with client_of(server, http_client=httpx_client(cert)) as client:
        told = client.chat.completions.create(**CHAT)
    assert told.choices[0].message.content == whole["choices"][0]["message"]["content"]
    plain = server.url.replace("https:", "http:")
    assert subprocess.run(["curl", "-sS", plain], capture_output=True).returncode != 0
    assert subprocess.run(["curl", "-sS", server.url], capture_output=True).returncode == 60, "a certificate of nobody was trusted"


def httpx_client(cert):
    return openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(cert)))


def test_what_is_no_http_is_turned_away_and_harms_nobody(server):
    host, port = server.url.removeprefix("http://").split(":")
    for sent in [b"NONSENSE\r\n\r\n", b"\0" * 64, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                 b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
                 b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: x\r\n" % i for i in range(100)) + b"\r\n"]:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(sent)
            assert re.match(rb"HTTP/1\.1 (400|414|431) ", connection.recv(1000)), sent[:60]
    assert answer(f"{server.url}/health")[0] == 200
