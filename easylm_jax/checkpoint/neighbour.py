"""Files between the hosts of a run: each process serves a folder of its own disk to the others.

Addresses and a secret are exchanged through JAX's coordination service (`runtime.barriers`); requests without the
secret are refused. Plain HTTP, for the hosts of one run are on one private network.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from easylm_jax.checkpoint import parts
from easylm_jax.runtime import barriers

_NAME = re.compile(r"\d{1,12}/\d{1,6}-of-\d{1,6}\.part")
_SECONDS = 60.0  # without a byte
_BLOCK = 1 << 20


class Neighbours:
    """The processes of a run, as one of them reaches their disks. `exchange(name, text)` gives every process's text,
    by its number; all call it in the same order."""

    def __init__(self, index: int, count: int, exchange: Callable[[str, str], list[str]]):
        self.index, self.count, self.exchange = index, count, exchange
        self._server: ThreadingHTTPServer | None = None
        self._addresses: list[tuple[str, int, str]] = []

    def serve(self, folder: Path) -> None:
        """Serves the folder to the other processes, if there are any, and learns where theirs are."""
        if self.count == 1:
            return
        token = secrets.token_hex(16)
        self._server = ThreadingHTTPServer(("", 0), _handler(folder, token))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="neighbours", daemon=True).start()
        own = f"{barriers.own_address()} {self._server.server_address[1]} {token}"
        for text in self.exchange("neighbours", own):
            host, port, secret = text.split()
            self._addresses.append((host, int(port), secret))

    def send(self, path: Path, name: str, to: int) -> None:
        """Copies a file to the disk of another process. Raises `OSError` where that fails."""
        with self._request(to, "PUT", name, path) as response:
            if response.status != 201:
                raise OSError(f"process {to} did not take {name}: {response.reason}")

    def fetch(self, name: str, path: Path, of: int) -> None:
        """Copies a file from the disk of another process. Raises `OSError` where that fails."""
        with self._request(of, "GET", name, None) as response:
            if response.status != 200:
                raise OSError(f"process {of} did not give {name}: {response.reason}")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with open(temporary, "wb") as file:
                shutil.copyfileobj(response, file, _BLOCK)
            temporary.replace(path)

    @contextlib.contextmanager
    def _request(self, process: int, method: str, name: str, body: Path | None):
        host, port, token = self._addresses[process]
        connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
        try:
            with contextlib.ExitStack() as opened:
                file = opened.enter_context(open(body, "rb")) if body else None
                headers = {"Content-Length": str(body.stat().st_size)} if body else {}
                connection.request(method, f"/{token}/{name}", file, headers)
                yield connection.getresponse()
        except http.client.HTTPException as error:
            raise OSError(f"process {process} answers no HTTP: {type(error).__name__}") from error
        finally:
            connection.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def alone() -> Neighbours:
    """The only process of a run."""
    return Neighbours(0, 1, lambda name, text: [text])


def of_this_run() -> Neighbours:
    """The processes of this run, which JAX has connected."""
    import jax

    if jax.process_count() == 1:
        return alone()
    return Neighbours(jax.process_index(), jax.process_count(), barriers.exchange)


def _handler(folder: Path, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a request is no news."""

        def _path(self) -> Path | None:
            begin, _, name = self.path.removeprefix("/").partition("/")
            if not secrets.compare_digest(begin.encode(), token.encode()) or not _NAME.fullmatch(name):
                self.send_error(403)
                return None
            return folder / name

        def do_PUT(self) -> None:
            path = self._path()
            if path is None:
                return
            left = int(self.headers.get("Content-Length", 0))
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file:
                    while left and (data := self.rfile.read(min(left, _BLOCK))):
                        file.write(data)
                        left -= len(data)
                    file.flush()
                    os.fsync(file.fileno())
                if left or not parts.is_whole(temporary):
                    raise OSError("it came cut or changed")
                temporary.replace(path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                self.send_error(507, error.strerror or str(error))
                return
            self.send_response(201)
            self.end_headers()

        def do_GET(self) -> None:
            path = self._path()
            if path is None:
                return
            if not path.is_file():
                self.send_error(404)
                return
            with contextlib.suppress(ConnectionError), open(path, "rb") as file:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(file, self.wfile, _BLOCK)

    return Handler
