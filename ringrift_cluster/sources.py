"""What is said about a node: flags, then the environment, then a TOML file, each value checked alone."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, ByteSize, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from executors import objectstore
from ringrift_cluster.members import NODE_ID, SettingsError
from statemachine.rows import STORE

#: what the log holds of a node's labels (`values.PeerFacts`), less the one that names its object store
LABELS, LABEL_CHARS = 31, 256
#: how the file's content reaches the sources
_FILE = "_file"


class Role(StrEnum):
    AUTO = "auto"
    VOTER = "voter"
    FOLLOWER = "follower"


class Network(StrEnum):
    """Raft timing presets."""

    #: one site: elections after 0.5 to 1 s of silence
    FAST = "fast"
    #: several sites or busy machines: 1.5 to 3 s
    WIDE = "wide"


def _setting(field: str, default: Any, *more: str, **constraints: Any) -> Any:
    """A field under its own name (file, flags) and under its environment names, the newest first."""
    names = AliasChoices(field, f"RINGRIFT_{field.upper()}", *more)
    return Field(default=default, validation_alias=names, **constraints)


class Settings(BaseSettings):
    """What flags, environment and file say about this node, each value checked on its own."""

    model_config = SettingsConfigDict(extra="forbid", populate_by_name=True, env_ignore_empty=True, frozen=True)

    node_id: str | None = _setting("node_id", None)
    cluster: Annotated[tuple[str, ...], NoDecode] = _setting("cluster", (), "RINGRIFT_P2P_VOTERS", "RINGRIFT_P2P_SEEDS")
    role: Role = _setting("role", Role.AUTO)
    port: int | None = _setting("port", None, "RINGRIFT_P2P_PORT", ge=1, le=65535)
    raft_port: int | None = _setting("raft_port", None, "RINGRIFT_RAFT_BIND_PORT", ge=1, le=65535)
    bind: str = _setting("bind", "127.0.0.1", min_length=1)
    advertise: str | None = _setting(
        "advertise", None, "RINGRIFT_ADVERTISE_HOST", "RINGRIFT_P2P_ADVERTISE_HOST", min_length=1
    )
    advertise_port: int | None = _setting("advertise_port", None, ge=1, le=65535)
    data_dir: Path = _setting("data_dir", Path("~/.local/state/ringrift"))
    log_level: str = _setting("log_level", "INFO")
    cpu_slots: int | None = _setting("cpu_slots", None, ge=0, le=1024)
    max_processes: int = _setting("max_processes", 0, ge=0, le=65_536)
    starts_per_s: float = _setting("starts_per_s", 50.0, gt=0.0, le=10_000.0)
    reserve_cpus: int | None = _setting("reserve_cpus", None, ge=0, le=1024)
    notice_file: Path | None = _setting("notice_file", None)
    notice_command: str = _setting("notice_command", "")
    notice_url: str = _setting("notice_url", "")
    notice_every_s: float = _setting("notice_every_s", 5.0, ge=0.5, le=3600.0)
    disk_floor_percent: float = _setting("disk_floor_percent", 10.0, ge=0.0, le=90.0)
    disk_floor_gib: float = _setting("disk_floor_gib", 20.0, ge=0.0, le=1_000_000.0)
    labels: Annotated[tuple[str, ...], NoDecode] = _setting("labels", ())
    store_bytes: ByteSize = _setting("store_bytes", ByteSize(0), ge=0, le=2**60)
    transfer_bytes_per_s: ByteSize = _setting("transfer_bytes_per_s", ByteSize(0), ge=0, le=2**40)
    object_store: str | None = _setting("object_store", None, "RINGRIFT_S3_BUCKET", max_length=100)
    object_store_endpoint: str | None = _setting("object_store_endpoint", None, pattern=r"^https?://[^\s?#@]+$")
    object_store_region: str | None = _setting("object_store_region", None, pattern=r"^[a-z0-9-]{1,64}$")
    object_store_credentials_file: Path | None = _setting("object_store_credentials_file", None)
    auth_token: SecretStr | None = _setting("auth_token", None, "RINGRIFT_CLUSTER_AUTH_TOKEN")
    auth_token_file: Path | None = _setting("auth_token_file", None, "RINGRIFT_CLUSTER_AUTH_TOKEN_FILE")
    join_token: SecretStr | None = _setting("join_token", None)
    join_token_file: Path | None = _setting("join_token_file", None)
    cluster_secret: SecretStr | None = _setting("cluster_secret", None)
    cluster_secret_file: Path | None = _setting("cluster_secret_file", None)
    tls_cert: Path | None = _setting("tls_cert", None)
    tls_key: Path | None = _setting("tls_key", None)
    tls_ca: Path | None = _setting("tls_ca", None)
    tls_transition: bool = _setting("tls_transition", False)
    insecure: bool = _setting("insecure", False)
    network: Network = _setting("network", Network.FAST)
    stop_jobs: bool = _setting("stop_jobs", False)
    exit_with_parent: int = _setting("exit_with_parent", 0, ge=0)
    progress_every_s: float = _setting("progress_every_s", 30.0, ge=0.2, le=3600.0)
    stop_grace_s: float = _setting("stop_grace_s", 10.0, ge=0.0, le=3600.0)
    ssh_key_file: Path | None = _setting("ssh_key_file", None)
    ssh_known_hosts_file: Path | None = _setting("ssh_known_hosts_file", None)
    ssh_jobs: int = _setting("ssh_jobs", 0, ge=0, le=100_000)
    ssh_transfers: int = _setting("ssh_transfers", 4, ge=1, le=256)
    fresh_within_s: float = _setting("fresh_within_s", 5.0, gt=0.0, le=3600.0)
    snapshot_every_entries: int = _setting("snapshot_every_entries", 10_000, ge=100, le=10_000_000)
    fail_on_subscription_failure: bool = _setting("fail_on_subscription_failure", False)

    @field_validator("cluster", "labels", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(p for p in re.split(r"[,\s]+", value) if p) if isinstance(value, str) else value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for label in value:
            if label.startswith(STORE):
                raise ValueError(f"{label!r} is for nodes with an object store; give --object-store")
            if len(label) > LABEL_CHARS:
                raise ValueError(f"{label[:20]!r}... has {len(label)} characters, a label has {LABEL_CHARS} at most")
        if len(value) > LABELS:
            raise ValueError(f"a node has {LABELS} labels at most, these are {len(value)}")
        return value

    @field_validator("object_store")
    @classmethod
    def _object_store(cls, value: str | None) -> str | None:
        if value is not None:
            objectstore.parse(value)
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        level = value.upper()
        if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return level

    @field_validator("node_id")
    @classmethod
    def _node_id(cls, value: str | None) -> str | None:
        if value is not None and not NODE_ID.match(value):
            raise ValueError("must start with a letter or digit and hold only letters, digits and ._:@/+-")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; the file travels among the flags."""
        flags = dict(init_settings())
        file = flags.pop(_FILE, {})
        return (
            InitSettingsSource(settings_cls, init_kwargs=flags),
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=file),
        )


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Read the sources in order. A flag that is None was not given.

    Raises SettingsError naming the source, the key and what is wrong with it.
    """
    path = config or (Path(p) if (p := os.environ.get("RINGRIFT_CONFIG")) else None)
    file: dict[str, Any] = {}
    if path is not None:
        try:
            file = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(
                f"The settings file {path} cannot be read ({error.strerror}); check --config or RINGRIFT_CONFIG."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"The settings file {path} is not valid TOML: {error}.") from error
        for key in file:
            if key not in Settings.model_fields:
                raise SettingsError(
                    f"The settings file {path} has the key {key!r}, which no setting is called;"
                    f" settings are {', '.join(sorted(Settings.model_fields))}."
                )
    try:
        given = {key: value for key, value in flags.items() if value is not None}
        return Settings(**{**given, _FILE: file})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "a setting"
        reason = first["msg"].removeprefix("Value error, ")
        shown = "" if _is_secret(name) else f" {first['input']!r}"
        raise SettingsError(f"{name}{shown} is not usable: {_lower(reason)}.") from error


def _is_secret(name: str) -> bool:
    return "token" in name.lower() or "secret" in name.lower()


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
