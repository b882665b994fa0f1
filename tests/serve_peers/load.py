#!/usr/bin/env python3
"""A storm on a running server: what it must stand for a quarter of an hour at four times what it can do.

    taper serve --model MODEL --port 8080 &
    python3 tests/serve_peers/load.py --url http://127.0.0.1:8080 --pid $! --minutes 15

Needs Python 3.9 and nothing beside it; Linux, for what /proc tells of the server. Exit status 0 when all holds, 1 with a list of what does not.

Before the storm the greedy answers of some prompts are recorded for each --model (all that the server lists, if none is named; they must
not all answer alike, or a mix-up of models would not be seen), each twice, and how many requests a second the server answers is measured
with --clients clients. Then requests arrive at random at --times that rate, whether or not earlier ones have ended:

    normal, stream      must be the recorded answer, whole, with usage; or a refusal
    disconnect          a stream of which two events are read; half a request
    slow_reader         a stream read through a small buffer, some bytes each 50 ms; must be the recorded answer, or cut off
    bad_json, bad_types, unknown_model, unknown_path, wrong_key, huge_body     must be refused with 400, 404, 401, 413
    oversize            max_tokens of 10^9: refused with 400, or begun
    health, models      must be answered with 200

A refusal is 429 or 503, or the status of the kind; its body is OpenAI's ({"error": {"message", "type", ...}} as JSON), and 429 and 503 say
Retry-After. Each second the server's resident memory is read: the mean of the storm's last third may exceed that of its first third by
--memory-growth percent. After the storm the server must come to rest: its open files as many as before (but for a few idle connections),
all recorded answers as they were.

--skip KIND,KIND leaves out kinds that another server does not know (llama.cpp's passes over the model's name: unknown_model).
--lenient counts answers that differ from the recorded ones, refusals without Retry-After and errors of another shape, but does not
fail by them: other servers compute otherwise in a batch than alone. With a key in TAPER_API_KEY, wrong_key is part of the storm.
"""

import argparse
import collections
import http.client
import json
import os
import random
import select
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

# Out of a hundred.
MIX = {"normal": 22, "stream": 26, "disconnect": 14, "slow_reader": 8, "bad_json": 5, "bad_types": 5, "huge_body": 2, "unknown_model": 5,
       "unknown_path": 2, "wrong_key": 4, "oversize": 4, "health": 2, "models": 1}
STATUSES = {"bad_json": {400}, "bad_types": {400, 422}, "huge_body": {400, 413}, "unknown_model": {404}, "unknown_path": {404},
            "wrong_key": {401}, "oversize": {400}}
BUSY = {429, 503}
TOPICS = ("lighthouse", "river", "winter market", "night train", "small garden", "old bridge", "island", "school")
BAD_BODIES = (b"", b"{", b"[]", b"nonsense", b'{"messages": ', b'{"a": "\xff"}', b"[" * 5000)
BAD_FIELDS = ({"prompt": 5}, {"prompt": {"a": 1}}, {"temperature": "hot"}, {"max_tokens": "many"}, {"max_tokens": -5}, {"top_p": [1]},
              {"stop": {"a": 1}}, {"stream": "perhaps"}, {"n": -1})


def main():
    options = arguments()
    storm = Storm(options)
    storm.record()
    storm.measure_capacity()
    files_before = open_files(options.pid)
    memory = storm.run()
    storm.check_rest(files_before)
    sys.exit(storm.report(memory, files_before))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--model", action="append", default=[], help="may be given more than once")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--times", type=float, default=4, help="how many times the capacity")
    parser.add_argument("--capacity", type=float, help="requests a second [measured]")
    parser.add_argument("--clients", type=int, default=8, help="of the measurement of the capacity")
    parser.add_argument("--prompts", type=int, default=8, help="recorded prompts of each model")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--in-flight", type=int, default=200, help="most requests at once")
    parser.add_argument("--patience", type=float, default=120, help="seconds until a request that is neither answered nor refused is a fault")
    parser.add_argument("--huge-bytes", type=int, default=64 << 20)
    parser.add_argument("--memory-growth", type=float, default=5, help="percent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", default="", help="kinds to leave out, comma-separated")
    parser.add_argument("--lenient", action="store_true")
    options = parser.parse_args()
    options.key = os.environ.get("TAPER_API_KEY")
    skipped = set(filter(None, options.skip.split(",")))
    if unknown := skipped - MIX.keys():
        parser.error(f"--skip: no kind is named {', '.join(sorted(unknown))}; there are {', '.join(MIX)}")
    if not options.key:
        skipped.add("wrong_key")
    options.mix = {kind: share for kind, share in MIX.items() if kind not in skipped}
    return options


class Fault(Exception):
    """Something that the server must not do."""


class Storm:
    def __init__(self, options):
        self.options = options
        address = urlsplit(options.url)
        self.host, self.port = address.hostname, address.port or 80
        self.recorded = {}
        self.lock = threading.Lock()
        self.outcomes = collections.defaultdict(collections.Counter)
        self.faults, self.tolerated = [], collections.Counter()
        self.late = self.unsent = 0
        self.models = options.model or self.listed_models()

    # ---- before

    def listed_models(self):
        status, _, body = self.ask("GET", "/v1/models")
        if status != 200:
            sys.exit(f"error: /v1/models says {status}; is {self.options.url} the server, TAPER_API_KEY its key?")
        return [model["id"] for model in json.loads(body)["data"]]

    def record(self):
        for model in self.models:
            for number in range(self.options.prompts):
                answers = [self.whole_answer(model, number) for _ in range(2)]
                if answers[0] != answers[1]:
                    self.different(f"asked twice alone, {model} answers prompt {number} differently")
                self.recorded[model, number] = answers[0]
        of_models = {tuple(self.recorded[model, number] for number in range(self.options.prompts)) for model in self.models}
        if len(of_models) < len(self.models):
            sys.exit("error: some models answer alike: a mix-up would not be seen; name others with --model")
        print(f"recorded {len(self.recorded)} answers of {len(self.models)} models")

    def measure_capacity(self):
        if self.options.capacity is None:
            end = time.monotonic() + 15
            counts = [0] * self.options.clients

            def client(number):
                dice = random.Random(number)
                while time.monotonic() < end:
                    self.whole_answer(*dice.choice(list(self.recorded)))
                    counts[number] += 1

            started = time.monotonic()
            threads = [threading.Thread(target=client, args=(number,)) for number in range(self.options.clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.options.capacity = sum(counts) / (time.monotonic() - started)
            if not self.options.capacity:
                sys.exit("error: the server answered nothing in 15 s")
        print(f"capacity {self.options.capacity:.2f} requests/s; the storm is {self.options.capacity * self.options.times:.2f} a second")

    # ---- the storm

    def run(self):
        """Resident MiB each second."""
        options = self.options
        begins = time.monotonic()
        ends = begins + 60 * options.minutes
        arrivals, self.ends = self.arrivals(begins, ends), ends
        threads = [threading.Thread(target=self.client, args=(arrivals,), daemon=True) for _ in range(options.in_flight)]
        for thread in threads:
            thread.start()
        memory = []
        while time.monotonic() < ends:
            memory.append(resident_mib(options.pid))
            time.sleep(1)
        for thread in threads:
            thread.join(2 * options.patience)
        if stuck := sum(thread.is_alive() for thread in threads):
            self.fault(f"{stuck} requests have not ended long after the storm")
        return memory

    def arrivals(self, begins, ends):
        """(when, kind, seed) at random times; taken by the clients in turn."""
        dice = random.Random(self.options.seed)
        kinds, shares = list(self.options.mix), list(self.options.mix.values())
        when = begins
        while True:
            when += dice.expovariate(self.options.capacity * self.options.times)
            if when >= ends:
                return
            yield when, dice.choices(kinds, shares)[0], dice.random()

    def client(self, arrivals):
        while True:
            with self.lock:
                arrival = next(arrivals, None)
            if arrival is None:
                return
            when, kind, seed = arrival
            if time.monotonic() > self.ends:
                self.unsent += 1
                continue
            wait = when - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            elif wait < -1:
                self.late += 1
            try:
                outcome = getattr(self, "do_" + kind)(random.Random(seed))
            except Fault as fault:
                outcome = "fault"
                self.fault(f"{kind}: {fault}")
            except (OSError, http.client.HTTPException) as error:
                outcome = "fault"
                self.fault(f"{kind}: {type(error).__name__}: {error}")
            with self.lock:
                self.outcomes[kind][outcome] += 1

    def do_normal(self, dice):
        model, number = dice.choice(list(self.recorded))
        status, headers, body = self.ask("POST", "/v1/completions", self.body(model, number))
        if status in BUSY:
            return self.check_refusal(status, headers, body, BUSY)
        if status != 200:
            raise Fault(f"status {status}: {body[:200]!r}")
        reply = json.loads(body)
        self.check_usage(reply.get("usage"))
        return self.check_answer(model, number, reply["choices"][0]["text"])

    def do_stream(self, dice):
        model, number = dice.choice(list(self.recorded))
        connection = self.connect()
        try:
            return self.read_stream(connection, model, number)
        finally:
            connection.close()

    def do_slow_reader(self, dice):
        model, number = dice.choice(list(self.recorded))
        connection = self.connect(receive_bytes=2048)
        try:
            return self.read_stream(connection, model, number, pause=0.05)
        except (ConnectionError, http.client.IncompleteRead):
            # A server need not wait for those who do not read.
            return "cut off"
        finally:
            connection.close()

    def do_disconnect(self, dice):
        model, number = dice.choice(list(self.recorded))
        body = json.dumps({**self.body(model, number, stream=True), "max_tokens": 512}).encode()
        connection = self.connect()
        try:
            if dice.random() < 0.3:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                connection.sock.sendall((head + self.key_header() + "\r\n").encode() + body[: len(body) // 2])
                return "half a request"
            connection.request("POST", "/v1/completions", body, self.headers())
            if dice.random() < 0.3:
                return "before the answer"
            reply = connection.getresponse()
            if reply.status != 200:
                return self.check_refusal(reply.status, reply.headers, reply.read(), BUSY)
            for _ in range(4):
                reply.readline()
            return "in the stream"
        finally:
            connection.close()

    def do_bad_json(self, dice):
        return self.must_refuse("bad_json", dice.choice(BAD_BODIES))

    def do_bad_types(self, dice):
        body = {**self.body(*dice.choice(list(self.recorded))), **dice.choice(BAD_FIELDS)}
        return self.must_refuse("bad_types", body)

    def do_unknown_model(self, dice):
        return self.must_refuse("unknown_model", {**self.body(*dice.choice(list(self.recorded))), "model": "../no/such\u0000model"})

    def do_unknown_path(self, _):
        return self.must_refuse("unknown_path", {}, path="/v1/no/such/path")

    def do_wrong_key(self, dice):
        return self.must_refuse("wrong_key", self.body(*dice.choice(list(self.recorded))), key=dice.choice(["wrong", "", "k" * 4000]))

    def do_huge_body(self, dice):
        """A body that is announced, then sent in pieces until the server has said something."""
        size = self.options.huge_bytes
        connection = self.connect()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n"
        start = json.dumps({"model": dice.choice(self.models), "max_tokens": 1}).encode()[:-1] + b', "prompt": "'
        try:
            connection.sock.sendall((head + self.key_header() + "\r\n").encode() + start)
            left, piece = size - len(start) - 2, b"x " * 32768
            try:
                while left > 0:
                    connection.sock.sendall(piece[:left])
                    left -= len(piece)
                    if readable(connection.sock):
                        break
                else:
                    connection.sock.sendall(b'"}')
            except (BrokenPipeError, ConnectionResetError):
                # It may have answered and closed; the answer can then still be read, or is lost with the reset.
                pass
            try:
                reply = http.client.HTTPResponse(connection.sock, method="POST")
                reply.begin()
                body = reply.read()
            except (ConnectionError, http.client.BadStatusLine):
                return "closed"
            return self.check_refusal(reply.status, reply.headers, body, STATUSES["huge_body"] | BUSY)
        finally:
            connection.close()

    def do_oversize(self, dice):
        connection = self.connect()
        try:
            body = {**self.body(*dice.choice(list(self.recorded)), stream=True), "max_tokens": 10**9}
            connection.request("POST", "/v1/completions", json.dumps(body), self.headers())
            reply = connection.getresponse()
            if reply.status != 200:
                return self.check_refusal(reply.status, reply.headers, reply.read(), STATUSES["oversize"] | BUSY)
            reply.readline()
            return "begun"
        finally:
            connection.close()

    def do_health(self, _):
        status, _, body = self.ask("GET", "/health")
        if status != 200:
            raise Fault(f"status {status}: {body[:200]!r}")
        return 200

    def do_models(self, _):
        status, _, body = self.ask("GET", "/v1/models")
        listed = [model["id"] for model in json.loads(body)["data"]] if status == 200 else []
        if not set(self.models) <= set(listed):
            raise Fault(f"status {status}, models {listed}")
        return 200

    # ---- requests

    def body(self, model, number, stream=False):
        prompt = f"Story {number} of the {TOPICS[number % len(TOPICS)]}: once, when"
        body = {"model": model, "prompt": prompt, "max_tokens": self.options.tokens, "temperature": 0, "ignore_eos": True}
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body

    def key_header(self):
        return f"Authorization: Bearer {self.options.key}\r\n" if self.options.key else ""

    def headers(self, key=None):
        key = self.options.key if key is None else key
        return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key is not None else {})}

    def connect(self, receive_bytes=None):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.options.patience)
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(self.options.patience)
        sock.connect((self.host, self.port))
        connection.sock = sock
        return connection

    def ask(self, method, path, body=None, key=None):
        connection = self.connect()
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, sent, self.headers(key))
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            connection.close()

    def whole_answer(self, model, number):
        status, _, body = self.ask("POST", "/v1/completions", self.body(model, number))
        if status != 200:
            sys.exit(f"error: {model} says {status} before the storm: {body[:300]!r}")
        return json.loads(body)["choices"][0]["text"]

    def read_stream(self, connection, model, number, pause=0.0):
        connection.request("POST", "/v1/completions", json.dumps(self.body(model, number, stream=True)), self.headers())
        reply = connection.getresponse()
        if reply.status != 200:
            return self.check_refusal(reply.status, reply.headers, reply.read(), BUSY)
        text, usage, data = "", None, b""
        while True:
            if pause:
                time.sleep(pause)
            line = reply.readline()
            if not line:
                raise http.client.IncompleteRead(data)
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if "error" in event:
                raise Fault(f"error in the stream: {event['error']}")
            text += "".join(choice.get("text") or "" for choice in event["choices"])
            usage = event.get("usage") or usage
        self.check_usage(usage)
        return self.check_answer(model, number, text)

    def must_refuse(self, kind, body, path="/v1/completions", key=None):
        status, headers, body = self.ask("POST", path, body, key)
        return self.check_refusal(status, headers, body, STATUSES[kind] | BUSY)

    # ---- what must hold

    def check_answer(self, model, number, text):
        if text != self.recorded[model, number]:
            self.different(f"{model}, prompt {number}: {text!r}, recorded was {self.recorded[model, number]!r}")
            return "different"
        return "as recorded"

    def check_usage(self, usage):
        if not usage or usage.get("completion_tokens") != self.options.tokens:
            raise Fault(f"usage {usage} for {self.options.tokens} tokens")

    def check_refusal(self, status, headers, body, wanted):
        if status not in wanted:
            raise Fault(f"status {status}, expected {sorted(wanted)}: {body[:200]!r}")
        try:
            error = json.loads(body)["error"]
            proper = isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)
            proper = proper and {"param", "code"} <= error.keys() and headers.get_content_type() == "application/json"
        except (ValueError, KeyError, TypeError):
            proper = False
        if not proper:
            self.tolerable("an error of another shape", f"status {status}, {headers.get_content_type()}: {body[:200]!r}")
        if status in BUSY and not (headers.get("Retry-After") or "").isdigit():
            self.tolerable("no Retry-After", f"status {status} without Retry-After")
        return status

    def check_rest(self, files_before):
        """The server comes to rest, and is what it was."""
        end = time.monotonic() + 60
        while (files := open_files(self.options.pid)) > files_before + 4 and time.monotonic() < end:
            time.sleep(1)
        if files > files_before + 4:
            self.fault(f"{files} open files a minute after the storm, {files_before} before it")
        for (model, number), recorded in self.recorded.items():
            if self.whole_answer(model, number) != recorded:
                self.different(f"after the storm {model} answers prompt {number} differently")

    def different(self, what):
        self.tolerable("a different answer", what)

    def tolerable(self, kind, what):
        if self.options.lenient:
            with self.lock:
                self.tolerated[kind] += 1
        else:
            self.fault(what)

    def fault(self, what):
        with self.lock:
            self.faults.append(what)

    # ---- after

    def report(self, memory, files_before):
        third = max(1, len(memory) // 3)
        first, last = (sum(part) / third for part in (memory[:third], memory[-third:]))
        growth = 100 * (last / first - 1)
        print(f"memory: {first:.1f} MiB in the first third, {last:.1f} MiB in the last ({growth:+.1f} %), peak {max(memory):.1f} MiB")
        print(f"open files: {files_before} before, {open_files(self.options.pid)} after")
        if growth > self.options.memory_growth:
            self.fault(f"memory grew by {growth:.1f} %, {self.options.memory_growth} are allowed")
        total = collections.Counter()
        print("\n| request | how it ended |\n| --- | --- |")
        for kind in self.options.mix:
            total.update(self.outcomes[kind])
            print(f"| {kind} | {', '.join(f'{outcome}: {n}' for outcome, n in sorted(self.outcomes[kind].items(), key=str))} |")
        print(f"\n{sum(total.values())} requests, {self.late} of them sent late, {self.unsent} more never (all --in-flight were busy); {total['as recorded']} answers as recorded")
        if not total["as recorded"]:
            self.fault("no answer was as recorded")
        for kind, number in self.tolerated.items():
            print(f"tolerated: {kind}, {number} times")
        for what, number in collections.Counter(self.faults).most_common(20):
            print(f"fault ({number} times): {what}")
        print(f"{len(self.faults)} faults")
        return 1 if self.faults else 0


def resident_mib(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        sys.exit(f"FAILED: the server (process {pid}) has ended")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def readable(sock):
    return bool(select.select([sock], [], [], 0)[0])


if __name__ == "__main__":
    main()
