"""The servers that tests share, and what they are held against."""
import os

# Nothing is looked up: data, tokenizer and task are files. Set before the libraries are read.
for name in ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"]:
    os.environ[name] = "1"
for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST", "OLLAMA_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]:
    os.environ.pop(name, None)

os.environ["TQDM_DISABLE"] = "1"
# Small products are faster on one thread, and the servers need the others.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import openai
import pytest

import models
from questions import QUESTIONS
from reference import Reference
from server import Server

KEY = "a-key-for-the-tests"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return models.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="session")
def start(folder, tmp_path_factory):
    """Starts servers, and asks those that are left at the end to end: each must do so with exit code 0."""
    servers = []

    def start(*flags, **more):
        log = tmp_path_factory.mktemp("server") / "log"
        servers.append(Server(folder, log, *flags, **more))
        return servers[-1]

    yield start
    for server in servers:
        code, log = server.ended()
        assert code == 0, f"exit code {code}; the log ends:\n{server.told()}"
        assert "panicked" not in log and "ERROR" not in log, server.told()
        # What users write stays out of the log.
        assert not any(question in log for question in QUESTIONS)


@pytest.fixture(scope="session")
def server(start, folder):
    """Base, red and blue; green can be loaded; a page of app.example may ask."""
    loading = ["--allow-adapter-loading", f"--adapter-root={folder / 'adapters'}"]
    return start(*loading, "--cors-origin=https://app.example")


@pytest.fixture(scope="session")
def narrow(start):
    """One request at a time, and one that waits."""
    return start("--max-batch=1", "--max-queue=1")


@pytest.fixture(scope="session")
def locked(start, tmp_path_factory):
    """It wants a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# of the tests\n{KEY}\n")
    return start(f"--api-key-file={keys}")


def client_of(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options})


@pytest.fixture(scope="session")
def client(server):
    with client_of(server) as client:
        yield client


