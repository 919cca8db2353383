"""Whether this machine is about to be taken away, as its provider says it.

    file      it exists
    command   it exits with 0
    url       it answers 200, and something else than a no

Each is a way to ask; a node may be told of any of them. What cannot be asked says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from pathlib import Path

import httpx

log = logging.getLogger(__name__)

#: what providers want to see with a request for their metadata; none of it is a secret
HEADERS = {"Metadata-Flavor": "Google", "Metadata": "true"}
#: answers of a URL that mean that nothing was said
NO = frozenset({"", "false", "no", "none", "0"})
ANSWER_S = 5.0
MOST_CHARS = 120


class Notice:
    """Belongs to the loop that calls `look`."""

    def __init__(self, file: Path | None = None, command: str = "", url: str = "") -> None:
        self._file = file
        self._command = shlex.split(command)
        self._url = url

    @property
    def watches(self) -> bool:
        return bool(self._file or self._command or self._url)

    async def look(self) -> str:
        """What was said, in one line; empty when nothing was."""
        for ask in (self._by_file, self._by_command, self._by_url):
            if said := await ask():
                return f"its provider takes this machine away: {said}"[: 2 * MOST_CHARS]
        return ""

    async def _by_file(self) -> str:
        if self._file is None:
            return ""
        try:
            text = await asyncio.to_thread(self._file.read_text, errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            log.warning("event=notice_not_read file=%s error=%s", self._file, error)
            return ""
        return _line(text) or str(self._file)

    async def _by_command(self) -> str:
        if not self._command:
            return ""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            log.warning("event=notice_not_asked command=%s error=%s", self._command[0], error)
            return ""
        try:
            async with asyncio.timeout(ANSWER_S):
                said, _ = await process.communicate()
        except TimeoutError:
            log.warning("event=notice_not_asked command=%s error=%s", self._command[0], f"no answer in {ANSWER_S:g} s")
            return ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return (_line(said.decode(errors="replace")) or self._command[0]) if process.returncode == 0 else ""

    async def _by_url(self) -> str:
        if not self._url:
            return ""
        # A client of its own: the node's carries a token, which is for the cluster alone.
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False, headers=HEADERS) as http:
            try:
                answer = await http.get(self._url)
            # A URL is parsed when it is asked; what httpx or its IDNA finds wrong then is no HTTPError.
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                log.info("event=notice_not_asked url=%s error=%s", self._url, error)
                return ""
        said = _line(answer.text)
        return said if answer.status_code == httpx.codes.OK and said.lower() not in NO else ""


def _line(text: str) -> str:
    """The first line, printable and not too long."""
    first = text.strip().partition("\n")[0]
    return "".join(c for c in first if c.isprintable())[:MOST_CHARS]
