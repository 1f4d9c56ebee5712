"""Where a chat server is, and the key to it."""

from __future__ import annotations

import os
import re

import httpx

from loralign.errors import ConfigError


def completions_url(url: str) -> str:
    """The address of the server's chat completions, from any beginning of it.

    Raises:
        ConfigError: it is no address, or holds a password, which would end up in files and messages.
    """
    fix = "give an address such as http://localhost:8000/v1"
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is no address: {error}", place="url", fix=fix) from error
    if parsed.userinfo:
        raise ConfigError("the address holds a password", place="url", fix="give a key by an environment variable")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url!r} is no address of a server", place="url", fix=fix)
    path = parsed.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if re.search(r"/v\d+\w*$", path) else "/v1/chat/completions"
    return str(parsed.copy_with(path=path))


def read_key(key: str | None, variable: str | None) -> str | None:
    """The key as given, or from an environment variable.

    Raises:
        ConfigError: both are given, the variable is not set, or the key could not be sent.
    """
    if key is not None and variable is not None:
        raise ConfigError("a key and a variable that holds it", place="api_key", fix="give one of them")
    if variable is not None:
        key = os.environ.get(variable)
        if not key:
            raise ConfigError(
                f"the environment variable {variable} is not set", place="api_key_variable", fix="set it to the key"
            )
    if key is not None and not (key.strip().isascii() and key.strip().isprintable()):
        raise ConfigError("the key has characters that no key has", place="api_key", fix="copy it again")
    return None if key is None else key.strip()
