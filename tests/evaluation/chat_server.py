"""A chat server on localhost that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]
HANG, DROP, CUT = "hang", "drop", "cut"


def completion(text: str | None) -> Reply:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return 200, json.dumps(body).encode(), {}


def fault(status: int, body: str = "", **headers: str) -> Reply:
    return status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()}


class ChatServer:
    """Answers a prompt with the prompt in capitals, after the faults that are set for it.

    With a ``gate`` it replies once as many requests stand before it, and to a prompt with a delay once that is over.
    ``faults`` holds replies by prompt, used up one a request; those under ``""`` are for any prompt. ``requests`` holds
    what was asked: the body, the headers and the path.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[Reply | str]] = {}
        self.requests: list[tuple[dict[str, Any], dict[str, str], str]] = []
        self.most_at_once = 0
        self.gate: threading.Barrier | None = None
        self.delays: dict[str, threading.Event] = {}
        self.released = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def asked(self) -> list[str]:
        return [body["messages"][-1]["content"] for body, _, _ in self.requests]

    def reply(self, body: dict[str, Any], headers: dict[str, str], path: str) -> Reply | str:
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append((body, headers, path))
            waiting = self.faults.get(prompt) or self.faults.get("") or []
            found: Reply | str = waiting.pop(0) if waiting else completion(prompt.upper())
        if self.gate is not None:
            self.gate.wait(20)
        if prompt in self.delays:
            self.delays[prompt].wait(20)
        with self._lock:
            self._at_once -= 1
        return found


@contextlib.contextmanager
def chat_server() -> Iterator[ChatServer]:
    chat = ChatServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = chat.reply(body, dict(self.headers.items()), self.path)
            if found == HANG:
                chat.released.wait(20)
            if isinstance(found, str) and found != CUT:
                self.close_connection = True
                return
            status, content, headers = completion("cut") if isinstance(found, str) else found
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + (found == CUT)))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = found == CUT

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield chat
    finally:
        chat.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
