"""The controller's gRPC service, its clients, and what a restart changes: nothing."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, closing, suppress
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import grpc
import pytest
from typer.testing import CliRunner

from gridveil.cli.app import app
from gridveil.control import Basis, ControlSignal, Delivery, ForecastMethod
from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.v1 import controller_pb2, controller_pb2_grpc
from gridveil.transport import connect, from_rpc_error
from gridveil_services.controller.config import ControllerConfig
from gridveil_services.controller.serve import JOURNAL_FILE, ControllerProcess
from gridveil_services.rpc import Role
from tests.support.controllers import LENGTH, RULES, SETTLE_S, ControlledCity

RUNNER = CliRunner()


@pytest.fixture
def city(tmp_path: Path) -> Iterator[ControlledCity]:
    with ControlledCity.create(tmp_path) as made:
        yield made


def journal(city: ControlledCity) -> Path:
    return city.paths.role("controller") / "state" / JOURNAL_FILE


def typed(city: ControlledCity, *words: str) -> Any:
    profile = ["--profile", str(city.paths.profile("operator"))]
    return RUNNER.invoke(app, ["control", *words, *profile], env={"COLUMNS": "200"})


def replayed(path: Path) -> tuple[int, list[dict[str, Any]]]:
    ended = RUNNER.invoke(app, ["control", "replay", "--journal", str(path), "--json"])
    return ended.exit_code, json.loads(ended.stdout)["signals"]


def busy(city: ControlledCity) -> None:
    """Something of everything."""
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    city.refuse(1)
    city.until(lambda signal: signal.reason == "REFUSED")
    city.release(2, 800_000, count=90)
    city.until(lambda signal: signal.basis is Basis.ESTIMATED)
    city.pass_to(city.window(9))


def await_watcher(city: ControlledCity) -> None:
    """Until somebody watches: what is signalled before is not new to them."""
    assert city.controller is not None
    supervisor = city.controller.server._supervisor
    deadline = time.monotonic() + 20
    while "WatchSignals" not in {call.method.name for call in supervisor.calls()}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def plain(signal: ControlSignal) -> dict[str, Any]:
    return {
        "at": signal.at,
        "window_start": signal.window_start,
        "level": signal.level,
        "basis": signal.basis.value,
        "cause": signal.cause,
        "measured_w": signal.measured_w,
        "estimated_w": signal.estimated_w,
        "ramp_w": signal.ramp_w,
        "reason": signal.reason,
    }


def test_the_rules_are_those_of_the_operators_file(city: ControlledCity) -> None:
    with city.client() as client:
        rules = client.rules()
    assert (rules.capacity_w, rules.hysteresis_w) == (RULES["capacity_w"], RULES["hysteresis_w"])
    assert rules.thresholds_w == (850_000, 920_000, 1_000_000)
    assert (rules.register, rules.window_length, rules.time_zone) == ("import_wh", LENGTH, "UTC")


def test_a_watch_gives_each_signal_once_in_order_from_a_time_on(city: ControlledCity) -> None:
    busy(city)
    everything = city.signals()

    assert [signal.number for signal in everything] == list(range(1, len(everything) + 1))
    since = everything[3].at
    with city.client() as client:
        found = list(islice(client.watch(since), len(everything) - 3))
    assert found == everything[3:]


def test_a_watch_goes_on_where_it_was_when_the_controller_comes_back(
    city: ControlledCity,
) -> None:
    busy(city)
    before = city.signals()
    failed: list[GridveilError] = []
    with city.client() as client, closing(client.watch(1, on_failure=failed.append)) as watching:
        assert list(islice(watching, len(before))) == before
        city.stop_controller()
        city.publish(city.record(9, 700_000))
        city.clock.move_to(city.window(10) + SETTLE_S)
        city.start_controller()
        after = next(watching)
    assert failed
    assert after.number == len(before) + 1
    assert (after.window_start, after.measured_w) == (city.window(9), 700_000)


def test_a_watch_for_new_signals_misses_none_over_a_restart(city: ControlledCity) -> None:
    busy(city)
    newest = city.signals()[-1]
    watched: list[ControlSignal] = []
    away = threading.Event()
    with city.client() as client:

        def watch() -> None:
            with suppress(GridveilError):
                watching = client.watch(on_failure=lambda _: away.set())
                watched.extend(islice(watching, 2))

        thread = threading.Thread(target=watch)
        thread.start()
        await_watcher(city)
        city.pass_to(city.window(10))
        city.until_time(city.window(10))
        city.stop_controller()
        assert away.wait(20)
        city.clock.move_to(city.window(11))
        city.start_controller()
        thread.join(20)
    assert [signal.number for signal in watched] == [newest.number + 1, newest.number + 2]


async def test_the_asyncio_client_sees_the_same(city: ControlledCity) -> None:
    await asyncio.to_thread(busy, city)
    everything = await asyncio.to_thread(city.signals)
    async with city.async_client("auditor") as client:
        assert await client.signal() == everything[-1]
        assert (await client.rules()).capacity_w == RULES["capacity_w"]
        found = []
        async with aclosing(client.watch(1)) as watching:
            async for signal in watching:
                found.append(signal)
                if len(found) == len(everything):
                    break
    assert found == everything


async def test_the_asyncio_client_goes_on_where_it_was_when_the_controller_comes_back(
    city: ControlledCity,
) -> None:
    await asyncio.to_thread(busy, city)
    before = await asyncio.to_thread(city.signals)
    newest = before[-1]
    async with (
        city.async_client() as client,
        aclosing(client.watch(newest.at)) as watching,
    ):
        assert await anext(watching) == newest
        await asyncio.to_thread(city.stop_controller)
        city.clock.move_to(city.window(10))
        await asyncio.to_thread(city.start_controller)
        after = await asyncio.wait_for(anext(watching), 20)
    assert after.number == newest.number + 1


async def test_a_forecast_is_told_with_what_came_before(city: ControlledCity) -> None:
    await asyncio.to_thread(busy, city)
    async with city.async_client() as client:
        found = await client.forecast(date(2026, 1, 2))
    assert (found.day, len(found.points)) == (date(2026, 1, 2), 96)
    # A total of 90 in 100 meters is shown as it was released; a refused window has no figure.
    assert [point.yesterday_w for point in found.points[:4]] == [930_000, None, 800_000, None]


def test_the_operators_record_is_read_at_the_start(city: ControlledCity) -> None:
    city.stop_controller()
    (city.paths.role("controller") / "history.csv").write_text(
        f"window_start,wh\n{city.window(-7 * 96)},100000\n"
    )
    city.configure('history = "history.csv"\n')
    city.start_controller()

    with city.client() as client:
        found = client.forecast(date(2026, 1, 1))

    assert found.method is ForecastMethod.LAST_WEEK
    assert [point.expected_w for point in found.points[:2]] == [400_000, None]
    assert found.points[0].last_week_w == 400_000


def test_totals_without_the_register_of_the_rules_are_not_acted_on(
    city: ControlledCity, capfd: pytest.CaptureFixture[str]
) -> None:
    city.stop_controller()
    shutil.rmtree(journal(city).parent)
    city.write_rules(register='"gas_wh"')
    city.start_controller()
    city.release(0, 930_000)
    told, deadline = "", time.monotonic() + 20
    while "CONFIG_INVALID" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        told += capfd.readouterr().err

    assert {signal.basis for signal in city.signals()} == {Basis.NEUTRAL}
    assert city.controller is not None
    assert not city.controller.server.conditions()["totals"]


def test_a_restart_changes_no_signal(city: ControlledCity) -> None:
    busy(city)
    before = city.signals()

    city.stop_controller()
    city.start_controller()

    assert city.signals() == before


def test_what_was_settled_meanwhile_is_signalled_before_the_next_is_shown(
    city: ControlledCity,
) -> None:
    city.release(0, 1_100_000)
    city.until(lambda signal: signal.level == 3)
    city.stop_controller()
    city.publish(*(city.record(at, 500_000) for at in range(1, 9)))
    city.clock.move_to(city.window(9) + SETTLE_S)

    city.start_controller()

    with city.client() as client:
        signal = client.signal()
    assert (signal.window_start, signal.level, signal.basis) == (
        city.window(8),
        0,
        Basis.MEASURED,
    )
    late = [s for s in city.signals() if s.cause == "LATE"]
    assert [s.window_start for s in late] == [city.window(at) for at in range(1, 7)]


def test_after_a_long_absence_no_old_signal_is_shown(city: ControlledCity) -> None:
    city.release(0, 1_100_000)
    city.until(lambda signal: signal.level == 3)
    city.stop_controller()
    city.stop_totals()
    city.clock.move_to(city.window(30))

    city.start_controller()

    with city.client() as client:
        signal = client.signal()
    assert (signal.level, signal.basis, signal.at) == (0, Basis.NEUTRAL, city.window(30))


def test_the_journal_replays_to_what_was_shown(city: ControlledCity) -> None:
    busy(city)
    shown = [plain(signal) for signal in city.signals()]
    city.stop_controller()

    code, found = replayed(journal(city))

    assert code == 0
    assert [one["signal"] for one in found] == shown
    assert all(one["as_shown"] for one in found)


def test_a_replay_goes_by_the_rules_that_were_in_force(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until(lambda signal: signal.level == 2)
    city.stop_controller()
    city.write_rules(capacity_w=2_000_000)
    city.start_controller()
    city.release(1, 930_000)
    city.until_window(1)
    shown = [plain(signal) for signal in city.signals()]
    city.stop_controller()

    code, found = replayed(journal(city))

    assert (code, [one["signal"] for one in found]) == (0, shown)


def test_a_replay_tells_when_another_signal_was_shown(city: ControlledCity) -> None:
    busy(city)
    city.stop_controller()
    with closing(apsw.Connection(str(journal(city)))) as database:
        query = "SELECT number, signal FROM journal ORDER BY number"
        rows: list[Any] = database.execute(query).fetchall()
        number, signal = next(row for row in rows if b'"level":2' in row[1])
        changed = signal.replace(b'"level":2', b'"level":1')
        database.execute("UPDATE journal SET signal = ? WHERE number = ?", (changed, number))

    ended = RUNNER.invoke(app, ["control", "replay", "--journal", str(journal(city))])

    assert ended.exit_code == 1
    assert "1 signals were others" in ended.stderr


def test_a_journal_in_use_is_not_replayed(city: ControlledCity) -> None:
    ended = RUNNER.invoke(app, ["control", "replay", "--journal", str(journal(city))])
    assert ended.exit_code == 3


def test_the_totals_of_a_running_city_replay_to_the_same_signals(city: ControlledCity) -> None:
    city.release(0, 930_000)
    city.until_window(0)
    city.release(1, 1_150_000, count=95)
    city.until_window(1)
    city.refuse(2)
    city.until_window(2)
    city.release(3, 870_000)
    city.until_window(3)
    city.release(4, 500_000, count=60)
    city.until_window(4)
    told = RUNNER.invoke(
        app, ["totals", "list", "--json", "--profile", str(city.paths.profile("operator"))]
    )
    totals = city.paths.folder / "totals.json"
    totals.write_text(told.stdout)
    rules = str(city.paths.role("controller") / "control.toml")

    ended = typed(
        city, "replay", "--totals", str(totals), "--rules", rules, "--settle", str(SETTLE_S),
        "--json",
    )  # fmt: skip

    replayed = [one["signal"] for one in json.loads(ended.stdout)["signals"]]
    shown = [plain(s) for s in city.signals() if s.cause not in {"WAITING", "STALE", "NO_TOTAL"}]
    assert replayed == shown
    assert {signal["basis"] for signal in shown} == {"MEASURED", "ESTIMATED", "HELD"}


def test_the_command_shows_the_signal_that_stands(city: ControlledCity) -> None:
    city.release(0, 800_000, count=80)
    city.until(lambda signal: signal.basis is Basis.ESTIMATED)

    shown, machine = typed(city, "signal"), typed(city, "signal", "--json")

    assert shown.stdout == (
        "2026-01-01T00:20:20Z  level 3  ESTIMATED CAPACITY  window 2026-01-01T00:00:00Z"
        "  1,000,000 W estimated  800,000 W measured\n"
    )
    found = json.loads(machine.stdout)
    assert (found["level"], found["estimated_w"], found["ramp_w"]) == (3, 1_000_000, None)


def test_the_command_watches_from_a_time_on(city: ControlledCity) -> None:
    busy(city)
    everything = city.signals()

    ended = typed(city, "watch", "--from", "1", "--count", str(len(everything)), "--json")

    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["number"] for one in found] == [signal.number for signal in everything]


class EnoughSaid(Exception):
    """A watch has no end of its own."""


def test_the_sample_of_the_manual_does_what_it_says(
    city: ControlledCity, monkeypatch: pytest.MonkeyPatch
) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "control.md").read_text("utf-8")
    (sample,) = re.findall(r"^```python\n(.*?)^```$", manual, re.M | re.S)
    city.release(0, 930_000)
    city.until(lambda signal: signal.basis is Basis.MEASURED)
    told: list[tuple[object, ...]] = []

    def show(*words: object) -> None:
        told.append(words)
        if len(told) == 2:
            raise EnoughSaid

    monkeypatch.chdir(city.paths.folder.parent)
    with pytest.raises(EnoughSaid):
        exec(sample, {"print": show})  # noqa: S102 - the point of the test

    assert told == [(2, "MEASURED", "CAPACITY"), (city.clock.now(), 2, 930_000)]


def test_events_for_a_program_are_shown_though_nobody_is_sent_them(tmp_path: Path) -> None:
    with ControlledCity.create(
        tmp_path, start=False, sites_w="{ works = 300_000 }", sites_share_w=150_000
    ) as city:
        city.add_section('\n[vtn]\nprogram_id = "city-dr"\n')
        city.start_totals()
        city.start_controller()
        city.release(0, 1_100_000)

        signal = city.until(lambda signal: signal.level == 3)

        level, limit = (json.loads(one.json) for one in signal.openadr)
        assert {one.delivery for one in signal.openadr} == {Delivery.NOT_SENT}
        assert level["programID"] == "city-dr"
        assert level["intervals"][0]["payloads"] == [{"type": "SIMPLE", "values": [3]}]
        assert limit["targets"] == ["works"]
        assert {level["eventName"], limit["eventName"]} == {
            level["eventName"],
            level["eventName"] + "-1",
        }
        assert level["eventName"].endswith(f"-{signal.number}")


def test_without_a_program_there_are_no_events(city: ControlledCity) -> None:
    city.release(0, 1_100_000)
    assert city.until(lambda signal: signal.level == 3).openadr == ()


@pytest.mark.parametrize("role", list(Role))
def test_only_operators_and_auditors_may_ask(city: ControlledCity, role: Role) -> None:
    profile, folder = Profile.load(city.paths.profile("operator")), city.paths.tls(role)
    tls = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    address = profile.endpoint("controller")
    with connect(address, "controller", profile.city_id, tls) as channel:
        stub = controller_pb2_grpc.ControllerStub(channel)
        calls = (
            lambda: stub.GetSignal(controller_pb2.GetSignalRequest()),
            lambda: next(stub.WatchSignals(controller_pb2.WatchSignalsRequest(**{"from": 1}))),
            lambda: stub.GetRules(controller_pb2.GetRulesRequest()),
            lambda: stub.GetForecast(controller_pb2.GetForecastRequest(day="2026-01-01")),
        )
        for call in calls:
            if role in {Role.OPERATOR, Role.AUDITOR}:
                call()
                continue
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert from_rpc_error(refused.value).reason is Reason.ROLE_NOT_ALLOWED


def test_a_time_before_all_time_is_refused(city: ControlledCity) -> None:
    with city.client() as client, pytest.raises(MalformedInput) as refused:
        next(client.watch(-1))
    assert refused.value.reason is Reason.FIELD_RANGE


def test_missing_rules_are_named_at_the_start(city: ControlledCity) -> None:
    city.stop_controller()
    (city.paths.role("controller") / "control.toml").unlink()

    with pytest.raises(MalformedInput, match=r"control\.toml does not exist") as refused:
        ControllerConfig.load(city.config_file)
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_rules_for_other_windows_need_a_journal_of_their_own(city: ControlledCity) -> None:
    city.stop_controller()
    city.write_rules(window_length=1_800)

    with pytest.raises(MalformedInput, match="another state folder"):
        ControllerProcess(ControllerConfig.load(city.config_file), city.clock)


def test_two_controllers_do_not_share_a_journal(city: ControlledCity) -> None:
    with pytest.raises(GridveilError) as refused:
        ControllerProcess(ControllerConfig.load(city.config_file), city.clock)
    assert refused.value.reason is Reason.STORE_UNAVAILABLE


def test_a_city_without_a_controller_has_no_address_of_one(tmp_path: Path) -> None:
    ports = "keyholder=7001,aggregator=7002,totals=7003"
    ended = RUNNER.invoke(app, ["init", str(tmp_path / "city"), "--ports", ports])
    assert ended.exit_code == 0
    assert "control serve" not in ended.stdout
    assert not (tmp_path / "city" / "controller" / "controller.toml").exists()
    assert "controller" not in Profile.load(tmp_path / "city/operator/profile.toml").endpoints
