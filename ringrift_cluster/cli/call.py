"""A command that talks to a node: what it is given for that, and how it gets its client."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, TypeVar

import typer
from rich.console import RenderableType

from ringrift_cluster.cli.options import (
    DEFAULT_API,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    EXIT_UNKNOWN,
    EXIT_USAGE,
    Api,
    Json,
    Token,
    TokenFile,
    fail,
    why,
)
from ringrift_cluster.cli.output import emit
from ringrift_cluster.client import Client, ClientError, NotFound, OutcomeUnknown, Unavailable, Unreachable
from ringrift_cluster.tls import TlsError

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """Whom a command asks, with which token, and how it answers. The fields are its options on the command line."""

    api: Api = DEFAULT_API
    as_json: Json = False
    token: Token = None
    token_file: TokenFile = None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client for one command; its errors end the command with a sentence and an exit code."""
        api, token = self.api, self.token
        if self.token_file is not None:
            try:
                token = self.token_file.expanduser().read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise fail(f"the token file {self.token_file} cannot be read ({why(error)}).", EXIT_USAGE) from error
        ca = Path(named).expanduser() if (named := os.environ.get("RINGRIFT_TLS_CA")) else None
        if ca is not None:
            api = secured(api)
        try:
            client = Client(api, token=token, ca=ca, retry_s=15.0, contact_s=2.0)
        except TlsError as error:
            raise fail(f"RINGRIFT_TLS_CA: {error}.", EXIT_USAGE) from error
        except ValueError as error:
            raise fail(f"--api: {error}.", EXIT_USAGE) from error
        with client:
            try:
                yield client
            except ClientError as error:
                raise fail(f"{error}{advice(error, api, ca)}", exit_code(error)) from error
            except KeyboardInterrupt:
                raise typer.Exit(130) from None

    def emit(self, value: T, render: Callable[[T], Iterable[RenderableType]]) -> None:
        """Print a value as JSON, or as what `render` makes of it."""
        emit(value, self.as_json, render)


def asks(command: Callable[Concatenate[Call, ...], None]) -> Callable[..., None]:
    """Make a function that is given a `Call` first a command: that one's options come behind its own."""
    shared = inspect.signature(Call, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [*own, *shared.values()]

    @wraps(command)
    def run(**given: Any) -> None:
        command(Call(**{name: given.pop(name) for name in shared}), **given)

    # What Typer reads of a function.
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def advice(error: ClientError, api: str, ca: Path | None) -> str:
    """What to look at on this side of the line, in brackets behind the error; else an empty text."""
    if error.code == "unauthorized":
        return " (--token-file names a file with a token, RINGRIFT_AUTH_TOKEN holds one)"
    if not isinstance(error, Unreachable):
        return ""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f" (is {ca} this cluster's authority?)" if ca else " (RINGRIFT_TLS_CA names the cluster's ca.crt)"
    # A server that speaks TLS hangs up on plain text.
    perhaps = "" if ca or "cannot be reached" in str(error) else "; if it speaks TLS, RINGRIFT_TLS_CA names its ca.crt"
    return f" (is a node running? --api {api}{perhaps})"


def exit_code(error: ClientError) -> int:
    match error:
        case OutcomeUnknown():
            return EXIT_UNKNOWN
        case Unreachable() | Unavailable():
            return EXIT_UNAVAILABLE
        case NotFound():
            return EXIT_NOT_FOUND
    return EXIT_REFUSED


def secured(api: str) -> str:
    """Addresses without a scheme, and the default one, under https."""
    if api == DEFAULT_API:
        return api.replace("http:", "https:")
    return ",".join(one if "://" in one else f"https://{one.strip()}" for one in api.split(",") if one.strip())
