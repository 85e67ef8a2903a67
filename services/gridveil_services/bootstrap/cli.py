"""``gridveil init``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gridveil.protocol.city import EntryAudience, Register
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy, loss_ppm
from gridveil.protocol.parameter_sets import DEFAULT_PARAMETER_SET, PARAMETER_SETS
from gridveil_services.bootstrap.layout import CONTROLLER, LISTENING, SERVICES

app = typer.Typer(add_completion=False)

_PORT = 7440


@app.command()
def init(
    city: Annotated[Path, typer.Argument(help="Folder to make; must be new or empty.")],
    parameter_set: Annotated[
        str, typer.Option(help=f"CKKS parameters: {' or '.join(PARAMETER_SETS)}.")
    ] = DEFAULT_PARAMETER_SET,
    window: Annotated[int, typer.Option(help="Window length in seconds.")] = 900,
    grace: Annotated[int, typer.Option(help="Seconds after a window that reports count.")] = 300,
    min_cohort: Annotated[
        int | None,
        typer.Option(help="Fewest meters in a total: 1000, at least 100 more than may collude."),
    ] = None,
    colluding: Annotated[
        int, typer.Option(help="Meters assumed to collude with the aggregator.")
    ] = 0,
    min_coverage: Annotated[
        float, typer.Option(help="Smallest share of enrolled meters in a total, 0.5 to 1.")
    ] = 0.8,
    register: Annotated[
        list[str] | None,
        typer.Option(
            help="name:unit:bound, repeatable; the bound is one meter's most in one window."
            " Default: import_wh:Wh:200000 and export_wh:Wh:200000.",
            show_default=False,
        ),
    ] = None,
    ports: Annotated[
        str,
        typer.Option(
            help="First of four ports for key-holder, aggregator, totals and controller; or each:"
            " keyholder=7001,aggregator=7002,totals=7003,controller=7004. The last may be left out."
        ),
    ] = str(_PORT),
    host: Annotated[str, typer.Option(help="Address that the services listen on.")] = "127.0.0.1",
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE=HOST:PORT",
            help="Where others find a service, if not where it listens; repeatable.",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="redis://HOST:PORT",
            help="Keep windows in that Redis; its users and passwords are made as well.",
        ),
    ] = None,
    redis_replicas: Annotated[
        int, typer.Option(help="How many of its replicas must have a report's write.")
    ] = 0,
    entry_audience: Annotated[
        str, typer.Option(help="Who may see which meters reported: nobody, auditors or public.")
    ] = "auditors",
    noise: Annotated[
        str | None,
        typer.Option(
            help="laplace:EPSILON:EPSILON or gaussian:RHO:RHO, the privacy loss of a window and of"
            " a day, such as laplace:0.5:48. Without it totals are exact.",
        ),
    ] = None,
    time_zone: Annotated[
        str, typer.Option(help="Where the city's days begin and end, such as Europe/Zurich.")
    ] = "UTC",
    development: Annotated[
        bool, typer.Option("--development", help="Allow scaled clocks. Never for real readings.")
    ] = False,
) -> None:
    """Make a city: ids, keys, certificates and the configuration of every role.

    Each role gets a folder with all it needs; keep the roles on machines that do not trust each
    other, and the folder "ca" on none of them.

    Example: gridveil init springfield --min-cohort 500
    """
    from gridveil_services.bootstrap.city import DEFAULT_REGISTERS, CityOptions, create_city

    options = CityOptions(
        parameter_set=parameter_set,
        window_length=window,
        grace=grace,
        colluding=colluding,
        min_cohort=min_cohort,
        min_coverage=min_coverage,
        registers=tuple(parse_register(text) for text in register or ()) or DEFAULT_REGISTERS,
        entry_audience=parse_audience(entry_audience),
        noise=parse_noise(noise) if noise else None,
        time_zone=time_zone,
        development=development,
        addresses={role: f"{host}:{port}" for role, port in parse_ports(ports).items()},
        reached_at=parse_addresses(address or ()),
        redis=redis,
        redis_replicas=redis_replicas,
    )
    create_city(city, options)
    controlled = CONTROLLER in options.addresses
    typer.echo(_description(city, options.cohort, controlled=controlled))


def parse_register(value: str) -> Register:
    """The register in ``name:unit:bound``, or CONFIG_INVALID."""
    try:
        name, unit, bound = value.split(":")
        return Register(name, unit, int(bound))
    except ValueError:
        raise _invalid("--register is name:unit:bound, such as import_wh:Wh:200000") from None


def parse_ports(value: str) -> dict[str, int]:
    """A port for each service, from the first of four or from ``service=port`` pairs."""
    try:
        if "=" not in value:
            return {role: int(value) + at for at, role in enumerate(LISTENING)}
        pairs = (pair.split("=") for pair in value.split(","))
        ports = {role: int(port) for role, port in pairs}
    except ValueError:
        ports = {}
    if not set(SERVICES) <= set(ports) <= set(LISTENING):
        raise _invalid("--ports is one number, or keyholder=PORT,aggregator=PORT,totals=PORT")
    return ports


def parse_addresses(values: Sequence[str]) -> dict[str, str]:
    """``host:port`` by service, from ``service=host:port`` each, or CONFIG_INVALID."""
    pairs = [value.partition("=") for value in values]
    if any(service not in LISTENING or not address for service, _, address in pairs):
        raise _invalid("--address is SERVICE=HOST:PORT, such as keyholder=keyholder.example:7440")
    return {service: address for service, _, address in pairs}


def parse_audience(value: str) -> EntryAudience:
    """Who may fetch opened entries, or CONFIG_INVALID."""
    audiences = {audience.name.lower(): audience for audience in EntryAudience}
    if value not in audiences:
        raise _invalid(f"--entry-audience is one of {', '.join(audiences)}")
    return audiences[value]


def parse_noise(value: str) -> NoisePolicy:
    """The noise in ``mechanism:loss of a window:loss of a day``, or CONFIG_INVALID."""
    mechanisms = {m.name.lower(): m for m in Mechanism if m is not Mechanism.NONE}
    try:
        mechanism, window, day = value.split(":")
        chosen, losses = mechanisms[mechanism], [loss_ppm(float(loss)) for loss in (window, day)]
    except (KeyError, ValueError):
        raise _invalid("--noise is laplace:0.5:48 or gaussian:0.1:9.6, say") from None
    return NoisePolicy(Noise(chosen, losses[0]), losses[1])


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)


def _description(named: Path, cohort: int, *, controlled: bool) -> str:
    def path(relative: str) -> str:
        return shlex.quote(str(named / relative))

    serve = (
        f"  gridveil {service} serve --config {path(f'{service}/{service}.toml')}"
        for service in SERVICES
    )
    control = (
        "",
        f"For control signals write {path('controller/control.toml')}, and start",
        f"  gridveil control serve --config {path('controller/controller.toml')}",
        "",
        f"For the operator's page say in {path('console/console.toml')} how people log in,",
        f"  and start gridveil console serve --config {path('console/console.toml')}",
    )
    return "\n".join(
        (
            f"Made the city in {named}: a folder for each role, certificates for a year.",
            f"  {path('keyholder')} holds the identity key that every meter pins, encrypted under",
            "  its file kek: back both up, apart from each other. Nothing else can open a total.",
            f"  {path('ca/ca-key.pem')} makes identities: take it off this machine.",
            "",
            "Start the services, each in a terminal of its own:",
            *serve,
            "",
            "Then enrol meters and watch totals:",
            f"  gridveil meters enrol --profile {path('registrar/profile.toml')}"
            f" --fleet {path('meters/fleet.jsonl')} --count {cohort}",
            f"  gridveil totals watch --profile {path('operator/profile.toml')}",
            *(control if controlled else ()),
        )
    )
