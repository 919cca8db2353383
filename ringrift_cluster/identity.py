"""What a node is known by: the id in its data directory, and the secrets in its files."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from ringrift_cluster.members import NODE_ID, SettingsError

NODE_ID_FILE = "node-id"
#: characters of a token or secret; one that was drawn by chance has many more
SHORTEST_SECRET = 16
#: in the data directory: the token that a follower bought (see `badge`)
OWN_TOKEN_FILE = "node-token"  # noqa: S105 - a file name


def stored_id(data_dir: Path) -> str | None:
    """The id that a data directory has from its first start. Raises SettingsError."""
    path = data_dir / NODE_ID_FILE
    try:
        stored = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The identity file {path} cannot be read: {error}.") from error
    if not NODE_ID.match(stored):
        raise SettingsError(f"The identity file {path} holds no node id; write the node's id into it.")
    return stored


def store_id(data_dir: Path, node_id: str) -> None:
    """Give a data directory its id, if it has none. Raises SettingsError."""
    path = data_dir / NODE_ID_FILE
    if path.exists():
        return
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(f"{node_id}\n", encoding="utf-8")
        draft.rename(path)
    except OSError as error:
        raise SettingsError(
            f"The data directory {data_dir} cannot be written ({error.strerror}); give another --data-dir."
        ) from error


def secret_from(path: Path | None, name: str) -> SecretStr | None:
    """What a file with one secret holds. Raises SettingsError that names the setting."""
    if path is None:
        return None
    try:
        text = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{name} {path} cannot be read ({reason}).") from error
    if not text:
        raise SettingsError(f"{name} {path} is empty; write the value into it.")
    if len(text) < SHORTEST_SECRET:
        raise SettingsError(
            f"{name} {path} holds {len(text)} characters, which can be guessed; at least {SHORTEST_SECRET} are needed: "
            f"`openssl rand -hex 24 > {path}`."
        )
    return SecretStr(text)


def has_own_token(data_dir: Path) -> bool:
    """Whether the node has bought a token of its own. Raises SettingsError when it cannot be read."""
    path = data_dir / OWN_TOKEN_FILE
    return path.exists() and secret_from(path, OWN_TOKEN_FILE) is not None


def loose_among(*paths: Path | None) -> list[Path]:
    """Those that somebody besides their owner may read or write."""
    there = [path.expanduser() for path in paths if path is not None and path.expanduser().is_file()]
    return [path for path in there if path.stat().st_mode & 0o077]
