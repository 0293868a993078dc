"""HTTP requests from inside the machine: the only way to the API server, etcd, the kubelet and the engine's socket.

The machine opens the connections (Machine.connect), so a request goes to the machine or fails, and the caller's proxy
variables have no effect. Both the quick probes (probe.py) and the `kubernetes` package (api.py) connect like this.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Hashable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client
    import ssl

    from .context import Context

LIMIT = 2.0  # seconds that one request may take, with patience=1
_FIRST = 0.1  # seconds of the first attempt to connect


def request(
    context: Context, url: str, *, own_ca: bool = True, ca: str = "ca", client: str = "admin"
) -> tuple[int, str]:
    """GET `url` (http, https, or unix://SOCKET:PATH) from inside the machine; return the status and the body.

    With https, the serving certificate must be signed by the CA `ca`, and `client` is the client certificate, unless
    `own_ca` is false. Raise OSError when there is no valid answer within LIMIT seconds (times the setting patience).
    """
    limit = limit_of(context)
    scheme, host, port, path = _parts(url)
    if scheme == "unix":
        return _ask(_plain_connection(context.machine.connect_unix(host, limit), "localhost"), path, limit, keep=False)
    if scheme == "http":
        return _ask(_plain_connection(_connect(context, host, int(port or 80)), host), path, limit, keep=False)
    # A TLS handshake takes milliseconds of CPU time on either side, so connections are kept for the next request.
    try:
        tls = tls_context(context.pki, own_ca, ca, client)
    except OSError:
        _connect(context, host, int(port or 443)).close()  # if nothing listens, raise that error instead
        raise
    kept = context.run.connections.setdefault((host, port, tls), [])
    with contextlib.suppress(ConnectionError, IndexError):  # none, or closed meanwhile
        connection = kept.pop()
        result = _ask(connection, path, limit, keep=True)
        kept.append(connection)
        return result
    connection = _plain_connection(_secure_stream(context, host, port, tls), host)
    result = _ask(connection, path, limit, keep=True)
    if connection.sock is not None:  # the server keeps it open
        kept.append(connection)
    return result


def first_line(context: Context, url: str, seconds: float) -> str:
    """GET an https `url` with the administrator's certificate; return the first line of the answer, such as the first
    event of a watch, or nothing when there is none within this time.

    Raise OSError when the server does not answer, or with another status than 200.
    """
    from http.client import HTTPException

    _, host, port, path = _parts(url)
    with contextlib.closing(_secure_stream(context, host, port, tls_context(context.pki))) as stream:
        connection = _plain_connection(stream, host)
        try:
            connection.request("GET", f"/{path}")
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise OSError(f"{response.status} {response.reason}")
            stream.settimeout(seconds)
            return response.readline().decode(errors="replace")
        except TimeoutError:
            return ""
        except HTTPException as error:
            raise OSError(str(error) or type(error).__name__) from error


def _parts(url: str) -> tuple[str, str, str, str]:
    """Return the scheme, the host (or socket), the port, and the path without its first slash."""
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        host, _, path = rest.partition(":")
        return scheme, host, "", path
    authority, _, path = rest.partition("/")
    host, _, port = authority.partition(":")
    return scheme, host, port, path


def _secure_stream(context: Context, host: str, port: str, tls: ssl.SSLContext) -> ssl.SSLSocket:
    return tls.wrap_socket(_connect(context, host, int(port or 443)), server_hostname=host)


def limit_of(context: Context) -> float:
    """Return the seconds that one request may take."""
    return LIMIT * context.settings.patience


def _connect(context: Context, host: str, port: int) -> socket.socket:
    # The kernel sends a lost packet again, such as one to a ClusterIP without rules yet, but only after 1 s (RFC 6298).
    # So there are several attempts, each twice as long as the one before, and LIMIT seconds in all.
    limit, left = _FIRST, limit_of(context)
    while True:
        try:
            stream = context.machine.connect(host, port, min(limit, left))
            break
        except TimeoutError:
            left -= limit
            limit *= 2
            if left <= 0:
                raise
    stream.settimeout(limit_of(context))  # of what follows, such as the TLS handshake: not only what was left for this
    # Both the end of the TLS handshake and the request are small packets: without this the second waits 40 ms.
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def _plain_connection(stream: socket.socket, host: str) -> http.client.HTTPConnection:
    # Not `import http.client`: while another thread does the same, `http` may not have its attribute `client` yet.
    from http.client import HTTPConnection

    connection = HTTPConnection(host)
    connection.auto_open = 0  # never reconnect: that would be from outside of the machine
    connection.sock = stream
    return connection


def _ask(connection: http.client.HTTPConnection, path: str, limit: float, *, keep: bool) -> tuple[int, str]:
    """Send a GET request; return status and body. Close the connection after an error, or unless `keep` is set."""
    from http.client import HTTPException, IncompleteRead

    complete = False
    try:
        connection.request("GET", "/" + path.lstrip("/"), headers={} if keep else {"Connection": "close"})
        response = connection.getresponse()
        body, deadline = b"", time.monotonic() + limit
        while piece := response.read1():
            body += piece
            if time.monotonic() > deadline:
                raise TimeoutError("its answer does not end")
        if response.length:  # read1 does not report an incomplete body
            raise IncompleteRead(body, response.length)
        response.close()  # so that the connection can take the next request
        complete = True
        return response.status, body.decode(errors="replace")
    except ConnectionError:  # among them http.client's own, of a connection that was closed
        raise
    except HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        if not keep or not complete:
            connection.close()


def tls_context(pki: Path, own_ca: bool = True, ca: str = "ca", client: str = "admin") -> ssl.SSLContext:
    """Return the TLS context for these certificates in the directory `pki`. Raise OSError when a file is missing.

    Without `own_ca` no certificate is verified: for daemons whose serving certificate is self-signed, in memory only.
    """
    files = (pki / f"{ca}.crt", pki / f"{client}.crt", pki / f"{client}.key") if own_ca else ()
    try:
        return _tls_from(files, tuple(file.stat().st_mtime_ns for file in files))
    except FileNotFoundError as error:
        raise OSError(f"no certificates yet ({error.filename})") from None


@functools.lru_cache
def _tls_from(files: Sequence[Path], _fingerprint: Hashable) -> ssl.SSLContext:
    import ssl

    if files:
        ca, certificate, key = files
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(certificate, key)
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def in_words(error: Exception) -> str:
    """Return the text of an error of a connection or a request, in lower case, without the error's type."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
