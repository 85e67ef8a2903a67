"""``gridveil health``: whether a service answers and is ready, for probes and for people."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from gridveil.cli.arguments import JsonOption, load_profile
from gridveil.cli.output import ExitCode, print_json
from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.transport import DOMAIN

SERVICES = ("aggregator", "controller", "keyholder", "totals")
_URI = re.compile(rf"spiffe://([0-9a-f]{{32}})\.{DOMAIN}/([a-z]+)/[A-Za-z0-9._-]+")


def health(
    target: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS|ROLE",
            help="host:port with --ca, --certificate and --key; with --profile the role.",
            show_default=False,
        ),
    ],
    ca: Annotated[Path | None, typer.Option(help="The city's authority, PEM.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Your certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key, PEM.")] = None,
    role: Annotated[
        str | None,
        typer.Option(help="Who must answer at ADDRESS; without it, the certificate's own role."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A profile.toml, or its folder, instead of the files.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 5.0,
    json: JsonOption = False,
) -> None:
    """Ask a service whether it is ready: exit code 0 if it is, 1 if not, 3 if it does not answer.

    A service may ask itself with its own certificate, which names city and role.

    Example: gridveil health localhost:7443 --ca ca.pem --certificate cert.pem --key key.pem
    """
    if profile is not None:
        loaded = load_profile(profile)
        address, asked, city, tls = loaded.endpoint(target), target, loaded.city_id, loaded.tls
    else:
        tls = _tls(ca, certificate, key)
        city, own = _names_in(tls.certificate)
        address, asked = target, role or own
    if asked not in SERVICES:
        raise _invalid(f"the role of a service is {', '.join(SERVICES)}", "role")
    status = _ask(address, asked, city, tls, timeout)
    if json:
        print_json({"address": address, "role": asked, "status": status})
    else:
        typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(ExitCode.NO)


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls:
    if ca is None or certificate is None or key is None:
        raise _invalid("give --profile, or all of --ca, --certificate and --key", "tls")
    return Tls(ca, certificate, key)


def _names_in(path: Path) -> tuple[bytes, str]:
    """City and role that a certificate names."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise _invalid("the certificate has no name of a city", "certificate") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    matched = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if matched is None:
        raise _invalid("the certificate names no role of a city", "certificate")
    return bytes.fromhex(matched[1]), matched[2]


def _ask(address: str, role: str, city_id: bytes, tls: Tls, timeout_s: float) -> str:
    """The standard health service's answer (grpc.health.v1) about the server as a whole."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from gridveil.transport import connect, from_rpc_error

    with closing(connect(address, role, city_id, tls)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack the methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _invalid(message: str, field: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message, field=field)
