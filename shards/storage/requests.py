"""Requests to stores and web servers: what may pass is asked again for a while, the rest ends in words that help.

Everything that is read from a URL goes through here. A thread that reads for somebody else can be told to stop waiting
(`stop_waiting_when`) and knows how often it had to ask again (`retries_so_far`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar, cast

from shards.errors import DataError
from shards.storage.systems import SILENCE_SECONDS, system_of

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 120.0
"""After which nothing is asked again. An answer that is under way then is still waited for."""
LEAST_RATE = 100_000
"""Bytes per second that an answer must reach, beside SILENCE_SECONDS for its first byte."""
_FIRST_PAUSE, _LONGEST_PAUSE, _GLANCE = 0.1, 15.0, 0.5
_TOLD_FROM = 4
"""From this failure of one request on, a log says that there is waiting."""
_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "gcsfs"})
_RENEW = (
    "see that the credentials are there and have not expired (AWS_PROFILE, AWS_SESSION_TOKEN, ...), then run this "
    "again; training goes on with --resume"
)
_LATER = "see that the server can be reached, then run this again; training goes on with --resume"
_RANGES = "serve it by a server that answers range requests, such as nginx (python -m http.server cannot)"


class WaitingEndedError(RuntimeError):
    """Nobody wants the answer any more."""


@dataclass(slots=True)
class _Thread:
    """What a thread knows of its waiting."""

    ended: threading.Event = field(default_factory=threading.Event)
    retries: int = 0


_THREAD: ContextVar[_Thread] = ContextVar("waiting")


def stop_waiting_when(ended: threading.Event) -> None:
    """From now on, requests of this thread raise WaitingEndedError soon after `ended` is set."""
    _of_thread().ended = ended


def retries_so_far() -> int:
    """How often this thread asked for something again."""
    return _of_thread().retries


def count_retry() -> None:
    """This thread asks for something again."""
    _of_thread().retries += 1


def pause(seconds: float) -> None:
    """Sleep. Raises WaitingEndedError as soon as this thread is to stop waiting."""
    if _of_thread().ended.wait(seconds):
        raise WaitingEndedError("nobody waits for this answer any more")


def _of_thread() -> _Thread:
    found = _THREAD.get(None)
    if found is None:
        _THREAD.set(found := _Thread())
    return found


def ask(url: str, question: Callable[[Any], Answer]) -> Answer:
    """What `question` finds out from the file system of a URL; asked again as `fetch_ranges` does.

    Raises FileNotFoundError, PermissionError, or ConnectionError for all else.
    """
    return _patiently(url, lambda: question(system_of(url)))


def file_bytes(url: str) -> int:
    """Size of a file; FileNotFoundError if there is none, otherwise as `ask`."""
    if _is_web(url):
        return ask(url, lambda system: _wait_for(_web_size(system, url), system, SILENCE_SECONDS))
    facts = ask(url, lambda system: cast(dict[str, Any], system.info(url)))
    if facts["type"] != "file":
        raise FileNotFoundError(f"{url}: not a file")
    return int(facts["size"])


def fetch_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several (start, number of bytes) of a file, all at the same time; fewer bytes where it ends. Safe in threads.

    What may pass by itself (lost connections, silence, servers that are busy or restarting) is asked for again, after
    pauses that grow or are as long as the server says, for PATIENCE_SECONDS. Raises FileNotFoundError, PermissionError,
    ConnectionError, and DataError for a server that does not know ranges.
    """
    found: dict[tuple[int, int], bytes] = {}

    def fetch_missing() -> None:
        missing = [one for one in dict.fromkeys(ranges) if one not in found]
        answers = _fetch(url, missing)
        found.update((one, data) for one, data in zip(missing, answers, strict=True) if isinstance(data, bytes))
        for failure in answers:
            if isinstance(failure, BaseException):
                raise failure

    _patiently(url, fetch_missing)
    return [found[one] for one in ranges]


def _patiently(url: str, work: Callable[[], Answer]) -> Answer:
    begun, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        try:
            return work()
        except Exception as error:
            seconds, waited = _pause_after(error, attempt), time.monotonic() - begun
            if seconds is None or waited + seconds > PATIENCE_SECONDS:
                raise _in_words(error, url, attempt, waited) from error
            if attempt >= _TOLD_FROM:
                logger.warning("%s: %s; asking again for %.0f s", url, _reason(error), PATIENCE_SECONDS - waited)
        pause(seconds)
        count_retry()


def _pause_after(error: Exception, attempt: int) -> float | None:
    """Seconds until it makes sense to ask again; None if it does not."""
    if isinstance(error, FileNotFoundError | PermissionError | DataError):
        return None
    status, headers = _answer_of(error)
    if status is not None and status not in _PASSING and status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return None
    if status is None and not isinstance(error, OSError) and not _is_of_client(error):
        return None
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 4 ** (attempt - 1))
    # Many processes that failed together should not come back together.
    return max(longest * random.SystemRandom().uniform(0.5, 1.0), _asked_to_wait(headers))


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After, which is a number or a date; 0 without one that can be read."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _answer_of(error: BaseException) -> tuple[int | None, Mapping[str, str]]:
    """Status and headers of the answer that an error tells of; None if there was no answer."""
    # aiohttp's, else gcsfs's; aiohttp warns of its `code`
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    if isinstance(status, int):
        return status, getattr(error, "headers", None) or {}
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)  # of botocore
    facts = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return facts.get("HTTPStatusCode"), facts.get("HTTPHeaders", {})


def _in_words(error: Exception, url: str, attempts: int, seconds: float) -> Exception:
    """The error as people and tools expect it: an OSError that says what to do."""
    if isinstance(error, DataError | WaitingEndedError):
        return error
    status, headers = _answer_of(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url}: not found; bring it back, or give the place where it lies now")
    if isinstance(error, PermissionError) or status in _REFUSALS:
        return PermissionError(f"{url}: the server refuses it ({_reason(error)}); {_RENEW}")
    if status is None and not isinstance(error, OSError) and not _is_of_client(error):
        return error
    tried = f", tried {attempts} times in {seconds:.0f} s" if attempts > 1 else ""
    wait_for = _asked_to_wait(headers)
    tried += f", and it asks to wait for {wait_for:.0f} s" if wait_for > PATIENCE_SECONDS - seconds else ""
    return ConnectionError(f"{url}: cannot be read: {_reason(error)}{tried}; {_LATER}")


def _reason(error: BaseException) -> str:
    status, _ = _answer_of(error)
    # The client names its TLS settings here, even where a URL has none.
    message = str(getattr(error, "message", error)).replace(" ssl:default", "") or type(error).__name__
    return f"{status} {message}" if status and str(status) not in message else message


def _is_of_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _CLIENTS


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _fetch(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | BaseException]:
    """One attempt at each range: its bytes or its error."""
    system = system_of(url, asked_once=True)
    ends = [(start, start + num_bytes) for start, num_bytes in ranges]
    if not getattr(system, "async_impl", False):
        return [system.cat_file(url, start=start, end=end) for start, end in ends]
    one = _web_range if _is_web(url) else _store_range
    seconds = SILENCE_SECONDS + sum(num_bytes for _, num_bytes in ranges) / LEAST_RATE

    async def fetch_all() -> list[bytes | BaseException]:
        return await asyncio.gather(*(one(system, url, start, end) for start, end in ends), return_exceptions=True)

    return _wait_for(fetch_all(), system, seconds)


async def _store_range(system: Any, url: str, start: int, end: int) -> bytes:
    try:
        return cast(bytes, await system._cat_file(url, start=start, end=end))
    except Exception as error:
        if _answer_of(error)[0] == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""  # the file ends before
        raise


async def _web_range(system: Any, url: str, start: int, end: int) -> bytes:
    async with await _web_answer(system, url, start, end) as answer:
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""  # the file ends before
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            raise DataError(
                url,
                expected=f"{end - start} bytes of it, as asked for (status 206)",
                found=f"all of it or something else (status {answer.status})",
                remedy=_RANGES,
            )
        return cast(bytes, await answer.read())


async def _web_size(system: Any, url: str) -> int:
    """By asking for the first byte: servers that refuse HEAD are many, and signed URLs are signed for GET alone."""
    async with await _web_answer(system, url, 0, 1) as answer:
        if answer.status == HTTPStatus.OK:
            size = answer.headers.get("Content-Length", "")
        else:
            await answer.read()  # keeps the connection
            size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal():
            found = f"status {answer.status} without it"
            raise DataError(url, expected="an answer with the file's size", found=found, remedy=_RANGES)
        return int(size)


async def _web_answer(system: Any, url: str, start: int, end: int) -> Any:
    """An answer of status 200, 206 or 416. Raises FileNotFoundError, and what aiohttp raises for other statuses."""
    session = await system.set_session()
    options = dict(system.kwargs)
    # A server that compresses on the fly (nginx: gzip on) would answer with neither ranges nor a size.
    wanted = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    options["headers"] = {**options.get("headers", {}), **wanted}
    answer = await session.get(system.encode_url(url), **options)
    if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        answer.release()
        raise FileNotFoundError(url)
    if answer.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        answer.raise_for_status()  # releases it
    return answer


def _wait_for(answer: Awaitable[Answer], system: Any, seconds: float) -> Answer:
    """The answer of a coroutine in the file system's own thread; TimeoutError after `seconds`, and see `_Thread`."""
    thread, end = _of_thread(), time.monotonic() + seconds
    future = asyncio.run_coroutine_threadsafe(cast(Any, answer), system.loop)
    try:
        while not wait([future], min(_GLANCE, max(0.0, end - time.monotonic()))).done:
            if thread.ended.is_set():
                raise WaitingEndedError("nobody waits for this answer any more")
            if time.monotonic() >= end:
                raise TimeoutError(f"no whole answer within {seconds:.0f} s")
        return cast(Answer, future.result())
    finally:
        future.cancel()  # on an interrupt, too
