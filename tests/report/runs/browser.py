"""A real headless Chromium, and a socket that hears whatever it asks of any network."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REASON = "no chromium on PATH; install Debian's package chromium to test pages in a real browser"
OWN_HOSTS = ("*.google.com", "*.gvt1.com", "*.googleapis.com")
"""Where the browser asks for its own updates and clocks, whatever page is open; those names lead nowhere."""

DARK = "--blink-settings=preferredColorScheme=0"


@dataclass(frozen=True)
class Visit:
    """What a visit to a page left: the document after its scripts, the console, and what reached the socket."""

    dom: str
    console: list[str]
    heard: list[bytes]

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes of the root element."""
        return _Root(self.dom).found or {}

    @property
    def findings(self) -> dict[str, Any]:
        """What the page's self-test wrote into the document."""
        return json.loads(_Root(self.dom).findings)


class _Root(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, str | None] | None = None
        self.findings = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html" and self.found is None:
            self.found = dict(attrs)
        self._inside = ("id", "findings") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.findings += data


def visit(page: Path, scratch: Path, *flags: str, size: tuple[int, int] = (1200, 900)) -> Visit:
    """Open a file and return what came of it; every host name leads to a socket of ours."""
    with _listener() as (port, heard):
        done = _run(page, scratch, port, size, "--dump-dom", *flags)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, console, heard)


def screenshot(page: Path, scratch: Path, *flags: str, size: tuple[int, int] = (1200, 900)) -> bytes:
    """Return a PNG of the top of a page."""
    output = scratch / "page.png"
    with _listener() as (port, _):
        _run(page, scratch, port, size, f"--screenshot={output}", *flags)
    return output.read_bytes()


def _run(page: Path, scratch: Path, port: int, size: tuple[int, int], *flags: str) -> subprocess.CompletedProcess[str]:
    profile = scratch / "profile"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
        "--disable-extensions", "--disable-domain-reliability", "--no-pings", "--hide-scrollbars",
        f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=6000",
        "--enable-logging=stderr", "--v=0", f"--host-resolver-rules={_rules(port)}", *flags, page.as_uri(),
    ]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=180, check=True)
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def _rules(port: int) -> str:
    """Every name leads to the socket, fonts that a page might load among them, but for the browser's own business."""
    own = [f"MAP {host} ~NOTFOUND" for host in OWN_HOSTS]
    return ", ".join([f"MAP fonts.googleapis.com 127.0.0.1:{port}", *own, f"MAP * 127.0.0.1:{port}"])


@contextmanager
def _listener() -> Iterator[tuple[int, list[bytes]]]:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=_listen, args=(server, heard))
        thread.start()
        try:
            yield port, heard
        finally:
            with socket.create_connection(("127.0.0.1", port)) as last:
                last.sendall(b"end")
            thread.join()


def _listen(server: socket.socket, heard: list[bytes]) -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(5)
            try:
                data = connection.recv(200)
            except OSError:
                data = b"(nothing was said)"
        if data == b"end":
            return
        heard.append(data)


def with_self_test(page: str, script: str) -> str:
    """A copy of a page with one more script at its end, which the copy's policy allows."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    changed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return changed.replace("</body>\n</html>", f"<script>{script}</script></body></html>")
