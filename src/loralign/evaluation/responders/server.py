"""Answers of a chat server: vLLM, SGLang, ``transformers serve`` or any other that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from tqdm.auto import tqdm

from loralign.errors import ConfigError, ServerError
from loralign.evaluation.answers import Prompt
from loralign.evaluation.responders.blocking import run_coroutine
from loralign.evaluation.responders.protocol import Keep
from loralign.evaluation.responders.server_address import completions_url, read_key
from loralign.evaluation.responders.server_reply import Fault, read_reply, unreachable

_LONGEST_BACKOFF, _LONGEST_WAIT = 30.0, 120.0


class ServerResponder:
    """Asks an OpenAI-compatible chat server, several prompts at a time, and asks again where a fault may pass.

    Timeouts, broken connections, the statuses 408, 429 and 5xx and replies that are no completions may pass; before
    the next attempt it waits ``backoff`` seconds, then twice as long each time up to 30, or as long as the server asks
    for, up to 120. Any other refusal, or too many faults in a row, ends the run with one error, after the requests
    under way have come back and their answers were kept.

    Args:
        url: address of the server, with or without ``/v1`` or ``/v1/chat/completions``.
        model: the name under which the server serves the model.
        concurrency: most requests at a time.
        retries: further attempts for a prompt after the first.
        timeout: seconds for one attempt, from the connection to the last byte.
        max_new_tokens: longest answer.
        temperature: of sampling; 0 takes the most probable token.
        api_key: sent to the server, and kept out of settings and messages.
        api_key_variable: environment variable that holds the key, instead of ``api_key``.
        budget: most requests over the responder's life, further attempts included; ``None`` sets no limit.
        backoff: seconds before the first further attempt.
        options: further fields of each request, such as ``{"chat_template_kwargs": {"enable_thinking": False}}``.
        show_progress: show a progress bar with the rate.
        description: what the progress bar says.

    Raises:
        ConfigError: the address, the key or a limit cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 8,
        retries: int = 4,
        timeout: float = 120.0,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        api_key: str | None = None,
        api_key_variable: str | None = None,
        budget: int | None = None,
        backoff: float = 0.5,
        options: Mapping[str, Any] | None = None,
        show_progress: bool = True,
        description: str = "answering",
    ) -> None:
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("retries", retries, 0),
            ("max_new_tokens", max_new_tokens, 1),
            ("temperature", temperature, 0),
            ("backoff", backoff, 0),
            ("budget", 1 if budget is None else budget, 1),
        ):
            if not least <= value < float("inf"):
                raise ConfigError(f"{name} is {value}", place=name, fix=f"give a number from {least} on")
        if not 0 < timeout < float("inf"):
            raise ConfigError(f"timeout is {timeout}", place="timeout", fix="give a positive number of seconds")
        self.url = completions_url(url)
        self.model = model
        self.concurrency = concurrency
        self.retries = retries
        self.timeout = timeout
        self.backoff = backoff
        self.budget = budget
        self.requests = 0
        self.fields = {"max_tokens": max_new_tokens, "temperature": temperature, **(options or {})}
        self.show_progress = show_progress
        self.description = description
        key = read_key(api_key, api_key_variable)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # Requests that failed together are not to come back together.
        self._jitter = np.random.default_rng(0)

    @property
    def name(self) -> str:
        """What reports call the model."""
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on, as far as it is known here; the key is not in it."""
        return {"engine": "server", "url": self.url, "model": self.model, **self.fields}

    def respond(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """Answer every prompt, in their order but for those that are under way at the same time.

        Args:
            prompts: conversations; a plain text is sent as the user's turn.
            keep: called once for every prompt that was answered.

        Raises:
            ServerError: the server cannot be reached, refuses a request or gives no completions, or the budget is used
                up; what was answered before has been kept.
        """
        run_coroutine(self._respond(prompts, keep))

    async def _respond(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        waiting = iter(enumerate(prompts))
        stop = asyncio.Event()
        faults: list[ServerError] = []
        async with httpx.AsyncClient(headers=self._headers, timeout=self.timeout) as client:
            with tqdm(total=len(prompts), desc=self.description, unit="answer", disable=not self.show_progress) as bar:

                async def work() -> None:
                    for index, prompt in _until(stop, waiting):
                        try:
                            answer = await self._ask(client, prompt, stop)
                        except ServerError as error:
                            faults.append(error)
                            stop.set()
                            return
                        keep(index, answer)
                        bar.update()

                workers = [asyncio.create_task(work()) for _ in range(min(self.concurrency, len(prompts)))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        if faults:
            raise faults[0]

    async def _ask(self, client: httpx.AsyncClient, prompt: Prompt, stop: asyncio.Event) -> str:
        """One answer, in as many attempts as are allowed.

        Raises:
            ServerError: there is none.
        """
        # In ASCII, since what another model wrote may hold half a surrogate pair, which has no place in UTF-8.
        body = json.dumps({"model": self.model, "messages": _messages(prompt), "stream": False, **self.fields})
        attempt = 0
        while True:
            found = await self._attempt(client, body)
            if isinstance(found, str):
                return found
            final = not found.passing or attempt == self.retries
            if not final and not stop.is_set():
                pause = min(self.backoff * 2**attempt, _LONGEST_BACKOFF) * self._jitter.uniform(0.5, 1)
                await self._pause(max(pause, min(found.wait, _LONGEST_WAIT)), stop)
            attempt += 1
            if final or stop.is_set():
                times = f", {attempt} times" if attempt > 1 else ""
                raise ServerError(found.problem + times, place=self.url, fix=found.fix)

    async def _attempt(self, client: httpx.AsyncClient, body: str) -> str | Fault:
        if self.budget is not None and self.requests >= self.budget:
            raise ServerError(
                f"the budget of {self.budget} requests is used up", place=self.url, fix="raise it, or ask less"
            )
        self.requests += 1
        try:
            async with asyncio.timeout(self.timeout):
                return read_reply(await client.post(self.url, content=body))
        except (httpx.RequestError, TimeoutError) as error:
            return unreachable(error)

    async def _pause(self, seconds: float, stop: asyncio.Event) -> None:
        """Wait, but no longer than until the run is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)


def _until(stop: asyncio.Event, waiting: Iterator[tuple[int, Prompt]]) -> Iterator[tuple[int, Prompt]]:
    """What is still waiting, until the run is to stop; a prompt that was not taken stays there."""
    while not stop.is_set():
        taken = next(waiting, None)
        if taken is None:
            return
        yield taken


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
