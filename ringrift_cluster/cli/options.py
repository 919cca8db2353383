"""What every command that talks to a node takes, and how it gets its client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ringrift_cluster.client import Client, ClientError, NotFound, OutcomeUnknown, Unavailable, Unreachable
from ringrift_cluster.tls import TlsError

DEFAULT_API = "http://127.0.0.1:8770"

#: the cluster said no
EXIT_REFUSED = 1
#: the command line, the settings or a file is wrong
EXIT_USAGE = 2
#: no node answered, or the cluster cannot do it now
EXIT_UNAVAILABLE = 3
#: it may or may not have taken effect
EXIT_UNKNOWN = 4
#: the named thing is not known
EXIT_NOT_FOUND = 5

EXIT_CODES = (
    "Exit codes: 0 done, 1 refused by the cluster, 2 wrong command line or settings, 3 no node answered or the"
    " cluster cannot now, 4 outcome unknown, 5 not found."
)

Api = Annotated[
    str,
    Option(
        "--api",
        envvar="RINGRIFT_API",
        help="One or more nodes: URLs or host:port, separated by commas; https where RINGRIFT_TLS_CA is set.",
    ),
]
Json = Annotated[bool, Option("--json", help="One JSON value on stdout, for programs.")]
TokenFile = Annotated[
    Path | None,
    Option(
        "--token-file",
        envvar=["RINGRIFT_AUTH_TOKEN_FILE", "RINGRIFT_CLUSTER_AUTH_TOKEN_FILE"],
        help="File with the cluster's auth token; else RINGRIFT_CLUSTER_AUTH_TOKEN.",
    ),
]


def _not_in_the_open(context: typer.Context, value: str | None) -> str | None:
    source = context.get_parameter_source("token")
    if source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter(
            "everybody on this machine sees what stands on a command line; "
            "give --token-file, or set RINGRIFT_AUTH_TOKEN"
        )
    return value


Token = Annotated[
    str | None,
    Option(
        "--token",
        envvar=["RINGRIFT_AUTH_TOKEN", "RINGRIFT_CLUSTER_AUTH_TOKEN"],
        hidden=True,
        show_envvar=False,
        callback=_not_in_the_open,
    ),
]


def fail(sentence: str, code: int) -> typer.Exit:
    """Say one sentence on stderr; raise what comes back."""
    typer.echo(f"ringrift-node: {sentence}", err=True)
    return typer.Exit(code)


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


@contextmanager
def connect(api: str, token: str | None = None, token_file: Path | None = None) -> Iterator[Client]:
    """A client for one command; its errors end the command with a sentence and an exit code."""
    if token is None and token_file is not None:
        try:
            token = token_file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise fail(f"the token file {token_file} cannot be read: {error}.", EXIT_USAGE) from error
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
            hint = f" (is a node running? --api {api})" if isinstance(error, Unreachable) else ""
            raise fail(f"{error}{hint}", exit_code(error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
