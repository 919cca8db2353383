"""Options and arguments that several commands take, what the process exits with, and how it says why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

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
#: variables with a token; with _FILE behind it, with a file that holds one
TOKEN_VARIABLES = ["RINGRIFT_AUTH_TOKEN", "RINGRIFT_CLUSTER_AUTH_TOKEN"]


def _over_the_environment(context: typer.Context, value: Path | None) -> Path | None:
    """A file that is named on the command line wins over a token in the environment, and that over a file there."""
    source = context.get_parameter_source("token_file")
    named = source is not None and source.name == "COMMANDLINE"
    return value if named or not any(map(os.environ.get, TOKEN_VARIABLES)) else None


TokenFile = Annotated[
    Path | None,
    Option(
        "--token-file",
        envvar=[f"{name}_FILE" for name in TOKEN_VARIABLES],
        callback=_over_the_environment,
        help="File with the token to show; else RINGRIFT_AUTH_TOKEN.",
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
        envvar=TOKEN_VARIABLES,
        hidden=True,
        show_envvar=False,
        callback=_not_in_the_open,
    ),
]
Reason = Annotated[str, Option(help="Why, for people.")]
Limit = Annotated[int, Option(help="Rows in one answer.", min=1, max=1000)]
OfConfig = Annotated[str, Option(help="Only this game config.")]
Node = Annotated[str, Argument(help="The node.")]
Item = Annotated[str, Argument(help="The item.")]
Config = Annotated[str, Argument(help="The game config.")]
Params = Annotated[list[str] | None, Option("--param", "-p", help="name=value; may be repeated.")]


def named(text: str, option: str) -> tuple[str, str]:
    """The two halves of `name=value`. Exits with a sentence when it is not that."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise fail(f"{option} {text!r} is not name=value.", EXIT_USAGE)
    return name, value


def fail(sentence: str, code: int) -> typer.Exit:
    """Say one sentence on stderr; raise what comes back."""
    typer.echo(f"ringrift-node: {sentence}", err=True)
    return typer.Exit(code)


def why(error: Exception) -> str:
    """Why a file cannot be read, without the number of the error and the file's name again."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
