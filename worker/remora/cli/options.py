"""Options that several commands share, and the values that they turn into."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from remora.cli.client import DEFAULT_ADDRESSES, Server
from remora.rpc import check_address
from remora.tls import Tls

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class DurationType(click.ParamType[Any]):
    """A number of seconds, or one with a unit: ``90``, ``90s``, ``15m``, ``6h``, ``2d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 -- click's own
        """Return seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a duration such as 90, 90s, 15m, 6h or 2d.", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


class AddressType(click.ParamType[Any]):
    """``host:port`` or ``[ipv6]:port``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 -- click's own
        """Return it as it is."""
        try:
            return check_address(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}.", param, ctx)


class PairType(click.ParamType[Any]):
    """``name=value``."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:  # noqa: ANN401 -- click's own
        """Return both."""
        if isinstance(value, tuple):
            return value  # pyright: ignore[reportUnknownVariableType]  # converted before
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not of the form name=value.", param, ctx)
        return name, text


config_option = click.option(
    "-c",
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="REMORA_CONFIG",
    help="Properties file.  [default: config/common.properties, if it is there]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def examples(*commands: str) -> str:
    """Return the end of the help of a command."""
    return "\n".join(["\b", "Examples:" if len(commands) > 1 else "Example:", *(f"  {each}" for each in commands)])


def server_options(*kinds: str) -> Callable[[Command], Command]:
    """Add the options that lead to a worker, a scheduler or both; the command takes each as a :class:`Server`."""

    def decorate(command: Command) -> Command:
        @connection_options
        @functools.wraps(command)
        def wrapper(*args: object, token: str | None, tls: Tls | None, **kwargs: Any) -> object:  # noqa: ANN401 -- click's own
            servers = {kind: Server(kind=kind, address=kwargs.pop(kind), token=token, tls=tls) for kind in kinds}
            return command(*args, **servers, **kwargs)

        for kind in kinds:
            wrapper = click.option(
                f"--{kind}",
                type=AddressType(),
                envvar=f"REMORA_{kind.upper()}",
                default=DEFAULT_ADDRESSES[kind],
                show_default=True,
                help=f"Address of the {kind}.",
            )(wrapper)
        return wrapper  # type: ignore[return-value]  # with other keywords than before

    return decorate


def connection_options(command: Command) -> Command:
    """Add the options about tokens and TLS; the command takes them as ``token`` and ``tls``."""

    @click.option(
        "--token",
        envvar="REMORA_TOKEN",
        metavar="TOKEN",
        help="Bearer token; better in REMORA_TOKEN, where others do not see it.",
    )
    @click.option("--tls-ca", type=_file(), help="Who signed the server's certificate (PEM); turns TLS on.")
    @click.option("--tls-certificate", type=_file(), help="Our certificate (PEM), where the server asks for one.")
    @click.option("--tls-key", type=_file(), help="The key of our certificate (PEM).")
    @functools.wraps(command)
    def wrapper(
        *args: object,
        token: str | None,
        tls_ca: Path | None,
        tls_certificate: Path | None,
        tls_key: Path | None,
        **kwargs: object,
    ) -> object:
        tls = Tls(ca=tls_ca, certificate=tls_certificate, key=tls_key) if tls_ca or tls_certificate or tls_key else None
        return command(*args, token=token or None, tls=tls, **kwargs)

    return wrapper  # type: ignore[return-value]  # with other keywords than before


def _file() -> click.Path:
    return click.Path(exists=True, dir_okay=False, path_type=Path)
