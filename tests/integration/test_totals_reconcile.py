"""``gridveil totals reconcile`` and ``watchdog`` against a totals service that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.totals.serve import TotalsProcess
from tests.support.exported import write_feeder
from tests.support.totals import expired, intent, publish, refused, released
from tests.support.totals_clients import opened, window


def test_totals_of_the_service_are_compared_and_gaps_stay_gaps(
    paths: CityPaths, serve: Callable[[], TotalsProcess], tmp_path: Path
) -> None:
    made = opened(paths, 0)
    publish(paths, intent(window(0)), released(made), refused(window(1)), expired(window(2)))
    serve()
    sums = {register.name: register.sum for register in made.total.registers}
    city = sums["import_wh"] - sums["export_wh"]
    feeder = {window(0): city + 700} | dict.fromkeys(map(window, range(1, 4)), 700)
    typed = ["--feeder", str(write_feeder(tmp_path / "feeder.csv", feeder)), "--json"]

    ended = CliRunner().invoke(
        app, ["totals", "reconcile", *typed, "--profile", str(paths.profile("operator"))]
    )

    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["signatures_checked"] is True
    first, *others = found["windows"]
    assert (first["city_wh"], first["difference_wh"]) == (city, 700)
    assert [other["missing"] for other in others] == ["REFUSED", "EXPIRED", "NOT_SETTLED"]


def test_the_watchdog_sees_the_windows_of_the_service(
    paths: CityPaths, serve: Callable[[], TotalsProcess]
) -> None:
    made = [opened(paths, at) for at in (0, 4)]
    gaps = [record for at in (1, 2, 3) for record in (intent(window(at)), refused(window(at)))]
    first, last = ((intent(one.total.window_start), released(one)) for one in made)
    publish(paths, *first, *gaps, *last)
    serve()

    ended = CliRunner().invoke(
        app, ["totals", "watchdog", "--json", "--profile", str(paths.profile("operator"))]
    )

    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["signatures_checked"], found["windows"]) == (True, 5)
    assert [(one["kind"], one["window_start"]) for one in found["findings"]] == [
        ("REFUSED_WINDOWS", window(3))
    ]
