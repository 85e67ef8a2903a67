"""A release: the exact total, once, and the same answer for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.city import EntryAudience
from gridveil.protocol.commitment import Generators, add_points
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.release import ENTRY_BYTES
from gridveil.protocol.v1.keyholder_pb2 import EntryChunk, ReleaseMessage
from gridveil.protocol.windows import lane_of
from gridveil.verification import verify_total
from gridveil_services.keyholder.differencing import Difference
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.observer import Unobserved
from tests.support.keyholders import PreparedCity, prepare_city, refusal_of, state_of
from tests.support.reports import BuiltRelease, build_release, build_report


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


def lane_of_meter(city: PreparedCity, at: int) -> int:
    epoch_id = city.parameters.epoch.epoch_id
    return lane_of(epoch_id, city.window, city.meters[at].meter_id, city.release.header.lanes)


def test_an_honest_release_gives_the_exact_total(city: PreparedCity) -> None:
    with city.open() as keyholder:
        settled = keyholder.releases.release(city.release.messages())
        assert not settled.replayed
        assert keyholder.ring.decryptions(city.window) == 1
    total = city.totals()[city.window]
    assert tuple(register.sum for register in total.registers) == city.truth
    assert total.count == total.enrolled == len(city.meters)
    assert total.release_digest == city.release.digest
    assert city.events() == ["intent", "released"]
    assert list((city.config.state / "spool").iterdir()) == []


def test_the_published_entries_verify_the_total(city: PreparedCity) -> None:
    with city.open() as keyholder:
        keyholder.releases.release(city.release.messages())
    roster = {meter.meter_id: meter.member for meter in city.meters}
    entries = (city.config.published / "entries" / str(city.window)).read_bytes()
    verified = verify_total(city.totals()[city.window], [entries], city.parameters, roster)
    assert verified.meters == len(city.meters)


def test_without_an_audience_no_entries_are_published(tmp_path: Path) -> None:
    city = prepare_city(tmp_path / "city", meters=100, entry_audience=EntryAudience.NOBODY)
    with city.open() as keyholder:
        keyholder.releases.release(city.release.messages())
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth
    assert list((city.config.published / "entries").iterdir()) == []


def test_today_s_stricter_audience_holds_for_older_epochs_too(city: PreparedCity) -> None:
    policy = replace(city.config.policy, entry_audience=EntryAudience.NOBODY)
    stricter = replace(city, config=replace(city.config, policy=policy))
    with stricter.open() as keyholder:
        keyholder.releases.release(city.release.messages())
    assert list((city.config.published / "entries").iterdir()) == []


def test_a_partial_cohort_is_counted_as_it_is(city: PreparedCity) -> None:
    some = city.reports[5:110]
    release = build_release(city.parameters, city.roster_version, some, enrolled=120)
    with city.open() as keyholder:
        keyholder.releases.release(release.messages())
    total = city.totals()[city.window]
    assert (total.count, total.enrolled) == (105, 120)
    assert total.sum("import_wh") == sum(300 + 7 * at for at in range(5, 110))


def test_lane_totals_up_to_the_bound_are_released(city: PreparedCity) -> None:
    lane = lane_of_meter(city, 7)
    others = [at for at in range(120) if lane_of_meter(city, at) == lane and at != 7]
    bound = 200_000 * (len(others) + 1)
    most = bound - sum(300 + 7 * at for at in others)
    report = build_report(city.parameters, city.meters[7], city.window, [most, 0])
    release = build_release(city.parameters, city.roster_version, city.reports_with(report))
    with city.open() as keyholder:
        keyholder.releases.release(release.messages())
    assert city.totals()[city.window].sum("import_wh") == city.truth[0] - (300 + 7 * 7) + most


def test_the_total_opens_the_commitments_that_were_published(city: PreparedCity) -> None:
    with city.open() as keyholder:
        keyholder.releases.release(city.release.messages())
    total = city.totals()[city.window]
    entries = (city.config.published / "entries" / str(city.window)).read_bytes()
    points = [entries[at - 32 : at] for at in range(228, len(entries) + 1, 228)]
    generators = Generators.derive(
        total.city_id, total.epoch_id, city.window, city.config.policy.register_names
    )
    sums = [register.sum for register in total.registers]
    assert generators.commit(sums, int.from_bytes(total.blinding, "little")) == add_points(points)


# The same answer again; the window is settled for ever.


def test_the_same_release_again_is_answered_from_memory(city: PreparedCity) -> None:
    with city.open() as keyholder:
        keyholder.releases.release(city.release.messages())
        before = state_of(city)
        again = keyholder.releases.release(iter([city.release.header_message()]))
        assert again.replayed
        assert keyholder.ring.decryptions(city.window) == 1
    with city.open(ManualClock(city.expires + 5)) as keyholder:
        assert keyholder.releases.release(iter([city.release.header_message()])).replayed
        assert keyholder.ring.decryptions(city.window) == 0
        assert keyholder.releases.progress(city.window, city.release.digest) is None
    assert state_of(city)[str(city.config.published / "log" / "records")].startswith(
        before[str(city.config.published / "log" / "records")]
    )
    assert city.events() == ["intent", "released"]


def test_another_cohort_of_a_released_window_is_refused(city: PreparedCity) -> None:
    fewer = build_release(city.parameters, city.roster_version, city.reports[1:], enrolled=120)
    with city.open() as keyholder:
        keyholder.releases.release(city.release.messages())
        assert refusal_of(keyholder, fewer).reason is Reason.WINDOW_PINNED
        assert keyholder.ring.decryptions(city.window) == 1


# Streams that break, come in pieces or in another order.


def test_a_broken_stream_is_resumed_where_it_broke(city: PreparedCity) -> None:
    size = 50 * ENTRY_BYTES
    with city.open() as keyholder:
        messages = list(city.release.messages(size=size))
        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(iter(messages[:5]))  # header, two lanes, two chunks
        assert refusal.value.reason is Reason.STREAM_PROTOCOL
        held = keyholder.releases.progress(city.window, city.release.digest)
        assert held == 2 * size
        assert keyholder.releases.progress(city.window, bytes(32)) == 0
        keyholder.releases.release(city.release.messages(offset=held))
    assert city.events() == ["intent", "released"]


def test_a_refused_chunk_does_not_count(city: PreparedCity) -> None:
    size = 50 * ENTRY_BYTES
    with city.open() as keyholder:
        messages = list(city.release.messages(size=size))
        bad = bytearray(messages[4].entries.entries)
        bad[-1] ^= 1
        broken = ReleaseMessage(entries=EntryChunk(offset=size, entries=bytes(bad)))
        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(iter([*messages[:4], broken]))
        assert refusal.value.reason is Reason.SIGNATURE_INVALID
        assert keyholder.releases.progress(city.window, city.release.digest) == size
        keyholder.releases.release(city.release.messages(offset=size))
    assert city.events() == ["intent", "released"]


def test_entries_are_held_across_a_restart_and_checked_anew(city: PreparedCity) -> None:
    size = 50 * ENTRY_BYTES
    with city.open() as keyholder, pytest.raises(GridveilError):
        keyholder.releases.release(iter(list(city.release.messages(size=size))[:5]))
    with city.open() as keyholder:
        assert keyholder.releases.progress(city.window, city.release.digest) == 2 * size
        keyholder.releases.release(city.release.messages(offset=2 * size))
    assert city.events() == ["intent", "released"]


@pytest.mark.parametrize("damage", ["torn", "changed", "header"])
def test_entries_that_a_crash_damaged_do_not_count(city: PreparedCity, damage: str) -> None:
    size = 50 * ENTRY_BYTES
    with city.open() as keyholder, pytest.raises(GridveilError):
        keyholder.releases.release(iter(list(city.release.messages(size=size))[:5]))
    (folder,) = (city.config.state / "spool").iterdir()
    entries = (folder / "entries").read_bytes()
    if damage == "torn":
        (folder / "entries").write_bytes(entries[: size + 100])
    elif damage == "changed":
        (folder / "entries").write_bytes(entries[: size + 9] + bytes(9) + entries[size + 18 :])
    else:
        (folder / "header").write_bytes(b"")
    with city.open() as keyholder:
        held = keyholder.releases.progress(city.window, city.release.digest)
        assert held is not None
        assert held <= size
        keyholder.releases.release(city.release.messages(offset=held))
    assert tuple(r.sum for r in city.totals()[city.window].registers) == city.truth


def test_until_a_window_is_claimed_another_release_takes_the_place(city: PreparedCity) -> None:
    fewer = build_release(city.parameters, city.roster_version, city.reports[1:], enrolled=120)
    with city.open() as keyholder:
        with pytest.raises(GridveilError):
            keyholder.releases.release(iter(list(city.release.messages())[:4]))
        keyholder.releases.release(fewer.messages())
        assert refusal_of(keyholder, city.release).reason is Reason.WINDOW_PINNED
    assert city.totals()[city.window].count == 119


def out_of_order(release: BuiltRelease) -> dict[str, list[ReleaseMessage]]:
    header, close = release.header_message(), release.close_message()
    lanes, chunks = list(release.lane_messages()), list(release.chunk_messages(size=9800))
    ragged = ReleaseMessage(entries=EntryChunk(offset=0, entries=release.entries[:100]))
    return {
        "nothing": [],
        "no header": [*lanes, *chunks, close],
        "two headers": [header, header, *lanes, *chunks, close],
        "lane after entries": [header, lanes[0], chunks[0], lanes[1], *chunks[1:], close],
        "no close": [header, *lanes, *chunks],
        "a chunk left out": [header, *lanes, chunks[0], *chunks[2:], close],
        "a chunk twice": [header, *lanes, chunks[0], chunks[0]],
        "not whole entries": [header, *lanes, ragged],
        "empty chunk": [header, *lanes, ReleaseMessage(entries=EntryChunk(offset=0)), close],
        "empty message": [header, *lanes, ReleaseMessage(), close],
    }


@pytest.mark.parametrize(
    "case",
    [
        "nothing",
        "no header",
        "two headers",
        "lane after entries",
        "no close",
        "a chunk left out",
        "a chunk twice",
        "not whole entries",
        "empty chunk",
        "empty message",
    ],
)
def test_messages_out_of_order_are_refused(city: PreparedCity, case: str) -> None:
    with city.open() as keyholder:
        before = state_of(city)
        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(iter(out_of_order(city.release)[case]))
        assert refusal.value.reason is Reason.STREAM_PROTOCOL
        assert state_of(city) == before


def test_only_one_release_of_a_window_is_worked_on_at_a_time(city: PreparedCity) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[ReleaseMessage]:
        yield city.release.header_message()
        reached.set()
        go_on.wait(30)
        yield from list(city.release.messages())[1:]

    with city.open() as keyholder:
        outcomes = []
        first = threading.Thread(target=lambda: outcomes.append(keyholder.releases.release(slow())))
        first.start()
        assert reached.wait(30)
        error = refusal_of(keyholder, city.release)
        assert error.reason is Reason.KEYHOLDER_UNAVAILABLE
        with pytest.raises(GridveilError):
            keyholder.releases.progress(city.window, city.release.digest)
        go_on.set()
        first.join()
        assert not outcomes[0].replayed
        assert keyholder.releases.release(city.release.messages()).replayed
        assert keyholder.ring.decryptions(city.window) == 1


# Time.


def test_a_window_that_nobody_released_expires(city: PreparedCity) -> None:
    clock = ManualClock(city.expires - 1)
    with city.open(clock) as keyholder:
        keyholder.upkeep.tick()
        assert city.events() == []
        clock.move_to(city.expires)
        keyholder.upkeep.tick()
        assert refusal_of(keyholder, city.release).reason is Reason.WINDOW_EXPIRED
        assert keyholder.releases.progress(city.window, city.release.digest) is None
        clock.move_to(city.expires + 1800)
        keyholder.upkeep.tick()
        assert keyholder.ledger.is_final(city.window + 1800)
        assert not keyholder.ledger.is_final(city.window - 900)
        assert not keyholder.ledger.is_final(city.window + 2700)
    assert city.events() == ["expired"]


def test_a_late_release_is_refused_before_the_expiry_is_logged(city: PreparedCity) -> None:
    clock = ManualClock(city.closes)
    with city.open(clock) as keyholder:
        clock.move_to(city.expires)
        assert refusal_of(keyholder, city.release).reason is Reason.WINDOW_EXPIRED
        assert keyholder.ring.decryptions(city.window) == 0


def test_what_came_in_for_an_expired_window_is_deleted(city: PreparedCity) -> None:
    clock = ManualClock(city.closes)
    with city.open(clock) as keyholder:
        with pytest.raises(GridveilError):
            keyholder.releases.release(iter(list(city.release.messages())[:4]))
        assert len(list((city.config.state / "spool").iterdir())) == 1
        keyholder.upkeep.tick()
        assert len(list((city.config.state / "spool").iterdir())) == 1
        clock.move_to(city.expires)
        keyholder.upkeep.tick()
        assert list((city.config.state / "spool").iterdir()) == []


def test_every_window_is_settled_after_a_long_stop(city: PreparedCity) -> None:
    with city.open(ManualClock(city.expires + 20 * 900)) as keyholder:
        final = [keyholder.ledger.is_final(city.window + at * 900) for at in range(22)]
        assert final == [True] * 21 + [False]


class Compared(Unobserved):
    """Notes how far cohorts were from those before."""

    def __init__(self) -> None:
        self.told: list[Difference] = []

    def cohort_compared(self, difference: Difference) -> None:
        self.told.append(difference)


def test_totals_that_can_be_subtracted_to_a_few_meters_are_told(city: PreparedCity) -> None:
    """Each of them stands: what is released must not depend on what others are."""
    compared, clock = Compared(), ManualClock(city.closes)
    keyholder = KeyHolder(city.config, clock, observer=compared)
    try:
        for at, left_out in enumerate((0, 0, 3, 20)):
            window = city.window + at * 900
            reports = [
                build_report(city.parameters, meter, window, (100, 0))
                for meter in city.meters[left_out:]
            ]
            clock.move_to(city.closes + at * 900)
            built = build_release(
                city.parameters, city.roster_version, reports, enrolled=len(city.meters)
            )
            keyholder.releases.release(built.messages())
    finally:
        keyholder.close()
    assert compared.told == [Difference.SAME, Difference.FEW, Difference.MANY]
    assert len(city.totals()) == 4
