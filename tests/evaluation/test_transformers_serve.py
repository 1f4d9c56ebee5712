"""The server engine against a real server: ``transformers serve`` with SmolLM2."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from loralign.errors import ServerError
from loralign.evaluation.responders import LocalResponder, ServerResponder
from loralign.evaluation.responding import collect_responses
from loralign.evaluation.response_store import ResponseStore
from loralign.models import LoadedModel, load_model, weights_location
from tests.evaluation.prompts import Asked

pytestmark = pytest.mark.realmodel

ABSENT = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
PATIENCE = 240.0
PROMPTS = [
    Asked("capital", "What is the capital of France?"),
    Asked("colours", "Name three colours."),
    Asked("bread", "How do I bake bread? Answer in one sentence."),
    Asked("sum", "What is two and two?"),
]


class Served(NamedTuple):
    url: str
    name: str
    loaded: LoadedModel


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if ABSENT:
        pytest.skip(f"transformers serve needs {', '.join(ABSENT)}: pip install transformers[serving]")
    loaded = load_model(dtype="float32")
    name = str(weights_location(loaded.source))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", name]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health", process, log)
        yield Served(url, name, loaded)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end:
            assert process.poll() is None, f"the server ended early:\n{log.read_text()[-4000:]}"
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
    raise AssertionError(f"the server never came up:\n{log.read_text()[-4000:]}")


def test_a_real_server_answers_as_the_model_does_here(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ServerResponder(served.url, served.name, concurrency=2, max_new_tokens=10, show_progress=False)
    local = LocalResponder(served.loaded.model, served.loaded.tokenizer, max_new_tokens=10, show_progress=False)
    answers = []
    for kind in (server, local):
        with ResponseStore(tmp_path / f"{type(kind).__name__}.jsonl", PROMPTS, kind.settings) as store:
            answers.append(collect_responses(kind, store))
    assert answers[0] == answers[1]
    assert "Paris" in answers[0][0]
    assert server.requests == len(PROMPTS)


def test_a_real_server_says_which_model_it_has(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ServerResponder(served.url, "another-model", show_progress=False)
    with pytest.raises(ServerError, match="says 400: Server is pinned to"):
        server.respond(["Hi"], lambda *_: None)
