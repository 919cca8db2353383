"""Logging set-up: one line an event, key=value, nothing else on standard error."""

from __future__ import annotations

import logging
import sys
import time
import traceback


class Lines(logging.Formatter):
    """`time level logger node event=... key=value`; an exception becomes one quoted field of the same line."""

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"{moment}.{int(record.msecs):03d}Z level={record.levelname.lower()} node={self._node_id}"
        message = record.getMessage().replace("\n", " | ")
        line = f"{head} logger={record.name} {message}"
        if record.exc_info and record.exc_info[1] is not None:
            trace = (
                "".join(traceback.format_exception(record.exc_info[1])).strip().replace("\n", " | ").replace('"', "'")
            )
            line += f' trace="{trace}"'
        return line


def configure(node_id: str, level: str) -> None:
    """Send the process's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(node_id))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Request lines would be one an answer; what matters of them is counted in /metrics.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("pysyncobj").setLevel(logging.WARNING)
