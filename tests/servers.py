"""Web servers that tests start on this machine: one of our own that counts and can fail, and nginx where it is."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError


@dataclass(frozen=True)
class Answer:
    """A whole answer of a server."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


TORN, SHORT, DRIP = "torn", "short", "drip"


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges and connections that stay open.

    connections: so far. asked: requests for ranges of tars so far. failures: how to answer the next ranges: with a
    status or an Answer; 0: hang up; TORN: hang up in the middle of the answer; SHORT: half of it, as if that were all;
    DRIP: a byte now and then; negative: say nothing for so many seconds. ranges: False to answer with the whole file,
    as Python's own server does. moved: URL path -> where the server sends whoever asks for it.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.connections, self.asked = 0, 0
        self.failures: list[float | str | Answer] = []
        self.moved: dict[str, str] = {}
        self.ranges = True
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def setup(self) -> None:
        """A new connection."""
        self.server.connections += 1
        super().setup()

    def do_HEAD(self) -> None:
        """Facts of a file."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """A file or a range of it."""
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.root / self.path.lstrip("/")
        wanted = self.headers.get("Range") if self.server.ranges else None
        self.server.asked += wanted is not None and path.suffix == ".tar"
        failure = self.server.failures.pop(0) if wanted and self.server.failures else None
        if isinstance(failure, int | float) and failure <= 0:
            time.sleep(-failure)
            self.close_connection = True
        elif failure is not None and not isinstance(failure, str):
            answer = failure if isinstance(failure, Answer) else Answer(int(failure))
            self._send(answer.status, answer.body, answer.headers)
        elif self.path in self.server.moved:
            self._send(302, b"", {"Location": self.server.moved[self.path]})
        elif not path.is_file():
            self._send(404, b"", {})
        else:
            self._send_file(path.read_bytes(), wanted, str(failure), with_body=with_body)

    def _send_file(self, data: bytes, wanted: str | None, failure: str, *, with_body: bool) -> None:
        headers, total = {"Accept-Ranges": "bytes"} if self.server.ranges else {}, len(data)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= total:
                self._send(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            data = data[int(first) : int(last or total) + 1]
            data = data[: len(data) // 2] if failure == SHORT else data
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{total}"
        self._send(206 if wanted else 200, data, headers, with_body=with_body and failure not in (TORN, DRIP))
        if failure == TORN:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        if failure == DRIP:
            for place in range(len(data)):
                self.wfile.write(data[place : place + 1])
                self.wfile.flush()
                time.sleep(0.05)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def range_server(root: Path) -> Iterator[RangeServer]:
    """Our own server, in threads of this process."""
    with RangeServer(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def nginx_server(root: Path, scratch: Path, *, directives: str = "") -> Iterator[tuple[str, Path]]:
    """URL of nginx serving a folder, and its log: one line `<connection> <status> <bytes>` for each request.

    directives: more of its own for this server.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = scratch / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # its workers read what this process wrote
    config.write_text(
        f"""{user} daemon off; worker_processes 1; pid {scratch}/pid; error_log {scratch}/errors;
events {{ worker_connections 256; }}
http {{
    log_format short '$connection $status $body_bytes_sent'; access_log {scratch}/log short;
    client_body_temp_path {scratch}/b; proxy_temp_path {scratch}/p; fastcgi_temp_path {scratch}/f;
    uwsgi_temp_path {scratch}/u; scgi_temp_path {scratch}/s;
    server {{ listen 127.0.0.1:{port}; root {root}; {directives} }}
}}
""",
        encoding="utf-8",
    )
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert program is not None
    process = subprocess.Popen([program, "-e", f"{scratch}/errors", "-p", str(scratch), "-c", str(config)])
    try:
        _wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}", scratch / "log"
    finally:
        process.terminate()
        process.wait(20)


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") is not None


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except URLError as error:
            if hasattr(error, "code"):
                error.close()
                return  # it answers, if only with an error
            time.sleep(0.05)
    raise TimeoutError(url)
