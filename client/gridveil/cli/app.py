"""The command line as a whole, and ``gridveil version``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

import typer

from gridveil.cli import (
    control,
    enrolment,
    fsck,
    health,
    household,
    loadtest,
    log,
    meter_files,
    meter_gateway,
    meters,
    reconcile,
    totals,
    totals_export,
    watchdog,
)
from gridveil.cli.arguments import JsonOption
from gridveil.cli.extensions import RootGroup
from gridveil.cli.output import EXIT_CODES, print_json
from gridveil.protocol.parameter_sets import (
    DEFAULT_PARAMETER_SET,
    PARAMETER_SETS,
    parameter_set,
)

PROTOCOL = "gridveil/v1"

app = typer.Typer(
    cls=RootGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A city sees its electricity demand, and nobody sees a household's.\n\n"
    "Start with: gridveil demo",
    epilog=EXIT_CODES,
)
totals.app.command("reconcile")(reconcile.reconcile_totals)
totals.app.command("watchdog")(watchdog.watch_over)
enrolment.app.command()(meters.simulate)
enrolment.app.command()(meter_gateway.run)
enrolment.app.command("import")(meter_files.import_file)
enrolment.app.command()(household.check)
totals.app.command()(totals_export.export)
app.command()(fsck.fsck)
app.add_typer(totals.app, name="totals")
app.add_typer(control.app, name="control")
app.add_typer(log.app, name="log")
app.add_typer(enrolment.app, name="meters")
app.command()(health.health)
app.command()(loadtest.loadtest)


@app.command()
def version(json: JsonOption = False) -> None:
    """Show the version, the protocol, and the parameter sets with their limits.

    Example: gridveil version --json
    """
    from importlib.metadata import PackageNotFoundError

    packages = {}
    for name in ("gridveil", "gridveil-services"):
        try:
            packages[name] = installed_version(name)
        except PackageNotFoundError:
            continue
    if json:
        print_json({"packages": packages, "protocol": PROTOCOL, "parameter_sets": _sets()})
        return
    for name, number in packages.items():
        typer.echo(f"{name} {number}")
    typer.echo(f"protocol {PROTOCOL}")
    for entry in _sets():
        mark = " (default)" if entry["default"] else ""
        typer.echo(
            f"{entry['name']}{mark}: N = {entry['degree']}, {entry['modulus_bits']}-bit modulus,"
            f" {entry['ciphertext_bytes']:,} bytes a report, up to"
            f" {entry['meters_per_lane']:,} meters in a lane"
        )


def _sets() -> list[dict[str, object]]:
    slots = 64
    sets = (parameter_set(name) for name in PARAMETER_SETS)
    return [
        {
            "name": found.name,
            "default": found.name == DEFAULT_PARAMETER_SET,
            "degree": found.degree,
            "modulus_bits": found.modulus_bits,
            "ciphertext_bytes": found.ciphertext_bytes(slots),
            "meters_per_lane": found.meters_per_lane(slots),
        }
        for found in sets
    ]


def main() -> None:
    """Run the command line."""
    app(prog_name="gridveil")
