"""TLS for servers and clients: PEM files to gRPC's credentials, with errors that name the file and its property."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from remora.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """PEM files of one side of a connection. A server has a certificate and a key, a client at least a CA."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    """Who signs the other side. On a server it means that clients must have a certificate."""


def server_credentials(tls: Tls, setting: str) -> grpc.ServerCredentials:
    """Return what a server shows and, with a CA, asks of its clients. Blocks: reads files.

    Raises:
        ConfigurationError: a file is missing or of no use; names its property key, ``<setting>.tls.*``.
    """
    key, certificate, ca = _pem_files(tls, setting)
    if key is None or certificate is None:
        raise ConfigurationError(f"{setting}.tls.certificate, {setting}.tls.key: a server needs both")
    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)


def channel_credentials(tls: Tls, setting: str) -> grpc.ChannelCredentials:
    """Return what a client asks of its server and, with a certificate, shows. Blocks and raises as above."""
    key, certificate, ca = _pem_files(tls, setting)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _pem_files(tls: Tls, setting: str) -> Sequence[bytes | None]:
    """Return key, certificate and CA. gRPC would not say what is wrong with them, so the ssl module is asked first."""
    names = {"key": tls.key, "certificate": tls.certificate, "ca": tls.ca}
    contents: list[bytes | None] = []
    for name, path in names.items():
        try:
            contents.append(None if path is None else path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{setting}.tls.{name} = {path}: cannot be read: {error.strerror}") from error
    if (tls.key is None) != (tls.certificate is None):
        raise ConfigurationError(f"{setting}.tls.certificate, {setting}.tls.key: set both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrong = ""
    try:
        if tls.key is not None and tls.certificate is not None:
            wrong = f"{setting}.tls.certificate = {tls.certificate}, {setting}.tls.key = {tls.key}"
            context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        if tls.ca is not None:
            wrong = f"{setting}.tls.ca = {tls.ca}"
            context.load_verify_locations(tls.ca)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{wrong}: no usable PEM: {error.reason or error}") from error
    return contents


def server_tls(setting: str, certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """Return what a server shows and asks for; None is no TLS.

    Raises:
        ValueError: the files do not belong together. The message names the keys, which begin with ``setting``.
    """
    if (certificate is None) != (key is None):
        raise ValueError(f"{setting}.certificate and {setting}.key: set both or neither")
    if certificate is not None:
        return Tls(certificate=certificate, key=key, ca=client_ca)
    if client_ca is not None:
        raise ValueError(f"{setting}.client.ca needs {setting}.certificate and {setting}.key")
    return None
