"""Logging set-up: one line an event, key=value, nothing else on standard error.

A call gives `"event=NAME key=%s"` and the values, and never quotes one: that is done here, once for all.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback

#: what a value can be without quotes: ASCII that is seen, without `"` and `=`
BARE = re.compile(r"[!#-<>-~]+")


def field(value: object) -> str:
    """A value as a field has it: as it is, or quoted and escaped like a string of JSON where that is needed.

    An exception that says nothing is told by its class.
    """
    text = str(value)
    if not text and isinstance(value, BaseException):
        text = type(value).__name__
    return text if BARE.fullmatch(text) else json.dumps(text)


class Lines(logging.Formatter):
    """`time level node logger event key=value`; an exception's traceback becomes one more field of the same line."""

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node = field(node_id)

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"time={moment}.{int(record.msecs):03d}Z level={record.levelname.lower()} node={self._node}"
        line = f"{head} logger={field(record.name)} {_event(record)}"
        if record.exc_info and record.exc_info[1] is not None:
            line += f" trace={field(''.join(traceback.format_exception(record.exc_info[1])).strip())}"
        return line


def _event(record: logging.LogRecord) -> str:
    form, values = record.msg, record.args
    if not (isinstance(form, str) and form.startswith("event=") and isinstance(values, tuple)):
        # A library's own sentence.
        return f"event=said text={field(record.getMessage())}"
    # `%d` and `%.1f` take numbers, which need no quotes.
    return form % tuple([value if isinstance(value, int | float) else field(value) for value in values])


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
