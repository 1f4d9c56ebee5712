from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from loralign.errors import ConfigError, ServerError
from loralign.evaluation.responders import ServerResponder
from loralign.evaluation.responders.server_reply import Fault, read_reply
from tests.evaluation.chat_server import CUT, DROP, HANG, ChatServer, Reply, chat_server, completion, fault

PROMPTS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with chat_server() as chat:
        yield chat


def responder(server: ChatServer, **options: Any) -> ServerResponder:
    return ServerResponder(server.url, "small", **{"show_progress": False, "backoff": 0.0, **options})


def answers(asked: ServerResponder, prompts: list[Any]) -> dict[int, str]:
    kept: dict[int, str] = {}
    asked.respond(prompts, kept.__setitem__)
    return kept


def test_every_prompt_gets_its_answer(server: ChatServer) -> None:
    found = answers(responder(server, concurrency=3), PROMPTS)
    assert found == {index: prompt.upper() for index, prompt in enumerate(PROMPTS)}
    assert sorted(server.asked()) == sorted(PROMPTS)
    body, headers, path = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "small",
        "messages": [{"role": "user", "content": body["messages"][0]["content"]}],
        "stream": False,
        "max_tokens": 64,
        "temperature": 0.0,
    }
    assert "Authorization" not in headers


def test_conversations_and_further_fields_are_sent_as_they_are(server: ChatServer) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "half of a pair: \ud83d"}]
    asked = responder(server, max_new_tokens=7, temperature=0.5, options={"chat_template_kwargs": {"x": False}})
    answers(asked, [prompt])
    body = server.requests[0][0]
    assert body["messages"] == prompt
    assert body["max_tokens"] == 7
    assert body["temperature"] == 0.5
    assert body["chat_template_kwargs"] == {"x": False}


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_are_under_way_as_allowed_and_no_more(server: ChatServer, concurrency: int) -> None:
    # The gate opens only once that many requests stand before it.
    server.gate = threading.Barrier(concurrency)
    assert len(answers(responder(server, concurrency=concurrency), PROMPTS)) == 6
    assert server.most_at_once == concurrency


@pytest.mark.parametrize(
    "passing",
    [
        fault(500, "out of memory"),
        fault(503),
        fault(429, '{"error": {"message": "slow down"}}'),
        fault(408),
        fault(200, "{not json"),
        fault(200, "[" * 100_000),
        fault(200, '{"choices": []}'),
        fault(200, '{"choices": [{"message": {"content": 5}}]}'),
        fault(200, "broken", Content_Encoding="gzip"),
        DROP,
        CUT,
    ],
    ids=["500", "503", "429", "408", "json", "deep", "empty", "number", "gzip", "drop", "cut"],
)
def test_faults_that_pass_are_asked_again(server: ChatServer, passing: Reply | str) -> None:
    server.faults["two"] = [passing, passing]
    assert answers(responder(server, retries=2), PROMPTS)[1] == "TWO"
    assert server.asked().count("two") == 3
    server.faults["two"] = [passing, passing, passing]
    with pytest.raises(ServerError, match=r"http://127.0.0.1:\d+/v1/chat/completions: .*, 3 times"):
        answers(responder(server, retries=2), PROMPTS)


def test_a_server_that_hangs_runs_into_the_timeout(server: ChatServer) -> None:
    server.faults["two"] = [HANG]
    assert answers(responder(server, timeout=1.0), PROMPTS)[1] == "TWO"
    server.faults["two"] = [HANG, HANG]
    with pytest.raises(ServerError, match=r"no reply within the timeout, 2 times .raise the timeout"):
        answers(responder(server, timeout=1.0, retries=1), PROMPTS)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (fault(400, '{"error": {"message": "window of 64 tokens"}}'), "says 400: window of 64 tokens .*fits"),
        (fault(400, '{"detail": "pinned to \\u001b[2Jother"}'), r"says 400: pinned to \[2Jother"),
        (fault(401, "no key"), "says 401: no key .give the key"),
        (fault(404, '{"message": "no such model"}'), "says 404: no such model .check the server's address"),
        (fault(499, "x" * 5000), "says 499: x{200}… "),
        (fault(307, "", Location="http://127.0.0.1:1/other"), "another address, http://127.0.0.1:1/other"),
    ],
    ids=["window", "escape", "key", "model", "long", "redirect"],
)
def test_a_refusal_is_final_and_says_why(server: ChatServer, reply: Reply, message: str) -> None:
    server.faults["one"] = [reply]
    with pytest.raises(ServerError, match=message) as caught:
        answers(responder(server), ["one"])
    assert len(server.requests) == 1
    assert str(caught.value).isprintable()


def test_what_was_answered_before_a_fault_is_kept(server: ChatServer) -> None:
    server.faults["four"] = [fault(500)] * 3
    kept: dict[int, str] = {}
    with pytest.raises(ServerError, match="says 500"):
        responder(server, concurrency=1, retries=2).respond(PROMPTS, kept.__setitem__)
    assert kept == {0: "ONE", 1: "TWO", 2: "THREE"}
    assert "five" not in server.asked()


def test_requests_under_way_when_another_fails_are_waited_for(server: ChatServer) -> None:
    server.gate = threading.Barrier(3)
    server.faults["two"] = [fault(400)]
    kept: dict[int, str] = {}
    with pytest.raises(ServerError, match="says 400"):
        responder(server, concurrency=3).respond(PROMPTS[:3], kept.__setitem__)
    assert kept == {0: "ONE", 2: "THREE"}


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        asked = ServerResponder(url, "small", retries=1, backoff=0.0, show_progress=False)
        with pytest.raises(ServerError) as caught:
            answers(asked, PROMPTS)
    assert "no reply" in str(caught.value)
    assert "start the server, or check its address" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_counts_every_attempt_and_lasts_for_life(server: ChatServer) -> None:
    server.faults["two"] = [fault(500)]
    asked = responder(server, budget=5, concurrency=1)
    kept: dict[int, str] = {}
    with pytest.raises(ServerError, match="budget of 5 requests is used up"):
        asked.respond(PROMPTS, kept.__setitem__)
    assert list(kept) == [0, 1, 2, 3]
    assert len(server.requests) == 5
    with pytest.raises(ServerError, match="budget"):
        asked.respond(["one"], kept.__setitem__)
    assert len(server.requests) == 5


def test_the_wait_doubles_and_obeys_the_server(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def pause(self: ServerResponder, seconds: float, stop: asyncio.Event) -> None:
        waits.append(seconds)

    monkeypatch.setattr(ServerResponder, "_pause", pause)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.faults["one"] = [
        *[fault(500)] * 8,
        fault(429, Retry_After="45.5"),
        fault(503, Retry_After=later),
        fault(429, Retry_After="100000"),
        fault(429, Retry_After="soon"),
        fault(429, Retry_After="-5"),
    ]
    answers(responder(server, retries=20, backoff=1.0), ["one"])
    for attempt, wait in enumerate(waits[:8]):
        longest = min(2**attempt, 30)
        assert longest / 2 <= wait <= longest
    assert waits[8] == 45.5
    assert 55 < waits[9] <= 60
    assert waits[10] == 120
    assert all(15 <= wait <= 30 for wait in waits[11:])
    assert len(waits) == 13


def test_a_failed_run_does_not_wait_for_further_attempts(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # An hour is to be waited before "one" is asked again; the refusal of "two", meanwhile, ends that at once.
    pausing, pause = threading.Event(), ServerResponder._pause

    async def watched(self: ServerResponder, seconds: float, stop: asyncio.Event) -> None:
        pausing.set()
        await pause(self, seconds, stop)

    monkeypatch.setattr(ServerResponder, "_pause", watched)
    server.faults = {"one": [fault(503)], "two": [fault(400)]}
    server.delays = {"two": pausing}
    with pytest.raises(ServerError, match="says 400"):
        answers(responder(server, concurrency=2, backoff=1e9), ["one", "two", "three"])
    assert sorted(server.asked()) == ["one", "two"]


def test_a_fault_of_the_keeper_ends_the_run(server: ChatServer) -> None:
    def full(index: int, answer: str) -> None:
        raise ServerError("no space")

    with pytest.raises(ServerError, match="no space"):
        responder(server, concurrency=2).respond(PROMPTS, full)
    assert len(server.requests) < 6


def test_a_silent_model_gives_an_empty_answer(server: ChatServer) -> None:
    server.faults["one"] = [completion(None)]
    server.faults["two"] = [completion(" \n two words\n")]
    assert answers(responder(server), ["one", "two"]) == {0: "", 1: "two words"}


def test_it_works_within_a_running_event_loop(server: ChatServer) -> None:
    async def notebook() -> dict[int, str]:
        return answers(responder(server), PROMPTS[:2])

    assert asyncio.run(notebook()) == {0: "ONE", 1: "TWO"}


def test_no_prompts_ask_nothing(server: ChatServer) -> None:
    assert answers(responder(server), []) == {}
    assert server.requests == []


def test_a_progress_bar_counts_answers(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    answers(responder(server, show_progress=True, description="asking"), PROMPTS)
    shown = capsys.readouterr().err
    assert "asking: 100%" in shown
    assert "6/6" in shown
    assert "answer/s" in shown or "s/answer" in shown


def test_the_key_is_sent_and_told_nobody(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_KEY", " secret-7\n")
    server.faults["one"] = [fault(401, "no")]
    asked = responder(server, api_key_variable="CHAT_KEY")
    with pytest.raises(ServerError) as caught:
        answers(asked, ["one"])
    assert server.requests[0][1]["Authorization"] == "Bearer secret-7"
    assert "secret" not in f"{caught.value}{asked.settings}{asked!r}"
    answers(responder(server, api_key="other"), ["one"])
    assert server.requests[1][1]["Authorization"] == "Bearer other"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"budget": 0}, "budget is 0"),
        ({"backoff": -1.0}, "backoff is -1.0"),
        ({"api_key_variable": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE is not set"),
        ({"api_key": "a\nb"}, "characters that no key has"),
        ({"api_key": "a", "api_key_variable": "B"}, "give one of them"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerResponder("http://localhost:8000", "small", **options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("https://host/api/v1/", "https://host/api/v1/chat/completions"),
        ("https://host/v1beta", "https://host/v1beta/chat/completions"),
        ("https://host/openai", "https://host/openai/v1/chat/completions"),
        (" https://host/v1/chat/completions ", "https://host/v1/chat/completions"),
    ],
)
def test_an_address_may_be_given_in_part(given: str, expected: str) -> None:
    asked = ServerResponder(given, "small")
    assert asked.url == expected
    assert asked.settings["url"] == expected


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://host:port", "http://u:p@host"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        ServerResponder(url, "small")


def test_settings_are_plain_and_tell_what_answers_depend_on() -> None:
    first = ServerResponder("http://localhost", "small", concurrency=2, timeout=5).settings
    assert json.loads(json.dumps(first)) == first
    assert ServerResponder("http://localhost", "small").settings == first
    for change in ({"max_new_tokens": 3}, {"temperature": 1.0}, {"options": {"top_p": 0.5}}):
        assert ServerResponder("http://localhost", "small", **change).settings != first


def test_a_retry_after_date_that_has_passed_asks_for_no_wait() -> None:
    found = read_reply(httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    assert isinstance(found, Fault)
    assert found.wait == 0.0


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "I'm sorry, no."}, "I'm sorry, no."),
        ({"content": None, "refusal": None}, ""),
        ({"content": None}, ""),
        ({"content": "Yes.", "refusal": None}, "Yes."),
    ],
)
def test_a_refusal_that_a_server_states_apart_is_the_answer(message: dict[str, Any], text: str) -> None:
    """Taken for an empty answer it would count as compliance."""
    assert read_reply(httpx.Response(200, json={"choices": [{"message": message}]})) == text
