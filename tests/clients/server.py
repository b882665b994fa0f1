"""`taper serve` as a child process: started on a free port, asked to end with SIGTERM."""
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

TAPER = os.environ.get("TAPER", str(Path(__file__).resolve().parents[2] / "target" / "release" / "taper"))


class Server:
    """A running server; `log` is the file with its standard error."""

    def __init__(self, folder, log, *flags, adapters=("red", "blue")):
        named = [f"--adapter={name}={folder / 'adapters' / name}" for name in adapters]
        command = [TAPER, "serve", "--model", str(folder / "base"), *named, "--port=0", "--json", *flags]
        self.log = log
        with open(log, "wb") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
        told = self.process.stdout.readline()
        if not told:
            raise RuntimeError(f"{' '.join(command)}\nended with {self.process.wait()}: {log.read_text()}")
        self.url = json.loads(told)["url"]
        if self.url.startswith("http:"):
            self.wait_until(lambda: httpx.get(f"{self.url}/ready").status_code == 200)

    def wait_until(self, holds, seconds=20):
        """Wait for something that is about to be so."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"did not come true in {seconds} s; the end of the server's log:\n{self.told()}"
            time.sleep(0.02)

    def told(self):
        """The last lines of the log, without those of our own looking at /metrics."""
        lines = [line for line in self.log.read_text().splitlines() if 'path="/metrics"' not in line]
        return "\n".join(lines[-30:])

    def metric(self, name, **headers):
        """A number of /metrics, summed over its labels."""
        text = httpx.get(f"{self.url}/metrics", headers=headers).raise_for_status().text
        found = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        assert found, f"{name} is not in /metrics"
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def running(self):
        return self.metric("vllm:num_requests_running")

    def waiting(self):
        return self.metric("vllm:num_requests_waiting")

    def ask_to_end(self, by=signal.SIGTERM):
        self.process.send_signal(by)

    def ended(self, seconds=40):
        """Ask to end, and give the exit code and what was logged."""
        if self.process.poll() is None:
            self.ask_to_end()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
        return code, self.log.read_text()
