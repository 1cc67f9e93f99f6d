"""The file systems of fsspec that URLs are read with. The only module that knows how they are made."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from shards.errors import DataError

SILENCE_SECONDS = 30.0
"""After which a server that says nothing is asked anew."""
_CONNECTIONS = 64
_INSTALL = "pip install 'vosforge[s3]' for s3://, gcsfs for gs://, aiohttp for http(s)://"


def system_of(url: str, *, asked_once: bool = False) -> Any:
    """File system of a URL's protocol. asked_once: one that never asks again by itself, for whoever does and counts.

    Raises DataError for a protocol that is not installed.
    """
    return _system(url.partition("://")[0], os.getpid(), asked_once)


@cache
def _system(protocol: str, process: int, asked_once: bool) -> Any:
    """Of this process alone, because connections do not survive a fork."""
    try:
        import fsspec  # noqa: PLC0415  slow, and not needed for local sets

        system = fsspec.filesystem(protocol, skip_instance_cache=True, **_options(protocol, asked_once=asked_once))
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{protocol}://", expected="a protocol that is installed", found=str(error), remedy=_INSTALL
        ) from None
    if asked_once:
        system.retries = 1  # of s3fs
    return system


def forget_systems() -> None:
    """Make file systems anew when they are needed next."""
    _system.cache_clear()


def _options(protocol: str, *, asked_once: bool) -> dict[str, Any]:
    """What a file system is made with: as many connections as reading has threads, and an end to silence."""
    if protocol == "memory":
        return {}
    options: dict[str, Any] = {"use_listings_cache": False}  # listings must be true: other machines write there, too
    if protocol in ("http", "https"):
        import aiohttp  # noqa: PLC0415  comes with the protocol

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": timeout}
    if protocol in ("s3", "s3a"):
        limits: dict[str, Any] = {"connect_timeout": SILENCE_SECONDS, "read_timeout": SILENCE_SECONDS}
        if asked_once:
            limits["retries"] = {"total_max_attempts": 1}
        options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **limits}
    return options
