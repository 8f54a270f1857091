"""TLS towards upstreams: options in, an `ssl.SSLContext` out.

Lives here: verification, custom CA, client certificate. Elsewhere: the handshake (dial.py).
Idea: verification is on unless someone switches it off by name."""

from __future__ import annotations

import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How to trust an upstream and how to be trusted by it. Paths are PEM files."""

    ca_file: str | None = None  # replaces the system's CAs
    client_cert: str | None = None  # certificate chain
    client_key: str | None = None  # its key, if not in the same file
    server_hostname: str | None = None  # sent as SNI and checked instead of the host that is dialled
    verify: bool = True


def load_tls_context(options: TlsOptions) -> ssl.SSLContext:
    """Read the files and build the context. Raises ValueError naming the file that cannot be used."""
    if options.client_key is not None and options.client_cert is None:
        raise ValueError("TLS client_key without client_cert; set both")
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"TLS ca_file {options.ca_file} cannot be used: {error.strerror or error}") from error
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.client_cert is not None:
        try:
            context.load_cert_chain(options.client_cert, options.client_key)
        except OSError as error:
            raise ValueError(
                f"TLS client_cert {options.client_cert} cannot be used: {error.strerror or error}"
            ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
