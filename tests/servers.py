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
from pathlib import Path
from urllib.error import URLError


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges and connections that stay open.

    connections: so far. asked: requests for ranges so far. failures: statuses to answer the next of these with, 0 to
    hang up, -1 to say nothing for a second. ranges: False to answer with the whole file, as Python's own server does.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.connections, self.asked = 0, 0
        self.failures: list[int] = []
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
        self.server.asked += wanted is not None
        if wanted and self.server.failures:
            status = self.server.failures.pop(0)
            if status <= 0:
                time.sleep(-status)
                self.close_connection = True
                return
            self._send(status, b"", {})
        elif not path.is_file():
            self._send(404, b"", {})
        else:
            data, headers = path.read_bytes(), {"Accept-Ranges": "bytes"} if self.server.ranges else {}
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last or len(data)) + 1]
                headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                data = part
            self._send(206 if wanted else 200, data, headers, with_body=with_body)

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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def nginx_server(root: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """URL of nginx serving a folder, and its log: one line `<connection> <status> <bytes>` for each request."""
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
    server {{ listen 127.0.0.1:{port}; root {root}; }}
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
