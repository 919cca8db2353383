from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ringrift_cluster.members import SettingsError, parse_member
from ringrift_cluster.retired import retired
from ringrift_cluster.settings import NodeConfig, node_config, resolve
from ringrift_cluster.sources import Role, Settings, load

THREE = "n1=127.0.0.1:9001,n2=127.0.0.1:9011,n3=127.0.0.1:9021"
REMOTE = "a=10.0.0.1,b=10.0.0.2,c=10.0.0.3"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("RINGRIFT_"):
            monkeypatch.delenv(name)


def decide(stored_id: str | None = None, hostname: str = "box", environ: Any = None, **flags: Any) -> NodeConfig:
    return resolve(load(flags), stored_id=stored_id, hostname=hostname, fresh_id="box-abc123", environ=environ)


def test_a_node_whose_id_is_listed_is_a_voter_and_takes_its_ports_from_the_list() -> None:
    config = decide(cluster=THREE, node_id="n2")
    assert (config.role, config.port, config.raft_port, config.url) == (
        Role.VOTER,
        9011,
        9012,
        "http://127.0.0.1:9011",
    )
    assert [m.raft_address for m in config.voters] == ["127.0.0.1:9002", "127.0.0.1:9012", "127.0.0.1:9022"]


def test_a_node_whose_address_is_listed_is_a_voter_under_the_listed_id() -> None:
    config = decide(cluster=REMOTE, advertise="10.0.0.2", bind="0.0.0.0", insecure=True, cluster_secret="s")
    assert (config.node_id, config.role, config.port) == ("b", Role.VOTER, 8770)


def test_a_host_that_is_listed_by_name_is_a_voter_without_any_further_flag() -> None:
    config = decide(cluster="a,b,c", hostname="b.example.org", bind="0.0.0.0", insecure=True, cluster_secret="s")
    assert (config.node_id, config.role, config.url) == ("b", Role.VOTER, "http://b:8770")


def test_a_host_that_is_listed_once_needs_no_port() -> None:
    assert decide(cluster="127.0.0.1:19001").port == 19001
    assert decide(cluster=THREE, role="follower").port == 8770


def test_any_other_node_is_a_follower_whose_log_would_listen_beside_its_http() -> None:
    config = decide(cluster=THREE, port=9031)
    assert (config.node_id, config.role, config.raft_port) == ("box-abc123", Role.FOLLOWER, 9032)
    assert config.url == "http://127.0.0.1:9031"


def test_the_stored_identity_is_kept() -> None:
    assert decide(cluster=THREE, stored_id="n3").port == 9021
    assert decide(cluster=THREE, stored_id="gpu-7", port=9031).node_id == "gpu-7"


TLS = {"tls_cert": "c", "tls_key": "k", "tls_ca": "ca"}


def test_with_a_token_and_tls_a_node_listens_on_the_network_without_more_words() -> None:
    voter = decide(cluster=REMOTE, node_id="a", bind="0.0.0.0", auth_token="t", **TLS)
    assert (voter.url, voter.exposure, voter.warnings) == ("https://10.0.0.1:8770", "", ())
    assert {m.url[:8] for m in voter.voters} == {"https://"}
    joining = load({"cluster": REMOTE, "bind": "10.0.0.9", **TLS, "join_token": "j"})
    joined = load({"cluster": REMOTE, "bind": "10.0.0.9", **TLS})
    for settings, has_own in ((joining, False), (joined, True)):
        config = resolve(settings, stored_id=None, hostname="box", fresh_id="box-abc123", joined=has_own)
        assert (config.url, config.exposure) == ("https://10.0.0.9:8770", "")


def test_a_client_of_tls_serves_its_own_machine_in_clear() -> None:
    follower = decide(cluster=REMOTE, tls_ca="ca", port=9000)
    assert follower.url == "http://127.0.0.1:9000"
    assert follower.voters[0].url.startswith("https://")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "everyone who reaches 10.0.0.9 reads and changes everything, and the traffic is in clear"),
        ({"auth_token": "t"}, "the tokens in it included"),
        (TLS, "no token is asked for"),
    ],
)
def test_what_insecure_leaves_open_is_said_in_words(flags: dict[str, Any], said: str) -> None:
    config = decide(cluster=REMOTE, bind="10.0.0.9", insecure=True, **flags)
    assert said in config.exposure
    assert config.exposure in config.warnings


def test_a_secret_that_others_on_the_machine_can_read_is_complained_of(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 16)
    token.chmod(0o640)
    flags = {"cluster": THREE, "node_id": "n1", "data_dir": tmp_path / "data", "auth_token_file": token}
    (said,) = node_config(flags).complaints
    assert said == f"{token} holds a secret and others on this machine can read it; chmod 600 {token}"
    assert said in node_config(flags).warnings
    token.chmod(0o600)
    assert node_config(flags).complaints == ()


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no voters": ({}, "No voters are named"),
    "another identity": ({"cluster": THREE, "node_id": "n1", "stored_id": "n2"}, "belongs to node n2"),
    "voter not listed": ({"cluster": THREE, "role": "voter", "node_id": "x", "port": 1}, "node x is not in --cluster"),
    "follower listed": ({"cluster": THREE, "role": "follower", "node_id": "n1"}, "in --cluster as the voter n1"),
    "listed under another id": ({"cluster": THREE, "node_id": "x", "port": 9001}, "write x=127.0.0.1:9001"),
    "id and address disagree": (
        {"cluster": REMOTE, "node_id": "a", "advertise": "10.0.0.2:8770"},
        "id a is at 10.0.0.1:8770, but --advertise 10.0.0.2:8770 is b",
    ),
    "advertise is not the listed address": (
        {"cluster": REMOTE, "node_id": "a", "advertise": "10.0.0.9"},
        "--advertise says 10.0.0.9:8770",
    ),
    "port is not the listed one": ({"cluster": THREE, "node_id": "n1", "port": 9002}, "--port is 9002"),
    "raft port is not the listed one": ({"cluster": THREE, "node_id": "n1", "raft_port": 7}, "--raft-port is 7"),
    "bound to loopback": ({"cluster": REMOTE, "node_id": "a"}, "give --bind 0.0.0.0"),
    "wildcard without address": ({"cluster": THREE, "bind": "0.0.0.0"}, "give --advertise HOST"),
    "open without saying so": ({"cluster": REMOTE, "bind": "10.0.0.9"}, "--insecure"),
    "open without TLS": ({"cluster": REMOTE, "bind": "10.0.0.9", "auth_token": "t"}, "not encrypted"),
    "open without a token": ({"cluster": REMOTE, "bind": "10.0.0.9", **TLS}, "asks nobody for a token"),
    "open as a client only": (
        {"cluster": REMOTE, "bind": "10.0.0.9", "tls_ca": "ca", "join_token": "j"},
        "not encrypted",
    ),
    "half of TLS": ({"cluster": THREE, "port": 1, "tls_cert": "c"}, "give all three"),
    "a move to TLS without TLS": ({"cluster": THREE, "node_id": "n1", "tls_transition": True}, "with certificates"),
    "a move to TLS in the open": (
        {"cluster": REMOTE, "bind": "10.0.0.9", "auth_token": "t", "tls_transition": True, **TLS},
        "is not encrypted",
    ),
    "a voter without a certificate": ({"cluster": THREE, "node_id": "n1", "tls_ca": "ca"}, "a certificate of its own"),
    "a voter that joins": (
        {"cluster": THREE, "node_id": "n1", "join_token": "j"},
        "A join token makes followers",
    ),
    "open voter without secret": (
        {"cluster": REMOTE, "node_id": "a", "bind": "10.0.0.1", "insecure": True},
        "needs a cluster secret",
    ),
    "advertised wildcard": ({"cluster": THREE, "advertise": "0.0.0.0"}, "Nobody can dial"),
    "advertised port said twice": (
        {"cluster": THREE, "advertise": "h:1", "advertise_port": 2},
        "advertise_port says 2",
    ),
    "several voters on this host": ({"cluster": THREE}, "could be any of n1, n2, n3; give --node-id"),
    "id twice": ({"cluster": "a=h1,a=h2"}, "The id a stands twice"),
    "address twice": ({"cluster": "a=h1,b=h1"}, "The address h1:8770 stands twice"),
    "raft address twice": ({"cluster": "a=h:1/5,b=h:2/5"}, "The Raft address h:5 stands twice"),
    "no address": ({"cluster": "http://a:8770"}, "is no address"),
    "port out of range": ({"cluster": "a:70000"}, "between 1 and 65535"),
    "id missing before =": ({"cluster": "=a:1"}, "not usable"),
    "IPv6 without an id": ({"cluster": "[::1]:8770"}, "write id=host:port"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_one_sentence_that_says_what_to_change(case: str) -> None:
    flags, expected = CONTRADICTIONS[case]
    with pytest.raises(SettingsError) as caught:
        decide(**flags)
    said = str(caught.value)
    assert expected in said
    assert said.endswith(".")
    assert "\n" not in said


WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"port": 99999}, "port 99999 is not usable"),
    ({"log_level": "LOUD"}, "log_level 'LOUD' is not usable: must be DEBUG"),
    ({"role": "king"}, "role 'king' is not usable"),
    ({"node_id": "-x"}, "node_id '-x' is not usable"),
    ({"cpu_slots": -1}, "cpu_slots -1"),
]


@pytest.mark.parametrize(("flags", "expected"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_its_setting(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(expected)):
        load(flags)


def test_flags_win_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('port = 1\nbind = "127.0.0.9"\nlog_level = "ERROR"\ncluster = ["f:1"]\n')
    monkeypatch.setenv("RINGRIFT_P2P_PORT", "2")
    monkeypatch.setenv("RINGRIFT_LOG_LEVEL", "debug")
    monkeypatch.setenv("RINGRIFT_CONFIG", str(file))
    settings = load({"port": 3, "bind": None})
    assert (settings.port, settings.log_level, settings.bind, settings.cluster) == (3, "DEBUG", "127.0.0.9", ("f:1",))


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("RINGRIFT_NODE_ID", "n9", "node_id", "n9"),
        ("RINGRIFT_P2P_PORT", "9999", "port", 9999),
        ("RINGRIFT_P2P_SEEDS", "a:1, b:2", "cluster", ("a:1", "b:2")),
        ("RINGRIFT_P2P_VOTERS", "a:1", "cluster", ("a:1",)),
        ("RINGRIFT_ADVERTISE_HOST", "h", "advertise", "h"),
        ("RINGRIFT_P2P_ADVERTISE_HOST", "h", "advertise", "h"),
        ("RINGRIFT_ADVERTISE_PORT", "5", "advertise_port", 5),
        ("RINGRIFT_FAIL_ON_SUBSCRIPTION_FAILURE", "true", "fail_on_subscription_failure", True),
        ("RINGRIFT_RAFT_BIND_PORT", "4321", "raft_port", 4321),
        ("RINGRIFT_DATA_DIR", "/x", "data_dir", Path("/x")),
    ],
)
def test_the_variables_that_operators_know_still_work(
    name: str, value: str, field: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(load({}), field) == expected


def test_a_variable_that_must_not_exist_any_more_is_one_warning_each() -> None:
    environ = {
        "RINGRIFT_CONSENSUS_MODE": "hybrid",
        "RINGRIFT_IS_COORDINATOR": "1",
        "RINGRIFT_ELECTION_TIMEOUT": "30",
        "RINGRIFT_MIN_NODES": "2",
        "RINGRIFT_PROSUMER_MAX_SELFPLAY": "8",
        "RINGRIFT_SWIM_PORT": "1",
        "HOME": "/",
    }
    warnings = decide(cluster=THREE, node_id="n1", environ=environ).warnings
    assert [w.split()[0] for w in warnings] == sorted(environ)[1:]
    assert all(w.endswith(".") for w in warnings)


def test_no_variable_that_is_read_is_said_to_be_ignored() -> None:
    read = {str(name) for field in Settings.model_fields.values() for name in field.validation_alias.choices}  # type: ignore[union-attr]
    assert "RINGRIFT_P2P_PORT" in read
    assert retired(dict.fromkeys(read, "1")) == []


def test_an_even_number_of_voters_is_warned_about() -> None:
    (warning,) = decide(cluster="a=127.0.0.1:1,b=127.0.0.1:3", node_id="a").warnings
    assert warning.startswith("2 voters")
    assert decide(cluster=THREE, node_id="n1").warnings == ()


def test_the_identity_is_made_once_and_kept_in_the_data_directory(tmp_path: Path) -> None:
    flags = {"cluster": THREE, "port": 9031, "data_dir": tmp_path / "d"}
    first = node_config(flags)
    assert node_config(flags).node_id == first.node_id
    assert (tmp_path / "d" / "node-id").read_text().strip() == first.node_id
    assert (tmp_path / "d").stat().st_mode & 0o077 == 0, "it will hold the node's token, its ledger and its logs"
    with pytest.raises(SettingsError, match="belongs to node"):
        node_config({**flags, "node_id": "other"})


def test_a_secret_comes_from_its_file_and_is_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush-hush-hush-hush\n")
    flags = {"cluster": THREE, "node_id": "n1", "data_dir": tmp_path, "cluster_secret_file": secret}
    config = node_config(flags)
    assert config.cluster_secret is not None
    assert config.cluster_secret.get_secret_value() == "hush-hush-hush-hush"
    assert "hush-hush" not in repr(config)
    secret.write_text("")
    with pytest.raises(SettingsError, match="is empty"):
        node_config(flags)
    secret.write_text("hush-hush\n")
    with pytest.raises(SettingsError, match="holds 9 characters, which can be guessed"):
        node_config(flags)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("port = ", "not valid TOML"), ("ports = 1", "'ports', which no setting is called"), (None, "cannot be read")],
)
def test_a_bad_settings_file_is_named(tmp_path: Path, content: str | None, expected: str) -> None:
    file = tmp_path / "node.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=expected) as caught:
        load({}, file)
    assert str(file) in str(caught.value)


def test_the_documented_example_names_every_setting_with_its_default(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "deploy" / "node.example.toml"
    text = path.read_text()
    given = tomllib.loads(text)
    commented = set(re.findall(r"^# (\w+) = ", text, flags=re.MULTILINE))
    assert set(given) | commented == set(Settings.model_fields)
    assert not set(given) & commented
    defaults = load({})
    loaded = load({}, path)
    for key in set(given) - {"cluster"}:
        assert getattr(loaded, key) == getattr(defaults, key), key
    for key in commented:
        assert getattr(defaults, key) is None, key
    bare = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    file = tmp_path / "all.toml"
    file.write_text(bare)
    assert load({}, file).port == 8770


def test_the_parent_whose_end_a_node_follows_is_named_by_its_pid() -> None:
    assert decide(cluster=THREE, node_id="n1").exit_with_parent == 0
    assert decide(cluster=THREE, node_id="n1", exit_with_parent=4711).exit_with_parent == 4711
    with pytest.raises(SettingsError, match="exit_with_parent"):
        decide(cluster=THREE, node_id="n1", exit_with_parent=-1)


def test_an_entry_may_name_its_raft_port_and_an_ipv6_address() -> None:
    member = parse_member("x=[fd00::1]:9/12")
    assert (member.id, member.address, member.raft_address) == ("x", "[fd00::1]:9", "[fd00::1]:12")


# --- files ------------------------------------------------------------------------------------------


def test_sizes_are_said_as_people_say_them_and_a_bucket_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    config = decide(cluster=THREE, node_id="n1", store_bytes="500GB", transfer_bytes_per_s="12MB")
    assert (config.store_bytes, config.transfer_bytes_per_s, config.object_store) == (500 * 10**9, 12 * 10**6, None)
    monkeypatch.setenv("RINGRIFT_S3_BUCKET", "our-bucket")
    config = decide(cluster=THREE, node_id="n1", object_store_endpoint="http://127.0.0.1:9000")
    assert config.object_store is not None
    assert (config.object_store.name, config.object_store.endpoint) == ("store:our-bucket", "http://127.0.0.1:9000")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"store_bytes": "much"}, "store_bytes"),
        ({"object_store": "https://bucket"}, "must be s3://BUCKET"),
        ({"object_store_region": "us-east-1"}, "of use with --object-store"),
        ({"object_store": "s3://bucket", "object_store_endpoint": "http://me:hush@host"}, "object_store_endpoint"),
        ({"labels": "store:bucket"}, "give --object-store"),
        ({"labels": ",".join(f"l{n}" for n in range(32))}, "31 labels at most, these are 32"),
        ({"labels": "x" * 257}, "has 257 characters"),
    ],
)
def test_what_is_wrong_with_the_settings_of_files_is_said(flags: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        decide(cluster=THREE, node_id="n1", **flags)
