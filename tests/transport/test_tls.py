"""TLS with certificates made on the spot: what is trusted, what is sent, how it fails."""

import asyncio
import ssl
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio

from hookline.transport import HttpPool, Timeouts, TlsOptions, TransportError

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_leaf(folder: Path, name: str, san: str) -> None:
    (folder / f"{name}.ext").write_text(
        f"subjectAltName={san}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\nbasicConstraints=CA:FALSE\n"
    )
    openssl("req", *NEW_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", folder=folder)
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
    openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed, folder=folder)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    """ca.pem, server.pem (localhost, 127.0.0.1, models.example) and client.pem with their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    authority = ("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")
    openssl("req", "-x509", *NEW_KEY, *authority, *extensions, folder=folder)
    make_leaf(folder, "server", "DNS:localhost,DNS:models.example,IP:127.0.0.1")
    make_leaf(folder, "client", "DNS:gateway")
    return folder


@pytest_asyncio.fixture
async def tls_upstream(certificates):
    """Answers OK to every request; `start(...)` gives its port. Notes the names and certificates that clients send."""
    servers = []
    seen = SimpleNamespace(names=[], clients=[], connections=0)

    async def answer(reader, writer):
        seen.connections += 1
        seen.clients.append(writer.get_extra_info("peercert"))
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(seen.reply)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            writer.close()

    async def start(*, client_ca: bool = False, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, reply=OK) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.sni_callback = lambda _, name, __: seen.names.append(name)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(certificates / "ca.pem")
        seen.reply = reply
        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context))
        return servers[-1].sockets[0].getsockname()[1]

    yield SimpleNamespace(start=start, seen=seen)
    for server in servers:
        server.close()


@pytest_asyncio.fixture
async def make_tls_pool(certificates):
    pools = []

    def make(port: int, host: str = "localhost", *, ca: bool = True, resolver=None, **options) -> HttpPool:
        async def to_loopback(name, port):
            return [(2, ("127.0.0.1", port))]

        if ca:
            options["ca_file"] = str(certificates / "ca.pem")
        pools.append(HttpPool("https", host, port, tls=TlsOptions(**options), resolver=resolver or to_loopback))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.aclose()
        assert pool.stats().open == 0


async def refused(request) -> TransportError:
    with pytest.raises(TransportError) as failed:
        await request
    return failed.value


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_a_server_of_a_trusted_ca_is_talked_to_and_its_connection_kept(tls_upstream, make_tls_pool, ask, version):
    pool = make_tls_pool(await tls_upstream.start(version=version))

    for _ in range(5):
        assert await (await ask(pool)).read() == b"ok"

    assert tls_upstream.seen.connections == 1
    assert tls_upstream.seen.names == ["localhost"]


async def test_an_address_as_host_is_checked_against_the_addresses_in_the_certificate(tls_upstream, make_tls_pool, ask):
    pool = make_tls_pool(await tls_upstream.start(), "127.0.0.1")

    assert await (await ask(pool)).read() == b"ok"
    assert tls_upstream.seen.names == [None]


async def test_a_server_that_nobody_vouches_for_is_refused_by_default(tls_upstream, make_tls_pool, ask):
    pool = make_tls_pool(await tls_upstream.start(), ca=False)

    error = await refused(ask(pool, body=b"secret"))

    assert (error.kind, error.is_written) == ("tls", False)
    assert "certificate" in str(error)
    assert pool.stats().open == 0


async def test_a_certificate_for_another_name_is_refused(tls_upstream, make_tls_pool, ask):
    pool = make_tls_pool(await tls_upstream.start(), "other.example")

    error = await refused(ask(pool))

    assert error.kind == "tls"
    assert "other.example" in str(error)


async def test_the_name_to_send_and_check_can_differ_from_the_host_that_is_dialled(tls_upstream, make_tls_pool, ask):
    pool = make_tls_pool(await tls_upstream.start(), "10.9.8.7", server_hostname="models.example")

    assert await (await ask(pool)).read() == b"ok"
    assert tls_upstream.seen.names == ["models.example"]


async def test_verification_can_be_switched_off(tls_upstream, make_tls_pool, ask):
    pool = make_tls_pool(await tls_upstream.start(), "other.example", ca=False, verify=False)

    assert await (await ask(pool)).read() == b"ok"


async def test_a_client_certificate_is_shown_to_a_server_that_asks(tls_upstream, make_tls_pool, ask, certificates):
    pool = make_tls_pool(
        await tls_upstream.start(client_ca=True),
        client_cert=str(certificates / "client.pem"),
        client_key=str(certificates / "client.key"),
    )

    assert await (await ask(pool)).read() == b"ok"
    assert tls_upstream.seen.clients[0]["subjectAltName"] == (("DNS", "gateway"),)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_without_the_client_certificate_that_is_asked_for_the_request_fails(
    tls_upstream, make_tls_pool, ask, version
):
    """With TLS 1.3 the client learns of it after its handshake, when the request may be written already."""
    pool = make_tls_pool(await tls_upstream.start(client_ca=True, version=version))

    error = await refused(ask(pool))

    assert error.kind in ("tls", "reset")
    assert pool.stats().open == 0


async def test_a_server_that_speaks_no_tls_is_a_tls_error(upstream, make_tls_pool, ask):
    async def answer_plain(peer):
        await peer.receive()
        await peer.send(OK)

    upstream.serve(answer_plain)

    error = await refused(ask(make_tls_pool(upstream.port)))

    assert (error.kind, error.is_written) == ("tls", False)


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_server_that_goes_away_within_the_handshake_is_a_tls_error(upstream, make_tls_pool, ask, end):
    async def leave(peer):
        await peer.receive()
        getattr(peer, end)()

    upstream.serve(leave)

    error = await refused(ask(make_tls_pool(upstream.port)))

    assert (error.kind, error.is_written) == ("tls", False)


async def test_a_handshake_that_stalls_is_a_connect_timeout(upstream, make_tls_pool, ask):
    pool = make_tls_pool(upstream.port)

    error = await refused(ask(pool, timeouts=Timeouts(connect_s=0.05)))

    assert (error.kind, error.is_written) == ("connect_timeout", False)
    assert pool.stats().open == 0


async def test_cancelled_within_the_handshake_closes_the_connection(upstream, make_tls_pool, ask):
    pool = make_tls_pool(upstream.port)
    pending = asyncio.ensure_future(ask(pool))
    peer = await upstream.accept()
    await peer.receive()

    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending

    while await peer.receive():
        pass
    assert pool.stats().open == 0


async def test_a_large_body_passes_both_ways(tls_upstream, make_tls_pool, ask):
    large = b"x" * 5_000_000
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(large), large)
    pool = make_tls_pool(await tls_upstream.start(reply=reply))

    received = 0
    async for piece in (await ask(pool)).chunks():
        received += len(piece)

    assert len(large) == received
    assert pool.stats().idle == 1


@pytest.mark.parametrize("option", ["ca_file", "client_cert"])
def test_a_file_that_cannot_be_used_is_named_at_once(option, tmp_path):
    missing = str(tmp_path / "missing.pem")
    broken = tmp_path / "broken.pem"
    broken.write_text("this is no certificate")

    for path in (missing, str(broken)):
        with pytest.raises(ValueError, match=option) as failed:
            HttpPool("https", "localhost", tls=TlsOptions(**{option: path}))
        assert path in str(failed.value)


def test_a_client_key_alone_is_refused():
    with pytest.raises(ValueError, match="client_key without client_cert"):
        HttpPool("https", "localhost", tls=TlsOptions(client_key="key.pem"))
