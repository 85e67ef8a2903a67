"""An aggregator that claims another cohort than the one that reported.

All of this is turned away before anything is opened: no bit of the key is spent, and the window is
as free as it was for the honest release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from gridveil.protocol.errors import Reason
from gridveil.protocol.release import LaneSum
from gridveil.protocol.report import Report
from tests.adversary.city import DAY, LENGTH, NOW, AttackedCity, Crowd
from tests.adversary.forging import combined, scaled, split, sums_of, with_sums
from tests.support.epochs import city_keys
from tests.support.reports import BuiltRelease, build_report, make_members

Attack = Callable[[AttackedCity, Sequence[Report], BuiltRelease], BuiltRelease]
"""What becomes of an honest release of all reports; the first report is the victim's."""


def with_entries(release: BuiltRelease, entries: Sequence[bytes]) -> BuiltRelease:
    """The release with other entries, its digest right again."""
    return release.resigned(entries=b"".join(entries))


def changed(release: BuiltRelease, meter_id: bytes, at: int, value: bytes) -> BuiltRelease:
    """The release with bytes of one meter's entry replaced."""
    entries = split(release)
    place = next(i for i, entry in enumerate(entries) if entry.startswith(meter_id))
    entry = entries[place]
    entries[place] = entry[:at] + value + entry[at + len(value) :]
    return with_entries(release, entries)


FLAGS, HASH, SEALED, DIGEST, SIGNATURE = 16, 20, 52, 100, 132
"""Where the fields of an entry begin, after its meter id."""


def field_of_another(at: int, end: int) -> Attack:
    """The victim's entry with a field of another meter's."""

    def attack(city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease) -> BuiltRelease:
        donor = reports[1].claim.meter_id
        entry = next(entry for entry in split(honest) if entry.startswith(donor))
        return changed(honest, reports[0].claim.meter_id, at, entry[at:end])

    return attack


def another_name(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """Each of two neighbouring entries goes under the other's meter id."""
    first, second, *rest = split(honest)
    return with_entries(honest, [first[:16] + second[16:], second[:16] + first[16:], *rest])


def no_signature(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """64 zero bytes where the victim's signature was."""
    return changed(honest, reports[0].claim.meter_id, SIGNATURE, bytes(64))


def other_signature(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """One bit of a signature is another one."""
    signature = reports[0].signature
    return changed(
        honest, reports[0].claim.meter_id, SIGNATURE, bytes([signature[0] ^ 1, *signature[1:]])
    )


def unknown_flags(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """A flag that no meter set."""
    return changed(honest, reports[0].claim.meter_id, FLAGS, b"\1")


def last_windows_entries(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """Entries and sums of the window before, under this window's header."""
    stale = city.built(city.reports(reports[0].claim.window_start - LENGTH))
    return honest.resigned(entries=stale.entries, lanes=stale.lanes)


def one_entry_of_the_last_window(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The victim's report of the window before, with its ciphertext."""
    before = reports[0].claim.window_start - LENGTH
    stale = build_report(city.parameters, city.victim, before, [1, 0])
    claim = stale.claim._replace(window_start=reports[0].claim.window_start)
    return city.built([stale._replace(claim=claim), *reports[1:]])


def doubled_entry(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The victim's entry stands twice, its ciphertext is added twice, and all counts say so."""
    once, lane = city.built(reports[:-1]), city.lane(reports[0])
    sum_ = combined(city.parameters, sums_of(once)[lane], reports[0].ciphertext)
    lanes = tuple(replace(s, count=s.count + (s.lane == lane)) for s in once.lanes)
    entries = split(once)
    at = next(i for i, e in enumerate(entries) if e.startswith(reports[0].claim.meter_id))
    entries.insert(at, entries[at])
    header = replace(once.header, count=len(entries))
    twice = replace(once, header=header, lanes=lanes)
    return with_sums(with_entries(twice, entries), {lane: sum_})


def unsorted(city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease) -> BuiltRelease:
    """Two neighbours are exchanged."""
    first, second, *rest = split(honest)
    return with_entries(honest, [second, first, *rest])


def wrong_lane(city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease) -> BuiltRelease:
    """A meter is put into another lane: its entry, its ciphertext and both counts."""
    parameters, count = city.parameters, honest.lanes[0].count
    last = split(honest)[count - 1]
    moved = next(r for r in reports if r.claim.meter_id == last[:16])
    sums, away = sums_of(honest), scaled(parameters, moved.ciphertext, -1)
    lanes = (
        LaneSum(0, count - 1, combined(parameters, sums[0], away)),
        LaneSum(1, honest.lanes[1].count + 1, combined(parameters, sums[1], moved.ciphertext)),
        *honest.lanes[2:],
    )
    return honest.resigned(lanes=lanes)


def one_lane_for_all(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The whole city as a single lane, so that errors of two could cancel."""
    sums = sums_of(honest)
    header = replace(honest.header, lanes=1)
    lane = LaneSum(0, len(reports), combined(city.parameters, *sums.values()))
    entries = sorted(split(honest), key=lambda entry: entry[:16])
    return honest.resigned(header=header, lanes=(lane,)).resigned(entries=b"".join(entries))


def lane_left_out(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The entries of all lanes, the sum of one."""
    return honest.resigned(lanes=honest.lanes[:1])


def lane_twice(city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease) -> BuiltRelease:
    """One lane's sum is handed over twice."""
    return honest.resigned(lanes=(honest.lanes[0], *honest.lanes))


def lanes_reversed(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The lanes come in another order."""
    return honest.resigned(lanes=honest.lanes[::-1])


def more_counted(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The header counts all meters, and there are entries and sums of 90."""
    few = city.built(reports[:90])
    return few.resigned(header=honest.header)


def fewer_counted(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The header counts one report less."""
    return honest.resigned(header=replace(honest.header, count=len(reports) - 1))


def more_than_enrolled(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The header counts more than the roster."""
    return honest.resigned(header=replace(honest.header, count=len(reports) + 1))


def lane_counts_shifted(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """One lane claims a report more, the other one less."""
    first, second, *rest = honest.lanes
    moved = replace(first, count=first.count + 1), replace(second, count=second.count - 1)
    lanes = (*moved, *rest)
    return honest.resigned(lanes=lanes)


def other_digest(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The release goes by a digest that is not its own."""
    return replace(honest, digest=bytes(32))


def sum_beside_the_digest(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """A sum is exchanged and the honest digest kept."""
    return replace(with_sums(honest, {0: sums_of(honest)[1]}), digest=honest.digest)


def strangers(city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease) -> BuiltRelease:
    """The victim and self-made meters that report nothing: all signed, none enrolled."""
    window = reports[0].claim.window_start
    made = [
        build_report(city.parameters, meter, window, [0, 0])
        for meter in make_members(len(reports) - 1, seed=99)
    ]
    return city.built([reports[0], *made])


def one_stranger(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """A single self-made meter among the honest."""
    (meter,) = make_members(1, seed=98)
    own = build_report(city.parameters, meter, reports[0].claim.window_start, [0, 0])
    return city.built([*reports[:-1], own])


def not_enrolled_yet(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """A meter that a later roster version enrolled."""
    meter, window = city.newcomers[0], reports[0].claim.window_start
    return city.built([*reports[:-1], build_report(city.parameters, meter, window, [1, 0])])


def roster_of_later(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """A roster version that is not in force for the window."""
    return honest.resigned(header=replace(honest.header, roster_version=city.evening.version))


def self_made_parameters(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """City parameters with the attacker's own keys: reports and release name them."""
    policy, window = city.parameters.policy, reports[0].claim.window_start
    own = city_keys(policy, first_window=DAY, windows=288, name=b"the attacker's  ").parameters
    made = [build_report(own, meter, window, [1, 0]) for meter in city.day.meters]
    header = replace(honest.header, parameters_digest=own.digest)
    entries = city.built(made).entries
    return honest.resigned(header=header, entries=entries)


def tomorrows_parameters(
    city: AttackedCity, reports: Sequence[Report], honest: BuiltRelease
) -> BuiltRelease:
    """The key-holder's own parameters, of an epoch that does not serve the window."""
    header = replace(honest.header, parameters_digest=city.parameters_of(DAY + 86_400).digest)
    return honest.resigned(header=header)


COHORT, SIGNED = Reason.COHORT_INVALID, Reason.SIGNATURE_INVALID
ATTACKS: dict[str, tuple[Attack, Reason]] = {
    "hash_of_another": (field_of_another(HASH, SEALED), SIGNED),
    "blob_of_another": (field_of_another(SEALED, DIGEST), SIGNED),
    "hash_and_blob_of_another": (field_of_another(HASH, DIGEST), SIGNED),
    "ciphertext_digest_of_another": (field_of_another(DIGEST, SIGNATURE), SIGNED),
    "signature_of_another": (field_of_another(SIGNATURE, 196), SIGNED),
    "another_name": (another_name, SIGNED),
    "no_signature": (no_signature, SIGNED),
    "other_signature": (other_signature, SIGNED),
    "unknown_flags": (unknown_flags, Reason.FIELD_RANGE),
    "last_windows_entries": (last_windows_entries, SIGNED),
    "one_entry_of_the_last_window": (one_entry_of_the_last_window, SIGNED),
    "doubled_entry": (doubled_entry, COHORT),
    "unsorted": (unsorted, COHORT),
    "wrong_lane": (wrong_lane, COHORT),
    "one_lane_for_all": (one_lane_for_all, COHORT),
    "lane_left_out": (lane_left_out, COHORT),
    "lane_twice": (lane_twice, COHORT),
    "lanes_reversed": (lanes_reversed, COHORT),
    "more_counted": (more_counted, COHORT),
    "fewer_counted": (fewer_counted, COHORT),
    "more_than_enrolled": (more_than_enrolled, COHORT),
    "lane_counts_shifted": (lane_counts_shifted, COHORT),
    "other_digest": (other_digest, Reason.DIGEST_MISMATCH),
    "sum_beside_the_digest": (sum_beside_the_digest, Reason.DIGEST_MISMATCH),
    "strangers": (strangers, COHORT),
    "one_stranger": (one_stranger, COHORT),
    "not_enrolled_yet": (not_enrolled_yet, COHORT),
    "roster_of_later": (roster_of_later, Reason.ROSTER_VERSION),
    "self_made_parameters": (self_made_parameters, Reason.KEY_EPOCH),
    "tomorrows_parameters": (tomorrows_parameters, Reason.KEY_EPOCH),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_entries_that_are_not_the_cohorts_are_turned_away(city: AttackedCity, name: str) -> None:
    """The attacker gains nothing, and cannot even keep the window's honest total away."""
    attack, reason = ATTACKS[name]
    window = city.window()
    reports = city.reports(window)
    honest = city.built(reports)
    city.assert_turned_away(attack(city, reports, honest), reason)
    city.assert_released(honest, city.truth(window))


def test_a_withdrawn_meter_counts_no_more(city: AttackedCity) -> None:
    """Keys of a meter that has left gain nothing from the next window on."""
    crowd = city.afternoon
    window = city.window(crowd)
    reports = city.reports(window, crowd)
    ghost = build_report(city.parameters, city.leaver, window, [1, 0])
    city.assert_turned_away(city.built([*reports[:-1], ghost], crowd), Reason.COHORT_INVALID)
    city.assert_released(city.built(reports, crowd), city.truth(window, crowd))


@pytest.mark.parametrize(("crowd_name", "kept"), [("day", 1), ("day", 209), ("evening", 225)])
def test_too_small_a_cohort_is_turned_away(city: AttackedCity, crowd_name: str, kept: int) -> None:
    """Leaving honest meters out gains nothing: neither 209 of 402, nor 225 of 461, are enough.

    Of 402 meters 201 would do for the coverage, of 461 meters 210 for the cohort.
    """
    crowd: Crowd = getattr(city, crowd_name)
    window = city.window(crowd)
    reports = city.reports(window, crowd)
    city.assert_turned_away(city.built(reports[:kept], crowd), Reason.COHORT_TOO_SMALL)
    city.assert_released(city.built(reports, crowd), city.truth(window, crowd))


def test_a_window_that_meters_may_still_report_is_turned_away(city: AttackedCity) -> None:
    """Being early gains nothing: not during the window, and not in its grace but for everybody."""
    running = NOW // LENGTH * LENGTH
    reports = city.reports(running, city.evening)
    city.assert_turned_away(city.built(reports, city.evening), Reason.WINDOW_OPEN)
    in_grace = running - LENGTH
    assert in_grace + LENGTH <= NOW < city.parameters.policy.rules.closes(in_grace)
    reports = city.reports(in_grace, city.evening)
    city.assert_turned_away(city.built(reports[:-1], city.evening), Reason.WINDOW_OPEN)
    city.assert_released(city.built(reports, city.evening), city.truth(in_grace, city.evening))


def test_a_window_before_the_first_roster_is_turned_away(city: AttackedCity) -> None:
    """A window of which nobody was enrolled yet gains nothing."""
    reports = city.reports(DAY)
    city.assert_turned_away(city.built(reports), Reason.ROSTER_VERSION)
