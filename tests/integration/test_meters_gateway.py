"""A home's gateway: what the telegrams measured is reported once, whatever stops it in between."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.meter import Meter, MeterKeys, State
from gridveil.meters.dlms import PushKeys, PushReader, PushRules
from gridveil.meters.gateway import Fate, HomeGateway, News, check_registers
from gridveil.meters.intervals import Cause, Rules
from gridveil.meters.p1 import TelegramReader
from gridveil.meters.registers import P1_REGISTERS, parse_registers
from gridveil.meters.state import StateFile
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
)
from gridveil_services.rpc import Role
from tests.support.clients import LeapingClock
from tests.support.epochs import city_keys
from tests.support.pushes import (
    AUTHENTICATION,
    ENCRYPTION,
    ciphered,
    notification,
    objects,
    stamp,
)
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import CITY_ID, WINDOW
from tests.support.telegrams import SERIAL, telegram

KEYS = MeterKeys.create()
Q = 900
READER = TelegramReader(P1_REGISTERS)


class Home:
    """A gateway that can be stopped at any point and started again."""

    def __init__(self, folder: Path, receiver: Receiver, certificates: Certificates) -> None:
        self.folder = folder
        self.receiver = receiver
        self.certificates = certificates
        self.clock = LeapingClock(WINDOW)
        receiver.clock = self.clock
        self.news: list[News] = []
        self.address = ""

    def __enter__(self) -> HomeGateway:
        profile = self.certificates.profile(Role.METER, self.receiver.keys, self.address)
        self.meter = Meter.open(
            profile,
            keys=KEYS,
            outbox=self.folder / "outbox.db",
            clock=self.clock,
            draw=lambda: 0.1,
        )
        self.state = StateFile(self.folder / "outbox.db.registers", KEYS.meter_id)
        rules = Rules(Q, P1_REGISTERS)
        self.gateway = HomeGateway(self.meter, self.state, self.clock, rules, self._told)
        return self.gateway

    def __exit__(self, *_: object) -> None:
        self.meter.close()

    def _told(self, news: News | GridveilError) -> None:
        assert isinstance(news, News)
        self.news.append(news)

    def hear(self, at: int, wh: int, *, serial: str = SERIAL, live: bool = True) -> None:
        """A telegram so many seconds after the first window began, as it is heard."""
        self.clock.sleep(WINDOW + at - self.clock.now())
        heard = self.clock.now() if live else None
        text = telegram(WINDOW + at, wh, serial=serial).decode()
        self.gateway.take(READER.read(text, heard))

    def drain(self) -> None:
        self.gateway.drain(wait=False)

    def settle(self) -> None:
        """Time passes until every report has had its answer."""
        while (due := self.meter.next_due()) is not None:
            self.clock.sleep(due - self.clock.now())
            self.meter.submit_due()

    def sums(self) -> dict[int, list[int]]:
        """What the accepted reports hold, by window from the first on."""
        return {
            (window - WINDOW) // Q: self.receiver.keys.open_report(report, KEYS.member)[0]
            for (window, _), report in self.receiver.accepted.items()
        }


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    receiver = Receiver(city_keys(), LeapingClock(WINDOW))
    certificates = Certificates.make(tmp_path, CITY_ID)
    made = Home(tmp_path, receiver, certificates)
    with serving(receiver, certificates) as address:
        made.address = address
        yield made


def fates(home: Home) -> list[tuple[int, Fate, str | None]]:
    return [((one.start - WINDOW) // Q, one.fate, one.why) for one in home.news]


def test_measured_windows_are_reported_and_others_are_not(home: Home) -> None:
    with home:
        for at, wh in [(0, 100), (Q, 150), (2 * Q, 150), (2 * Q + 100, 160), (4 * Q, 900)]:
            home.hear(at, wh)
            home.drain()
            home.settle()
        assert {status.state for status in home.meter.status()} == {State.SETTLED}
    assert home.sums() == {0: [50, 0], 1: [0, 0]}
    assert fates(home) == [
        (0, Fate.RECORDED, None),
        (1, Fate.RECORDED, None),
        (2, Fate.ESTIMATED, None),
        (3, Fate.ESTIMATED, None),
    ]


def test_a_restart_within_a_window_loses_no_energy(home: Home) -> None:
    with home:
        home.hear(0, 100)
        home.hear(300, 117)
    with home:
        home.hear(600, 130)
    with home:
        home.hear(Q + 2, 150)
        home.drain()
        home.settle()
    assert home.sums() == {0: [50, 0]}


def test_a_crash_before_the_outbox_says_the_same_and_not_what_a_later_telegram_says(
    home: Home,
) -> None:
    with home:
        home.hear(0, 100)
        home.hear(Q + 2, 150)
        # Killed here: the state is on disk, the outbox has heard of nothing.
    with home:
        home.hear(Q + 12, 154)
        home.drain()
        home.settle()
        home.hear(2 * Q, 200)
        home.drain()
        home.settle()
    assert home.sums() == {0: [50, 0], 1: [50, 0]}


def test_a_crash_after_the_outbox_records_nothing_twice(home: Home) -> None:
    with home:
        home.hear(0, 100)
        home.hear(Q, 150)
        before = home.state.path.read_bytes()
        home.drain()
    home.state.path.write_bytes(before)
    with home:
        home.drain()
        home.settle()
    assert home.sums() == {0: [50, 0]}
    assert len({report.claim.digest() for report in home.receiver.seen}) == 1
    home.state.path.write_bytes(before)
    home.clock.sleep(Q)
    with home:
        home.drain()
    assert [fate for _, fate, _ in fates(home)] == [Fate.RECORDED] * 3


def test_what_the_outbox_holds_for_a_window_stands(home: Home) -> None:
    with home:
        home.hear(0, 100)
        home.clock.sleep(Q)
        home.meter.record(WINDOW, import_wh=7, export_wh=0)
        home.hear(Q + 5, 150)
        home.drain()
        home.settle()
    assert home.sums() == {0: [7, 0]}
    assert fates(home) == [(0, Fate.REFUSED, Reason.EQUIVOCATION)]


def test_another_meter_is_never_subtracted_from_the_one_before_it_even_over_a_restart(
    home: Home,
) -> None:
    with home:
        home.hear(0, 100)
    with home:
        home.hear(400, 9_000_000, serial="5555")
        home.hear(Q, 9_000_010, serial="5555")
        home.hear(2 * Q, 9_000_030, serial="5555")
        home.drain()
        home.settle()
    assert home.sums() == {1: [20, 0]}
    assert fates(home) == [(0, Fate.MISSING, "replaced"), (1, Fate.RECORDED, None)]


def test_more_than_the_citys_bound_is_refused_and_the_next_window_counts(home: Home) -> None:
    bound = home.receiver.keys.parameters.policy.registers[0].bound
    assert bound < 400_000
    with home:
        home.hear(0, 100)
        home.hear(Q, 101 + bound)
        home.hear(2 * Q, 111 + bound)
        home.drain()
        home.settle()
    assert home.sums() == {1: [10, 0]}
    assert fates(home)[0] == (0, Fate.REFUSED, Reason.READING_INVALID)


def test_a_live_meter_whose_clock_is_wrong_is_not_believed(home: Home) -> None:
    with home:
        home.hear(0, 100)
        home.clock.sleep(61)
        text = telegram(WINDOW, 100).decode()
        with pytest.raises(MalformedInput, match="clock is wrong") as refused:
            home.gateway.take(READER.read(text, home.clock.now()))
        assert refused.value.metadata == {"fault": "clock"}


def test_a_recorded_window_that_is_closed_is_late_and_not_sent(home: Home) -> None:
    home.clock.sleep(10 * Q)
    with home:
        home.hear(0, 100, live=False)
        home.hear(Q, 150, live=False)
        home.gateway.drain(wait=True)
    assert fates(home) == [(0, Fate.LATE, None)]
    assert home.receiver.seen == []


def test_the_kept_registers_are_their_owners_alone_and_hold_no_serial_number(home: Home) -> None:
    with home:
        home.hear(0, 100)
    path = home.state.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert SERIAL not in text
    assert bytes.fromhex(SERIAL).decode() not in text
    assert re.search(r'"1-0:1\.8\.1":100\b', text)


def hear_push(home: Home, at: int, wh: int, counter: int) -> None:
    """A protected push so many seconds after the first window began, as it is heard."""
    home.clock.sleep(max(0.0, WINDOW + at - home.clock.now()))
    registers = dict.fromkeys(P1_REGISTERS.codes, 0) | {"1-0:1.8.1": wh}
    apdu = ciphered(notification(objects(stamp(WINDOW + at), registers)), counter)
    reading = PushReader(P1_REGISTERS, PushRules(PushKeys(ENCRYPTION, AUTHENTICATION))).read(
        apdu, home.clock.now()
    )
    assert reading is not None
    home.gateway.take(reading)


def test_a_push_that_was_there_is_refused_also_over_a_restart_and_the_next_one_counts(
    home: Home,
) -> None:
    with home:
        hear_push(home, 0, 100, 7)
        for counter in (7, 6, 0):
            with pytest.raises(MalformedInput, match="did not rise") as refused:
                hear_push(home, 10, 999, counter)
            assert refused.value.metadata == {"fault": "replay"}
    with home:
        with pytest.raises(MalformedInput, match="did not rise"):
            hear_push(home, 20, 999, 7)
        hear_push(home, Q, 150, 8)
        home.drain()
        home.settle()
    assert home.sums() == {0: [50, 0]}


def test_a_push_that_was_held_back_is_refused_by_its_clock_and_its_counter_counts_for_nothing(
    home: Home,
) -> None:
    with home:
        hear_push(home, 0, 100, 7)
        home.clock.sleep(200)
        with pytest.raises(MalformedInput) as refused:
            hear_push(home, 10, 110, 90)
        assert refused.value.metadata == {"fault": "clock"}
        hear_push(home, Q, 150, 8)
        home.drain()
        home.settle()
    assert home.sums() == {0: [50, 0]}


def test_a_register_that_stands_still_is_told_and_its_windows_are_sent(home: Home) -> None:
    with home:
        for window in range(97):
            home.hear(window * Q, 100 + 7 * window)
            home.drain()
            home.settle()
    assert {one.fate for one in home.news} == {Fate.RECORDED}
    assert len(home.sums()) == 96
    still = [(one.start - WINDOW) // Q for one in home.news if one.still]
    assert still == [95]
    assert home.news[-1].still == {"import_wh"}


def test_a_gap_begins_the_day_of_a_register_that_stands_still_anew(home: Home) -> None:
    with home:
        for window in (*range(90), *range(92, 102)):
            home.hear(window * Q, 100 + 7 * window)
            home.drain()
            home.settle()
    assert [one.fate for one in home.news].count(Fate.RECORDED) == 89 + 9
    assert not any(one.still for one in home.news)


@pytest.mark.parametrize("spoilt", [b"", b"{}", b"\xff", b"[1]", b'{"format":2}'])
def test_kept_registers_that_are_damaged_stop_it(home: Home, spoilt: bytes) -> None:
    with home:
        home.hear(0, 100)
    home.state.path.write_bytes(spoilt)
    with pytest.raises(IntegrityLost, match="kept registers"):
        home.state.load()


def test_the_kept_registers_of_another_meter_are_refused(home: Home) -> None:
    with home:
        home.hear(0, 100)
    with pytest.raises(MalformedInput, match="another meter's"):
        StateFile(home.state.path, bytes(16)).load()


def test_what_the_city_asks_is_known_without_it_after_the_first_time(home: Home) -> None:
    with home:
        asked = home.meter.policy()
    home.address = "127.0.0.1:1"
    with home:
        assert home.meter.policy() == asked
        home.hear(0, 100)
        home.hear(Q, 150)
        home.drain()
        assert fates(home) == [(0, Fate.RECORDED, None)]


def test_the_document_lists_every_fate_and_cause() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "meters.md").read_text("utf-8")
    assert {fate.value for fate in Fate} == set(re.findall(r"^\| `(\w+)` \|", page, re.M))
    for cause in Cause:
        assert f"`{cause}`" in page
    for line in re.findall(r"^20\S+Z  (.*)$", page, re.M):
        fate, _, why = line.partition(": ")
        assert fate in set(Fate)
        assert not why or why in set(Cause)


def test_registers_that_are_not_the_citys_are_named(home: Home) -> None:
    policy = home.receiver.keys.parameters.policy
    check_registers(policy, P1_REGISTERS)
    with pytest.raises(MalformedInput, match="--register is needed for export_wh"):
        check_registers(policy, parse_registers(["import_wh=1-0:1.8.0"]))
    more = ["import_wh=1-0:1.8.0", "export_wh=1-0:2.8.0", "a_varh=1-0:3.8.0"]
    with pytest.raises(MalformedInput, match="no register a_varh"):
        check_registers(policy, parse_registers(more))
