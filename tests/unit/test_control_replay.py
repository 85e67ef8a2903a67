"""``gridveil control replay``: what operators exported, turned into signals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.cli.totals import outcome_json
from gridveil.settlements import NotReleased, NotReleasedReason, ReleasedTotal
from tests.support.reports import CITY_ID, WINDOW, city_policy
from tests.support.totals import open_window

RUNNER = CliRunner()
KEY = SigningKey(b"k" * 32)
STRANGER = SigningKey(b"s" * 32)
RULES = "capacity_w = 1000\nhysteresis_w = 50\nramp_limit_w = 400\n"

Row = dict[str, Any]


def total(
    at: int, wh: int, *, enrolled: int = 5, signer: SigningKey = KEY, city_id: bytes = CITY_ID
) -> Row:
    """Five meters used so much together in a window."""
    policy, values = city_policy(city_id=city_id), [[wh // 5, 0]] * 5
    opened = open_window(policy, signer, WINDOW + at * 900, values, enrolled=enrolled)
    signed = opened.signed()
    return outcome_json(ReleasedTotal(opened.total, signed.total, signed.signature), {})


def gap(at: int, reason: NotReleasedReason = NotReleasedReason.REFUSED) -> Row:
    return outcome_json(NotReleased(WINDOW + at * 900, reason), {})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "control.toml").write_text(RULES)
    (tmp_path / "profile.toml").write_text(
        f'city_id = "{CITY_ID.hex()}"\nidentity_key = "{bytes(KEY.verify_key).hex()}"\n'
        '[tls]\nca = "ca"\ncertificate = "cert"\nkey = "key"\n'
    )
    return tmp_path


def replay(files: Path, text: str, *more: str) -> Any:
    (files / "totals.json").write_text(text)
    typed = ["--totals", str(files / "totals.json"), "--rules", str(files / "control.toml")]
    return RUNNER.invoke(app, ["control", "replay", *typed, *more], env={"COLUMNS": "200"})


def signals(files: Path, *rows: Row, more: tuple[str, ...] = ()) -> list[Row]:
    ended = replay(files, json.dumps(rows), "--json", *more)
    assert ended.exit_code == 0, ended.stderr
    return [entry["signal"] for entry in json.loads(ended.stdout)["signals"]]


def test_a_peak_raises_the_level_and_the_hold_time_keeps_it(files: Path) -> None:
    found = signals(files, *(total(n, wh) for n, wh in enumerate((150, 230, 260, 150, 150))))
    assert [signal["level"] for signal in found] == [0, 2, 3, 3, 0]
    assert found[2]["measured_w"] == 1040


def test_a_missing_window_holds_the_signal(files: Path) -> None:
    found = signals(files, total(0, 230), total(2, 230))
    assert [(s["level"], s["basis"], s["cause"]) for s in found] == [
        (2, "MEASURED", "CAPACITY"),
        (2, "HELD", "WAITING"),
        (2, "MEASURED", "CAPACITY"),
    ]
    assert found[1]["measured_w"] is None


@pytest.mark.parametrize("reason", list(NotReleasedReason))
def test_a_refused_window_holds_the_signal_and_says_why(
    files: Path, reason: NotReleasedReason
) -> None:
    held = signals(files, total(0, 230), gap(1, reason))[1]
    assert (held["level"], held["basis"], held["cause"]) == (2, "HELD", "NOT_RELEASED")
    assert (held["reason"], held["measured_w"]) == (reason.value, None)


def test_stale_totals_end_in_the_neutral_signal(files: Path) -> None:
    found = signals(files, total(0, 230), more=("--until", str(WINDOW + 8 * 900)))
    assert [signal["level"] for signal in found] == [2, 2, 2, 2, 2, 2, 0, 0]
    assert [signal["cause"] for signal in found[1:]] == ["WAITING"] + ["STALE"] * 6
    assert found[-1]["basis"] == "NEUTRAL"


def test_missing_meters_are_estimated_and_labelled(files: Path) -> None:
    (found,) = signals(files, total(0, 200, enrolled=6))
    assert (found["basis"], found["measured_w"], found["estimated_w"]) == ("ESTIMATED", 800, 960)


def test_the_same_totals_give_the_same_bytes_in_either_form_and_any_order(files: Path) -> None:
    rows = [total(0, 150), gap(1), total(2, 230)]
    forms = (json.dumps(rows), json.dumps(rows[::-1]), "".join(json.dumps(r) + "\n" for r in rows))
    outputs = {replay(files, text, "--json").stdout for text in forms}
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())["signals"]) == 3


def test_the_table_shows_each_window_and_that_nobody_checked_signatures(files: Path) -> None:
    ended = replay(files, json.dumps([total(0, 230), gap(1)]))
    assert ended.exit_code == 0
    assert "NOT_RELEASED (REFUSED)" in ended.stdout
    assert "920" in ended.stdout
    assert "signatures not checked" in ended.stderr


def test_with_a_profile_signatures_are_checked(files: Path) -> None:
    profile = ("--profile", str(files / "profile.toml"))
    ended = replay(files, json.dumps([total(0, 230)]), "--json", *profile)
    assert json.loads(ended.stdout)["signatures_checked"] is True


@pytest.mark.parametrize("lie", [{"signer": STRANGER}, {"city_id": bytes(16)}])
def test_a_total_of_another_key_holder_or_city_is_refused(files: Path, lie: Row) -> None:
    profile = ("--profile", str(files / "profile.toml"))
    ended = replay(files, json.dumps([total(0, 230, **lie)]), *profile)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("KEY_NOT_PINNED: ")


def altered(change: Callable[[Row], object]) -> str:
    row = total(0, 230)
    change(row)
    return json.dumps([row])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (altered(lambda row: row["registers"][0].update(sum=1)), "DIGEST_MISMATCH"),
        (altered(lambda row: row.update(window_start=0)), "DIGEST_MISMATCH"),
        (altered(lambda row: row.update(signed_total="00")), "MALFORMED_MESSAGE"),
        (altered(lambda row: row.update(signed_total="no")), "MALFORMED_MESSAGE"),
        (altered(lambda row: row.update(status="maybe")), "MALFORMED_MESSAGE"),
        (json.dumps([gap(0) | {"window_start": -900}]), "MALFORMED_MESSAGE"),
        (json.dumps([gap(0) | {"reason": "BORED"}]), "MALFORMED_MESSAGE"),
        (json.dumps([gap(0), gap(0)]), "RANGE_INVALID"),
        (json.dumps([gap(0), gap(1_000_001)]), "RANGE_INVALID"),
        (json.dumps([gap(0), gap(1) | {"window_start": WINDOW + 1}]), "WINDOW_MISALIGNED"),
        ("[" * 100_000, "MALFORMED_MESSAGE"),
        ("{}\nnull", "MALFORMED_MESSAGE"),
        ("\x00", "MALFORMED_MESSAGE"),
    ],
)
def test_a_file_that_is_not_what_was_exported_is_refused_in_one_line(
    files: Path, text: str, reason: str
) -> None:
    ended = replay(files, text)
    assert ended.exit_code in {2, 4}
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"{reason}: ")
    assert ended.stderr.count("\n") == 1


def test_rules_for_another_register_are_refused(files: Path) -> None:
    (files / "control.toml").write_text(RULES + 'register = "water_l"\n')
    ended = replay(files, json.dumps([total(0, 230)]))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("CONFIG_INVALID: ")


def test_totals_of_other_windows_than_the_rules_are_refused(files: Path) -> None:
    (files / "control.toml").write_text(RULES + "window_length = 300\n")
    ended = replay(files, json.dumps([total(0, 230)]))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("CONFIG_INVALID: ")


def test_totals_of_two_cities_are_refused_also_without_a_profile(files: Path) -> None:
    ended = replay(files, json.dumps([total(0, 230), total(1, 230, city_id=bytes(16))]))
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("KEY_NOT_PINNED: ")


def test_a_file_above_128_mib_is_refused(files: Path) -> None:
    replay(files, "")
    with (files / "totals.json").open("r+b") as file:
        file.truncate(128 * 2**20 + 1)
    typed = ["--totals", str(files / "totals.json"), "--rules", str(files / "control.toml")]
    ended = RUNNER.invoke(app, ["control", "replay", *typed])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("MESSAGE_TOO_LARGE: ")


def test_no_totals_are_no_signals(files: Path) -> None:
    assert signals(files) == []


def test_openadr_objects_come_with_the_signals_when_asked_for(files: Path) -> None:
    rows = json.dumps([total(0, 150), gap(1)])
    ended = replay(files, rows, "--json", "--program", "city-dr", "--report", "event-7")
    found = json.loads(ended.stdout)
    payloads = [row["events"][0]["intervals"][0]["payloads"][0] for row in found["signals"]]
    assert payloads == [{"type": "SIMPLE", "values": [0]}] * 2
    qualities = [
        interval["payloads"][-1]["values"]
        for interval in found["report"]["resources"][0]["intervals"]
    ]
    assert qualities == [["OK"], ["MISSING"]]
    assert "events" not in json.loads(replay(files, rows, "--json").stdout)["signals"][0]
