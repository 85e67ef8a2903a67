"""What is said of the watchdog: the benchmark counts right, the document names what there is."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from benchmarks import incidents
from benchmarks.incidents import DAY, SHORT, WARM_UP_DAYS, Demand, Incident, inject, ordinary
from benchmarks.watchfulness import KINDS, SLACK, Account, judge, lines_of, main
from gridveil.reconcile import Missing, Verdict
from gridveil.watchdog.detector import Finding
from gridveil.watchdog.limits import Limits
from gridveil.watchdog.series import KNOWN
from gridveil.watchdog.watchers import Kind

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "watchfulness.md").read_text("utf-8")
ZONE = ZoneInfo("UTC")
WINDOWS = incidents.days_from(date(2026, 5, 4), 35, ZONE)


def demand(seed: int) -> Demand:
    """Few households that are much alike, so that a test takes a moment."""
    random = np.random.default_rng(seed)
    day = 1 + 0.4 * np.sin(2 * np.pi * np.arange(len(WINDOWS)) / DAY)
    return Demand(
        ZONE, WINDOWS, 1000 * day[:, None] * random.gamma(20, 1 / 20, (len(WINDOWS), 300))
    )


def finding(kind: Kind, at: int) -> Finding:
    return Finding(kind, WINDOWS[at], 1.0, 0.0, "", None)


def test_a_finding_counts_for_an_incident_of_its_kind_while_it_lasts_and_no_other() -> None:
    account, kind = Account(), Kind.DEMAND_STEP
    put_in = [Incident(kind, 2000, 2010), Incident(kind, 2500, 2510)]
    told = [finding(kind, at) for at in (1999, 2002, 2008, 2009 + SLACK, 2010 + SLACK)]
    account.eventful([*told, finding(Kind.FROZEN_TOTAL, 2005)], put_in, WINDOWS)
    tally = account.kinds[kind]
    assert (tally.incidents, tally.found, tally.right, tally.wrong) == (2, 1, 3, 2)
    assert tally.delays_h == [0.5]
    assert (account.kinds[Kind.FROZEN_TOTAL].right, account.kinds[Kind.FROZEN_TOTAL].wrong) == (
        0,
        1,
    )


def test_false_alarms_are_counted_by_month_after_the_first_days() -> None:
    account = Account()
    early, late = WARM_UP_DAYS * DAY - 1, WARM_UP_DAYS * DAY
    found = [finding(Kind.LANE_DROP, early), finding(Kind.LANE_DROP, late)]
    account.quiet(found, demand(0))
    assert account.false_a_month(Kind.LANE_DROP) == pytest.approx(30 / (35 - WARM_UP_DAYS))


def test_each_incident_is_on_a_day_of_its_own_after_the_first_days() -> None:
    put_in = inject(ordinary(demand(1), np.random.default_rng(1)), np.random.default_rng(2))
    assert len(put_in) == len(SHORT) + 1
    assert {incident.kind for incident in put_in} == set(KINDS)
    days = [incident.begin // DAY for incident in put_in if incident.kind is not Kind.FEEDER_DRIFT]
    assert len(set(days)) == len(SHORT)
    assert min(days) >= WARM_UP_DAYS


def test_most_incidents_are_found_in_cities_that_are_calm_and_little_else() -> None:
    account = judge((seed, demand(seed)) for seed in range(3))
    for kind, tally in account.kinds.items():
        assert tally.incidents >= 3, kind
    assert sum(tally.found for tally in account.kinds.values()) >= 0.8 * 3 * (len(SHORT) + 1)
    assert sum(tally.quiet.total() for tally in account.kinds.values()) <= 3
    assert len(list(lines_of("calm", account))) == 1 + len(KINDS)


def test_the_same_seeds_give_the_same_figures() -> None:
    accounts = [judge([(5, demand(5))]) for _ in range(2)]
    assert accounts[0] == accounts[1]


def test_the_benchmark_prints_a_line_a_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRIDVEIL_READINGS", raising=False)
    assert main(["--seeds", "0-0"]) in {0, 1}
    printed = capsys.readouterr().out
    for kind in KINDS:
        assert kind.value in printed


def section(heading: str) -> str:
    return TEXT.partition(f"\n{heading}\n")[2].partition("\n#")[0]


def test_the_document_lists_every_kind_of_finding_and_no_other() -> None:
    listed = re.findall(r"^\| `([A-Z_]+)` \|", section("## The watchdog"), re.M)
    assert listed == [kind.value for kind in Kind]


def test_the_document_lists_every_limit_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", section("### Limits"), re.M)
    shown = {name: tomllib.loads(f"value = {text.strip(' `')}")["value"] for name, text in rows}
    defaults = Limits()
    assert shown == {name: getattr(defaults, name) for name in Limits.__struct_fields__}


def test_the_document_lists_why_windows_are_not_compared_and_every_verdict() -> None:
    listed = set(re.findall(r"`([A-Z_]+)`", section("## Against a feeder")))
    assert {missing.value for missing in Missing} | {verdict.value for verdict in Verdict} <= listed


def test_the_query_of_the_document_asks_for_the_recorded_series() -> None:
    (query,) = re.findall(r"__name__=~\"([^\"]+)\"", TEXT)
    assert all(re.fullmatch(query, name) for name in KNOWN)
