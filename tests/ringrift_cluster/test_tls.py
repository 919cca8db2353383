"""Certificates: what they say, and how a running node takes new ones into use."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from ringrift_cluster.certs import CertificateError, Pair, facts, identity, issue, make_authority
from ringrift_cluster.tls import Tls, TlsError, TlsFiles, certified, client_context
from tests.support.pki import Authority

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


# --- what a certificate says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node_id", "voter"), [("v1", True), ("gpu-1", False), ("10.0.0.1:8770", True), ("a/b@c+d", False)]
)
def test_a_certificate_names_its_node_its_role_and_its_hosts(node_id: str, voter: bool) -> None:
    root = make_authority("root", NOW, 100)
    made = issue(root, node_id, voter, ("db.example.org", "10.0.0.1", "[fd00::1]"), NOW, 30)
    said = facts(made.cert, NOW)
    assert (said.node_id, said.voter, said.authority, said.days_left) == (node_id, voter, False, 30)
    assert set(said.hosts) == {"db.example.org", "10.0.0.1", "fd00::1", "localhost", "127.0.0.1", "::1"}
    top = facts(root.cert, NOW)
    assert (top.authority, top.node_id, top.subject) == (True, "", said.issuer)


def test_a_certificate_that_names_two_nodes_names_none() -> None:
    assert identity(["urn:ringrift:voter:a"]) == ("a", True)
    assert identity(["urn:ringrift:voter:a", "urn:ringrift:node:b"]) is None
    assert identity(["https://a"]) is None


def test_what_cannot_be_certified_is_refused_in_a_sentence() -> None:
    root, other = make_authority("root", NOW, 9), make_authority("other", NOW, 9)
    for authority, host, said in (
        (root, "no host\u00e4", "host name"),
        (Pair(root.cert, other.key), "h", "does not belong"),
        (Pair(b"", root.key), "h", "no PEM certificate"),
        (Pair(root.cert, b""), "h", "no unencrypted PEM key"),
    ):
        with pytest.raises(CertificateError, match=said):
            issue(authority, "a", True, (host,), NOW, 9)


# --- files in use -----------------------------------------------------------------------------------


def test_files_that_do_not_fit_together_are_named(authority: Authority, tmp_path: Path) -> None:
    good = authority.issue("v1")
    other = authority.issue("v2")
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    for files, said in (
        (TlsFiles(good.ca, good.cert, other.key), "not a certificate and its key"),
        (TlsFiles(junk), "no PEM certificate of an authority"),
        (TlsFiles(tmp_path / "none"), "cannot be read"),
        (TlsFiles(good.ca, tmp_path / "none", good.key), "cannot be read"),
    ):
        with pytest.raises(TlsError, match=said):
            Tls(files)


def test_a_client_needs_the_authority_alone(authority: Authority) -> None:
    only = Tls(TlsFiles(authority.ca))
    assert (only.http_server, only.numbers()) == (None, {"tls_revoked_certificates": 0})
    only.refresh()


def test_old_protocols_are_not_spoken(authority: Authority) -> None:
    tls = Tls(authority.issue("v1"))
    assert tls.http_server is not None
    contexts = (tls.http_server.now, tls.http_client.now, tls.link_server(), tls.link_client())
    assert {context.minimum_version for context in contexts} == {ssl.TLSVersion.TLSv1_3}
    assert tls.link_server().verify_mode is ssl.CERT_REQUIRED
    assert (tls.link_client().verify_mode, tls.http_client.now.check_hostname) == (ssl.CERT_REQUIRED, True)


@asynccontextmanager
async def echoing(context: ssl.SSLContext):  # type: ignore[no-untyped-def]
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def opened(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"hello")
    return await reader.read(5) == b"hello"


def serial(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("peercert")["serialNumber"])


def test_a_new_certificate_serves_new_connections_and_old_ones_go_on(authority: Authority) -> None:
    async def scenario() -> None:
        tls = Tls(authority.issue("v1"))
        assert tls.http_server is not None
        client = client_context(authority.ca)
        async with echoing(tls.http_server) as port:
            old = await opened(port, client)
            authority.issue("v1")
            tls.refresh()
            new = await opened(port, client)
            assert serial(old[1]) != serial(new[1])
            assert certified(new[1].get_extra_info("ssl_object")) == ("v1", True)
            assert await answers(*old)
            assert await answers(*new)
            for _, writer in (old, new):
                writer.transport.abort()

    asyncio.run(scenario())


def test_half_a_pair_changes_nothing_until_the_other_half_is_there(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ringrift.tls")
    files = authority.issue("v1")
    tls = Tls(files)
    before = tls.facts
    links = tls.link_server()
    fresh = authority.make("v1")
    assert files.cert is not None
    assert files.key is not None
    files.cert.write_bytes(fresh.cert)
    tls.refresh()
    tls.refresh()
    assert (tls.facts, tls.link_server()) == (before, links)
    assert caplog.text.count("event=tls_not_renewed") == 1
    files.key.write_bytes(fresh.key)
    tls.refresh()
    assert tls.facts != before
    assert tls.link_server() is not links
    assert "event=tls_renewed" in caplog.text


def test_a_replaced_file_is_noticed_without_a_signal(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringrift_cluster.tls.LOOK_S", 0.01)

    async def scenario() -> None:
        tls = Tls(authority.issue("v1"))
        before = tls.facts
        watching = asyncio.create_task(tls.watch())
        authority.issue("v1")
        async with asyncio.timeout(10):
            while tls.facts == before:
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(scenario())


def test_a_second_authority_is_believed_as_soon_as_it_is_in_the_file(authority: Authority, tmp_path: Path) -> None:
    async def scenario() -> None:
        tls = Tls(authority.issue("v1"))
        other = Authority(tmp_path / "other")
        newer = Tls(other.issue("v2"))
        assert newer.http_server is not None
        async with echoing(newer.http_server) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await opened(port, tls.http_client)
            authority.ca.write_bytes(authority.pair.cert + other.pair.cert)
            tls.refresh()
            both = await opened(port, tls.http_client)
            assert await answers(*both)
            both[1].transport.abort()

    asyncio.run(scenario())


def test_an_authority_that_was_taken_out_is_believed_no_longer(authority: Authority, tmp_path: Path) -> None:
    async def scenario() -> None:
        other = Authority(tmp_path / "other")
        newer = Tls(other.issue("v2"))
        assert newer.http_server is not None
        authority.ca.write_bytes(authority.pair.cert + other.pair.cert)
        tls = Tls(authority.issue("v1"))
        async with echoing(newer.http_server) as port:
            both = await opened(port, tls.http_client)
            assert await answers(*both)
            both[1].transport.abort()
            authority.ca.write_bytes(authority.pair.cert)
            tls.refresh()
            with pytest.raises(ssl.SSLCertVerificationError):
                await opened(port, tls.http_client)

    asyncio.run(scenario())


def test_a_certificate_that_would_convince_nobody_is_not_taken_into_use(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    tls = Tls(authority.issue("v1"))
    before = tls.facts
    for pair, said in (
        (authority.make("v2"), "of another node or role than the one in use"),
        (authority.make("v1", voter=False), "of another node or role than the one in use"),
        (authority.make("v1", days=0), "it ended at"),
        (stranger.make("v1"), "no authority that is trusted here has signed it"),
    ):
        files = authority.files("v1", pair)
        tls.refresh()
        assert tls.facts == before
        assert said in tls.complaint
        assert tls.complaint.endswith("the old files stay in use")
        if "another node" not in said:
            with pytest.raises(TlsError, match=said):
                Tls(files)
    authority.issue("v1")
    tls.refresh()
    assert tls.complaint == ""
    assert tls.facts != before


def test_a_certificate_that_ends_soon_is_spoken_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    tls = Tls(authority.files("v1", authority.make("v1", days=5)))
    assert "event=tls_ends_soon" in caplog.text
    assert 4 * 86_400 < tls.numbers()["tls_certificate_left_seconds"] <= 5 * 86_400


# --- revoked certificates ---------------------------------------------------------------------------


def test_a_revoked_certificate_opens_nothing_and_what_it_opened_ends(authority: Authority) -> None:
    async def scenario() -> None:
        tls, client = Tls(authority.issue("v1")), Tls(authority.issue("v2"))
        assert tls.http_server is not None
        async with echoing(tls.http_server) as port:
            old = await opened(port, client.http_client)
            assert await answers(*old)
            authority.revoke("v1")
            client.refresh()
            with pytest.raises(ConnectionError):
                await answers(*old)
                await answers(*old)
            with pytest.raises(ssl.SSLCertVerificationError, match="is revoked"):
                await opened(port, client.http_client)
            # Whoever renewed it is believed again.
            tls.refresh()
            assert "is revoked, so no other node believes it" in tls.complaint
            authority.issue("v1")
            tls.refresh()
            assert tls.complaint == ""
            fresh = await opened(port, client.http_client)
            assert await answers(*fresh)
            fresh[1].transport.abort()
            assert client.numbers()["tls_revoked_certificates"] == 1

    asyncio.run(scenario())


def test_http_clients_take_a_revoked_server_for_one_that_is_gone(authority: Authority) -> None:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    tls, client = Tls(authority.issue("v1")), Tls(authority.issue("v2"))
    assert tls.http_server is not None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = tls.http_server.now.wrap_socket(server.socket, server_side=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    url = f"https://127.0.0.1:{server.server_port}/"

    async def scenario() -> None:
        async with httpx.AsyncClient(verify=client.http_client) as http:
            assert (await http.get(url)).status_code == 200
            authority.revoke("v1")
            client.refresh()
            with pytest.raises((httpx.ReadError, httpx.WriteError)):
                await http.get(url)
            with pytest.raises(httpx.ConnectError, match="is revoked"):
                await http.get(url)
        with (
            httpx.Client(verify=client_context(authority.ca)) as blocking,
            pytest.raises(httpx.ConnectError, match="is revoked"),
        ):
            blocking.get(url)

    try:
        asyncio.run(scenario())
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


def test_a_list_that_is_older_forged_or_gone_does_not_take_the_place_of_a_newer_one(
    authority: Authority, tmp_path: Path
) -> None:
    tls, crl = Tls(authority.issue("v1")), authority.directory / "ca.crl"
    authority.issue("v2")
    older = authority.revoke("v2")
    authority.issue("v2")
    authority.revoke("v2")
    tls.refresh()
    assert tls.numbers()["tls_revoked_certificates"] == 2
    other = Authority(tmp_path / "other")
    other.issue("v2")
    for text, said in (
        (older, "gone or older"),
        (other.revoke("v2"), "gone or older"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----", "a damaged list"),
        (b"", "no list of revoked"),
        (None, "gone or older"),
    ):
        if text is None:
            crl.unlink()
        else:
            crl.write_bytes(text)
        tls.refresh()
        assert said in tls.complaint
        assert tls.numbers()["tls_revoked_certificates"] == 2
        if "gone" not in said:
            with pytest.raises(TlsError, match=said):
                Tls(tls.files)


def test_the_list_of_an_authority_that_was_taken_out_keeps_no_node_from_its_work(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    authority.issue("v2")
    authority.revoke("v2")
    files = authority.issue("v1")
    tls = Tls(files)
    authority.ca.write_bytes(authority.pair.cert + other.pair.cert)
    authority.files("v1", other.make("v1"))
    tls.refresh()
    assert (tls.complaint, tls.numbers()["tls_revoked_certificates"]) == ("", 1)
    authority.ca.write_bytes(other.pair.cert)
    tls.refresh()
    for one in (tls, Tls(files)):
        assert "holds no list of revoked certificates that an authority in" in one.complaint
        assert one.numbers()["tls_revoked_certificates"] == 0
    assert client_context(authority.ca)
    (authority.directory / "ca.crl").unlink()
    tls.refresh()
    assert tls.complaint == ""


def test_lists_of_several_authorities_stand_in_one_file_and_that_of_one_that_left_means_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    # Both authorities have one name: keys tell them apart.
    other = Authority(tmp_path / "other")
    files = authority.issue("v1")
    authority.issue("v2"), other.issue("v3")
    lists = authority.revoke("v2") + other.revoke("v3")
    (authority.directory / "ca.crl").write_bytes(lists)
    assert Tls(files).numbers()["tls_revoked_certificates"] == 1
    authority.ca.write_bytes(authority.pair.cert + other.pair.cert)
    tls = Tls(files)
    assert tls.numbers()["tls_revoked_certificates"] == 2
    authority.ca.write_bytes(authority.pair.cert)
    tls.refresh()
    assert (tls.complaint, tls.numbers()["tls_revoked_certificates"]) == ("", 1)
