"""`Range` headers, before a file is served: one plain range is honoured, everything else gets the whole file.

Several ranges in one request are allowed to be ignored (RFC 9110), and a list of them costs the sender a line and
us a thousand small reads.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(rb"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


def admit_range(headers: list[tuple[bytes, bytes]], size_bytes: int) -> bool:
    """Take what is no single plain range out of a request's headers; whether the file has what is left."""
    given = [value for name, value in headers if name == b"range"]
    if not given:
        return True
    plain = _PLAIN.fullmatch(given[0]) if len(given) == 1 else None
    first, last, suffix = plain.groups() if plain else (None, None, None)
    if plain is None or (first and last and int(last) < int(first)):
        headers[:] = [one for one in headers if one[0] != b"range"]
        return True
    return int(first) < size_bytes if first is not None else bool(size_bytes and int(suffix or b"0"))
