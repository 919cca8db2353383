"""Nodes that hold a file, well or badly."""

from __future__ import annotations

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = os.urandom(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


class Holder:
    """A node that serves one file, wrongly when it is told to."""

    def __init__(
        self, data: bytes = DATA, status: int = 0, break_after: int = 0, ignore_range: bool = False, grow: int = 0
    ) -> None:
        self.ranges: list[str | None] = []
        holder = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                holder.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not ignore_range else 0
                body = data[start:] + bytes(grow)
                self.send_response(status or (206 if start else 200))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:break_after] if break_after else body)
                if break_after:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
