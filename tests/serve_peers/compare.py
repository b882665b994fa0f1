#!/usr/bin/env python3
"""taper's server and llama.cpp's over the same GGUF file, in turns, under the same load.

    cargo build --release
    python3 tests/serve_peers/compare.py MODEL.gguf --taper target/release/taper --llama-server BUILD/bin/llama-server

Needs Python 3.9 and nothing beside it, Linux (memory is read from /proc), and an idle machine. The load comes from `taper bench serve`, the
same program for both: a closed loop of 1 and of 8 clients, 128 prompt tokens and 128 new ones for each request, greedy, every prompt
different (so prefix caches help neither). It runs on the same cores as the servers and takes about one percent of them.

What other processes took of the processors meanwhile is measured too. A figure during which they took more than --others of one core is
measured again, up to --tries times, and the least disturbed one is kept; the table tells the most that was taken during what was kept.

In each round each server is started, warmed, measured at every concurrency and ended; the next round takes them in the other order. The
table has the median of the rounds, the ratios are of medians. Before the first round both answer the same prompts: how many answers are
the same is told (llama.cpp rounds activations to 8 bits before it multiplies them with quantised weights, so not all need be).

llama-server runs with `-t THREADS -np CLIENTS -cb --no-webui -c (prompt + new + 64) * CLIENTS`, and with what --llama-args adds; taper with
`serve --model MODEL --host 127.0.0.1 --port PORT`, RAYON_NUM_THREADS=THREADS, and what --taper-args adds. Where --cpus is given, both run
under `taskset -c`.

With --adapters FOLDER (one adapter a folder; `cargo run --example random_adapters` makes some) taper is measured further, alone: as many
clients as before over the base, over 8 adapters in one batch, and over all of them, evenly and skewed; ratios are to the base.

One server can be left out by not naming it. --out FILE keeps every figure as JSON lines.
"""

import argparse
import json
import os
import resource
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "A list of things to take on a long walk:",
    "The difference between a lake and a sea is",
]


def main():
    options = arguments()
    servers = [name for name, path in (("llama", options.llama_server), ("taper", options.taper)) if path]
    if not servers:
        sys.exit("error: name a server: --taper, --llama-server or both")
    generator = options.load_generator or options.taper
    if not generator:
        sys.exit("error: --load-generator names the taper that puts the load on where --taper is not given")
    options.load_generator = generator
    runs = []
    if len(servers) == 2:
        compare_answers(options)
    for round_number in range(options.rounds):
        for name in servers if round_number % 2 == 0 else servers[::-1]:
            runs += measure(options, name, round_number)
    if options.adapters and options.taper:
        runs += measure_adapters(options)
    if options.out:
        Path(options.out).write_text("".join(json.dumps(run) + "\n" for run in runs))
    print_table(options, runs, servers)
    print_adapters(runs)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the GGUF file")
    parser.add_argument("--taper", help="taper's program")
    parser.add_argument("--llama-server", help="llama.cpp's server")
    parser.add_argument("--load-generator", help="the taper that puts the load on [that of --taper]")
    parser.add_argument("--taper-args", default="", help="more flags of `taper serve`")
    parser.add_argument("--llama-args", default="", help="more flags of llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpus", help="for taskset, as 0,1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="1,8", help="comma-separated")
    parser.add_argument("--others", type=float, default=0.05, help="cores that other processes may take")
    parser.add_argument("--tries", type=int, default=3, help="for one figure")
    parser.add_argument("--requests", type=int, default=4, help="measured requests of each client")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--api", default="completions", choices=["completions", "chat"])
    parser.add_argument("--adapters", help="a folder with one adapter a folder, for taper alone")
    parser.add_argument("--out", help="keep every figure here, as JSON lines")
    options = parser.parse_args()
    options.clients = [int(number) for number in options.concurrency.split(",")]
    if min(options.clients + [options.rounds, options.requests, options.threads, options.tries]) < 1:
        parser.error("numbers are 1 or more")
    return options


class Server:
    """A server from its start to its end."""

    def __init__(self, options, name, more=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        clients = max(options.clients)
        if name == "llama":
            context = (options.prompt_tokens + options.tokens + 64) * clients
            command = [options.llama_server, "-m", options.model, "-t", str(options.threads), "-np", str(clients), "-cb",
                       "--no-webui", "-c", str(context), "--host", "127.0.0.1", "--port", str(port)]
            command += shlex.split(options.llama_args)
        else:
            command = [options.taper, "serve", "--model", options.model, "--host", "127.0.0.1", "--port", str(port)]
            command += shlex.split(options.taper_args)
        if options.cpus:
            command = ["taskset", "-c", options.cpus] + command
        self.command = command + list(more)
        self.environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads)}

    def __enter__(self):
        started = time.monotonic()
        self.log = open(os.devnull, "w") if not os.environ.get("SERVER_LOG") else open(os.environ["SERVER_LOG"], "a")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, env=self.environment)
        while not self.is_ready():
            if self.process.poll() is not None:
                sys.exit(f"error: ended with {self.process.returncode} before it was ready (SERVER_LOG=FILE keeps what it said): "
                         + shlex.join(self.command))
            if time.monotonic() - started > 300:
                self.__exit__()
                sys.exit("error: not ready after 300 s: " + shlex.join(self.command))
            time.sleep(0.02)
        self.load_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def is_ready(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def memory_mib(self):
        """Peak of what is resident, and what of it now is no page of a mapped file."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "RssAnon"))}
        return kib["VmHWM"] / 1024, kib["RssAnon"] / 1024


def load(options, server, clients, flags=()):
    """The figures of the least disturbed of some tries; `others` is how many cores other processes took."""
    tries = []
    while len(tries) < options.tries and (not tries or tries[-1]["others"] > options.others):
        tries.append(load_once(options, server, clients, flags))
        if tries[-1]["others"] > options.others:
            print(f"disturbed: other processes took {tries[-1]['others']:.2f} of a core", file=sys.stderr)
    return min(tries, key=lambda figures: figures["others"])


def load_once(options, server, clients, flags):
    command = [options.load_generator, "bench", "serve", "--url", server.url, "--concurrency", str(clients), "--api", options.api,
               "--requests", str(clients * options.requests), "--prompt-tokens", str(options.prompt_tokens),
               "--tokens", str(options.tokens), "--seed", str(clients), "--json", *flags]
    started, others = time.monotonic(), other_seconds(server)
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        sys.exit(f"error: {shlex.join(command)} ended with {ended.returncode}\n{ended.stderr}")
    figures = json.loads(ended.stdout)
    figures["others"] = (other_seconds(server) - others) / (time.monotonic() - started)
    if figures["refused"] or figures["failed"] or figures["short_answers"]:
        sys.exit(f"error: not every request was answered in full: {figures}")
    return figures


def other_seconds(server):
    """Processor time that neither the server nor what this script has run took, since the machine began."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    of_server = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = user + nice + system + irq + softirq + steal - sum(map(int, of_server))
    return busy / ticks - of_children.ru_utime - of_children.ru_stime


def measure(options, name, round_number):
    runs = []
    with Server(options, name) as server:
        for clients in options.clients:
            figures = load(options, server, clients)
            peak, own = server.memory_mib()
            runs.append({"server": name, "round": round_number, "clients": clients, "figures": figures, "peak_mib": peak,
                         "anonymous_mib": own, "load_seconds": server.load_seconds})
            print(f"round {round_number + 1}: {name}, {clients} clients: {figures['output_tokens_per_second']:.1f} tokens/s", file=sys.stderr)
    return runs


def measure_adapters(options):
    """Base, 8 adapters and all of them, in turns within each round, over one server that knows them all."""
    folders = sorted(path for path in Path(options.adapters).iterdir() if (path / "adapter_config.json").is_file())
    if len(folders) < 8:
        sys.exit(f"error: {options.adapters} has {len(folders)} adapters, 8 are needed")
    flags = [flag for path in folders for flag in ("--adapter", f"{path.name}={path}")]
    named = [flag for path in folders for flag in ("--model", path.name)]
    clients = max(options.clients)
    runs = []
    with Server(options, "taper", flags) as server:
        with urllib.request.urlopen(server.url + "/v1/models") as reply:
            base = next(model["id"] for model in json.load(reply)["data"] if not model.get("parent"))
        cases = {"base": ["--model", base], "8 adapters": named[:16], f"{len(folders)} adapters, evenly": named + ["--adapters", "uniform"],
                 f"{len(folders)} adapters, skewed": named + ["--adapters", "skewed"]}
        for round_number in range(options.rounds):
            for case, models in cases.items():
                figures = load(options, server, clients, models)
                peak, own = server.memory_mib()
                runs.append({"server": "taper", "case": case, "round": round_number, "clients": clients, "figures": figures,
                             "peak_mib": peak, "anonymous_mib": own})
    return runs


def answer(server, prompt):
    with urllib.request.urlopen(server.url + "/v1/models") as reply:
        model = json.load(reply)["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)["choices"][0]["text"]


def compare_answers(options):
    answers = []
    for name in ("llama", "taper"):
        with Server(options, name) as server:
            answers.append([answer(server, prompt) for prompt in PROMPTS])
    same = sum(a == b for a, b in zip(*answers))
    print(f"greedy answers of 32 tokens: {same} of {len(PROMPTS)} the same")
    for prompt, a, b in zip(PROMPTS, *answers):
        if a != b:
            common = os.path.commonprefix([a, b])
            print(f"  {prompt!r}: the first {len(common)} characters are the same of {len(a)} (llama) and {len(b)} (taper)")
    print()


def median(runs, *path):
    values = []
    for run in runs:
        for key in path:
            run = run[key]
        values.append(run)
    return statistics.median(values)


def print_table(options, runs, servers):
    print(f"{Path(options.model).name}: {options.threads} threads, {options.prompt_tokens} prompt tokens, {options.tokens} new ones, "
          f"median of {options.rounds} rounds\n")
    print("| clients | server | tokens/s (lowest to highest) | first token, p50 | a token, p50 | peak memory | not mapped | load | others |")
    print("|" + " --- |" * 9)
    for clients in options.clients:
        speeds = {}
        for name in servers:
            chosen = [run for run in runs if run["server"] == name and run["clients"] == clients and "case" not in run]
            each = sorted(run["figures"]["output_tokens_per_second"] for run in chosen)
            speeds[name] = statistics.median(each)
            print(f"| {clients} | {name} | {speeds[name]:.1f} ({each[0]:.1f} to {each[-1]:.1f}) "
                  f"| {median(chosen, 'figures', 'time_to_first_token_ms', 'p50'):.0f} ms "
                  f"| {median(chosen, 'figures', 'time_per_output_token_ms', 'p50'):.2f} ms | {median(chosen, 'peak_mib'):.0f} MiB "
                  f"| {median(chosen, 'anonymous_mib'):.0f} MiB | {median(chosen, 'load_seconds'):.2f} s "
                  f"| {max(run['figures']['others'] for run in chosen):.2f} cores |")
        if len(servers) == 2:
            print(f"| {clients} | taper / llama | {speeds['taper'] / speeds['llama']:.3f} | | | | | | |")


def print_adapters(runs):
    cases = list(dict.fromkeys(run["case"] for run in runs if "case" in run))
    if not cases:
        return
    print("\n| taper, one server | tokens/s | to the base | first token, p50 and p99 | peak memory |\n| --- | --- | --- | --- | --- |")
    base = median([run for run in runs if run.get("case") == "base"], "figures", "output_tokens_per_second")
    for case in cases:
        chosen = [run for run in runs if run.get("case") == case]
        speed = median(chosen, "figures", "output_tokens_per_second")
        first = [median(chosen, "figures", "time_to_first_token_ms", p) for p in ("p50", "p99")]
        print(f"| {case} | {speed:.1f} | {speed / base:.3f} | {first[0]:.0f} and {first[1]:.0f} ms | {median(chosen, 'peak_mib'):.0f} MiB |")


if __name__ == "__main__":
    main()
