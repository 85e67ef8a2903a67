"""What the key-holder refuses: by name while nothing is claimed, by one word for ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.ciphertext import add, parse_ciphertext, to_bytes
from gridveil.protocol.commitment import IDENTITY, commitment_hash
from gridveil.protocol.errors import GridveilError, Reason
from gridveil.protocol.release import ENTRY_BYTES, LaneSum
from gridveil.protocol.report import Report, sign_report
from gridveil.protocol.sealing import open_sealed, seal, shared_key
from gridveil.protocol.v1.keyholder_pb2 import ReleaseMessage
from tests.support.keyholders import PreparedCity, prepare_city, refusal_of, state_of
from tests.support.reports import (
    BuiltRelease,
    build_release,
    build_report,
    make_members,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


# Before the claim: refused with its own reason, and nothing changes.


def with_entries(release: BuiltRelease, entries: list[bytes]) -> BuiltRelease:
    return release.resigned(entries=b"".join(entries))


def entries_of(release: BuiltRelease) -> list[bytes]:
    data = release.entries
    return [data[at : at + ENTRY_BYTES] for at in range(0, len(data), ENTRY_BYTES)]


def swapped(city: PreparedCity) -> BuiltRelease:
    first, second, *others = entries_of(city.release)
    return with_entries(city.release, [second, first, *others])


def doubled(city: PreparedCity) -> BuiltRelease:
    first, _, *others = entries_of(city.release)
    return with_entries(city.release, [first, first, *others])


def stranger(city: PreparedCity) -> BuiltRelease:
    (unknown,) = make_members(1, seed=99)
    report = build_report(city.parameters, unknown, city.window, [1, 1])
    return build_release(city.parameters, city.roster_version, [*city.reports[1:], report])


def flipped_signature(city: PreparedCity) -> BuiltRelease:
    *others, last = entries_of(city.release)
    return with_entries(city.release, [*others, last[:-20] + bytes(20)])


def changed_seal(city: PreparedCity) -> BuiltRelease:
    *others, last = entries_of(city.release)
    return with_entries(city.release, [*others, last[:60] + bytes(4) + last[64:]])


def flagged(city: PreparedCity) -> BuiltRelease:
    *others, last = entries_of(city.release)
    return with_entries(city.release, [*others, last[:16] + b"\x01" + last[17:]])


def one_missing(city: PreparedCity) -> BuiltRelease:
    return with_entries(city.release, entries_of(city.release)[:-1])


def one_too_many(city: PreparedCity) -> BuiltRelease:
    header = replace(city.release.header, count=119)
    return city.release.resigned(header=header)


def claimed_count(city: PreparedCity) -> BuiltRelease:
    """119 reports, consistent in all but the header's count."""
    release = build_release(city.parameters, city.roster_version, city.reports[1:], enrolled=120)
    return release.resigned(header=replace(release.header, count=120))


def other_window(city: PreparedCity) -> BuiltRelease:
    meter = city.meters[0]
    report = build_report(city.parameters, meter, city.window - 900, [1, 1])
    claim = report.claim._replace(window_start=city.window)
    replayed = Report(claim, report.ciphertext, report.signature)
    return build_release(city.parameters, city.roster_version, [replayed, *city.reports[1:]])


def moved_count(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    lanes = (replace(first, count=first.count + 1), replace(second, count=second.count - 1))
    return city.release.resigned(lanes=lanes)


def wrong_digest(city: PreparedCity) -> BuiltRelease:
    return replace(city.release, digest=bytes(32))


def changed_lane(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    return replace(city.release, lanes=(first, replace(second, ciphertext=first.ciphertext)))


def lanes_backwards(city: PreparedCity) -> BuiltRelease:
    return city.release.resigned(lanes=city.release.lanes[::-1])


def lane_out_of_range(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    return city.release.resigned(lanes=(first, replace(second, lane=2)))


def empty_lane(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    return city.release.resigned(lanes=(first, replace(second, count=0)))


def short_ciphertext(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    return city.release.resigned(lanes=(first, replace(second, ciphertext=second.ciphertext[:-8])))


def large_residue(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    ciphertext = b"\xff" * 8 + second.ciphertext[8:]
    return city.release.resigned(lanes=(first, replace(second, ciphertext=ciphertext)))


def header_with(**changes: object) -> Callable[[PreparedCity], BuiltRelease]:
    def build(city: PreparedCity) -> BuiltRelease:
        header = replace(city.release.header, **changes)  # type: ignore[arg-type]
        return city.release.resigned(header=header)

    return build


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (swapped, Reason.COHORT_INVALID),
        (doubled, Reason.COHORT_INVALID),
        (stranger, Reason.COHORT_INVALID),
        (flipped_signature, Reason.SIGNATURE_INVALID),
        (changed_seal, Reason.SIGNATURE_INVALID),
        (flagged, Reason.FIELD_RANGE),
        (one_missing, Reason.COHORT_INVALID),
        (one_too_many, Reason.COHORT_INVALID),
        (claimed_count, Reason.COHORT_INVALID),
        (other_window, Reason.SIGNATURE_INVALID),
        (moved_count, Reason.COHORT_INVALID),
        (wrong_digest, Reason.DIGEST_MISMATCH),
        (changed_lane, Reason.DIGEST_MISMATCH),
        (lanes_backwards, Reason.COHORT_INVALID),
        (lane_out_of_range, Reason.COHORT_INVALID),
        (empty_lane, Reason.COHORT_INVALID),
        (short_ciphertext, Reason.CIPHERTEXT_PARAMS),
        (large_residue, Reason.CIPHERTEXT_NON_CANONICAL),
        (header_with(parameters_digest=bytes(32)), Reason.KEY_EPOCH),
        (header_with(roster_version=2), Reason.ROSTER_VERSION),
        (header_with(lanes=1), Reason.COHORT_INVALID),
        (header_with(count=99), Reason.COHORT_TOO_SMALL),
        (header_with(count=121), Reason.COHORT_INVALID),
    ],
)
def test_a_wrong_release_is_refused_before_anything_is_decrypted(
    city: PreparedCity, build: Callable[[PreparedCity], BuiltRelease], reason: Reason
) -> None:
    with city.open() as keyholder:
        before = state_of(city)
        assert refusal_of(keyholder, build(city)).reason is reason
        assert keyholder.ring.decryptions(city.window) == 0
        assert state_of(city) == before
        # The window is not settled: the honest release still goes through.
        assert not keyholder.releases.release(city.release.messages()).replayed
    assert city.events() == ["intent", "released"]


def test_an_entry_is_not_counted_again_in_the_next_chunk(city: PreparedCity) -> None:
    entries = entries_of(city.release)
    entries[50] = entries[49]
    release = with_entries(city.release, entries)
    with city.open() as keyholder, pytest.raises(GridveilError) as refusal:
        keyholder.releases.release(release.messages(size=50 * ENTRY_BYTES))
    assert refusal.value.reason is Reason.COHORT_INVALID
    assert city.events() == []


def test_a_withdrawn_meter_is_not_counted(city: PreparedCity) -> None:
    with city.open(ManualClock(city.window - 1)) as keyholder:
        version = keyholder.roster.withdraw([city.meters[0].meter_id]).version
    with_it = build_release(city.parameters, version, city.reports[:119])
    without = build_release(city.parameters, version, city.reports[1:])
    with city.open() as keyholder:
        assert refusal_of(keyholder, with_it).reason is Reason.COHORT_INVALID
        keyholder.releases.release(without.messages())
    assert city.totals()[city.window].count == 119


def test_a_close_must_name_the_release(city: PreparedCity) -> None:
    *messages, _ = city.release.messages()
    other = replace(city.release, digest=bytes(32)).close_message()
    with city.open() as keyholder:
        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(iter([*messages, other]))
        assert refusal.value.reason is Reason.DIGEST_MISMATCH
        assert keyholder.ring.decryptions(city.window) == 0


def test_a_header_that_lied_about_its_digest_is_in_nobodys_way(city: PreparedCity) -> None:
    header = replace(city.release.header, count=110)
    liar = replace(city.release, header=header)
    with city.open() as keyholder:
        with pytest.raises(GridveilError):
            keyholder.releases.release(iter(list(liar.messages(size=9800))[:4]))
        keyholder.releases.release(city.release.messages())
    assert city.totals()[city.window].count == 120


def too_early(release: BuiltRelease) -> Iterator[ReleaseMessage]:
    yield release.header_message()
    pytest.fail("a release that is not allowed was read on")


def test_a_window_is_not_released_while_meters_may_report_it(city: PreparedCity) -> None:
    some = build_release(city.parameters, city.roster_version, city.reports[:110], enrolled=120)
    with city.open(ManualClock(city.closes - 1)) as keyholder:
        with pytest.raises(GridveilError) as refusal:
            keyholder.releases.release(too_early(some))
        assert refusal.value.reason is Reason.WINDOW_OPEN
        assert refusal.value.metadata == {"closes": str(city.closes)}
        assert keyholder.ring.decryptions(city.window) == 0


# After the claim: one refusal for every cause, for ever.


def rebuilt(city: PreparedCity, change: Callable[[Report, int], Report]) -> BuiltRelease:
    reports = [change(report, at) for at, report in enumerate(city.reports)]
    return build_release(city.parameters, city.roster_version, reports)


def wrong_seal(city: PreparedCity) -> BuiltRelease:
    """A meter that signs a seal which does not open."""

    def change(report: Report, at: int) -> Report:
        claim = report.claim._replace(sealed_commitment=bytes(48))
        return sign_report(claim, report.ciphertext, city.meters[at].signing_key)

    return rebuilt(city, lambda report, at: change(report, at) if at == 7 else report)


def other_values(city: PreparedCity) -> BuiltRelease:
    """A meter whose ciphertext holds other readings than its commitment."""
    parameters, meter = city.parameters, city.meters[7]
    blinding = 12345
    honest = build_report(parameters, meter, city.window, [5, 5], blinding=blinding)
    other = build_report(parameters, meter, city.window, [6, 5], blinding=blinding)
    crypto, slots = parameters.policy.crypto, parameters.policy.layout.slots
    lanes = list(build_release(parameters, 1, city.reports_with(honest)).lanes)
    for at, lane in enumerate(lanes):
        swap = [parse_ciphertext(c, crypto, slots) for c in (lane.ciphertext, other.ciphertext)]
        minus = (crypto.modulus - parse_ciphertext(honest.ciphertext, crypto, slots)) % (
            crypto.modulus
        )
        if at == lane_at(city, honest):
            lanes[at] = replace(lane, ciphertext=to_bytes(add([*swap, minus], crypto)))
    release = build_release(parameters, city.roster_version, city.reports_with(honest))
    return release.resigned(lanes=tuple(lanes))


def lane_at(city: PreparedCity, report: Report) -> int:
    entries = entries_of(build_release(city.parameters, 1, city.reports_with(report)))
    place = next(at for at, e in enumerate(entries) if e[:16] == report.claim.meter_id)
    return 0 if place < city.release.lanes[0].count else 1


def doubled_sum(city: PreparedCity) -> BuiltRelease:
    """A lane's sum twice: every slot is whole, the equation does not hold."""
    crypto = city.parameters.policy.crypto
    first, second = city.release.lanes
    residues = parse_ciphertext(first.ciphertext, crypto, city.parameters.policy.layout.slots)
    twice = replace(first, ciphertext=to_bytes(add([residues, residues], crypto)))
    return city.release.resigned(lanes=(twice, second))


def noise(city: PreparedCity) -> BuiltRelease:
    """A sum that is no sum of bytes."""
    first, second = city.release.lanes
    ciphertext = first.ciphertext[:2] + b"\x00\x01" + first.ciphertext[4:]
    return city.release.resigned(lanes=(replace(first, ciphertext=ciphertext), second))


def swapped_sums(city: PreparedCity) -> BuiltRelease:
    first, second = city.release.lanes
    lanes = (
        LaneSum(0, first.count, second.ciphertext),
        LaneSum(1, second.count, first.ciphertext),
    )
    return city.release.resigned(lanes=lanes)


def beyond_bound(city: PreparedCity) -> BuiltRelease:
    """A meter that commits to more than everybody together can have used."""
    report = build_report(city.parameters, city.meters[7], city.window, [24_000_001, 0])
    return build_release(city.parameters, city.roster_version, city.reports_with(report))


def sealed(city: PreparedCity, at: int, shown: bytes, inside: bytes) -> Report:
    """A meter's report that shows the hash of one commitment and seals another."""
    parameters, meter, report = city.parameters, city.meters[at], city.reports[at]
    ids = parameters.policy.city_id, parameters.epoch.epoch_id
    key = shared_key(meter.sealing_secret, parameters.epoch.sealing_key, *ids, meter.meter_id)
    h = commitment_hash(*ids, city.window, meter.meter_id, shown)
    claim = report.claim._replace(commitment_hash=h)
    claim = claim._replace(sealed_commitment=seal(key, inside, h, claim.seal_data()))
    return sign_report(claim, report.ciphertext, meter.signing_key)


def commitment_of(city: PreparedCity, at: int) -> bytes:
    parameters, meter, claim = city.parameters, city.meters[at], city.reports[at].claim
    ids = parameters.policy.city_id, parameters.epoch.epoch_id
    key = shared_key(meter.sealing_secret, parameters.epoch.sealing_key, *ids, meter.meter_id)
    return open_sealed(key, claim.sealed_commitment, claim.commitment_hash, claim.seal_data())


def other_commitment(city: PreparedCity) -> BuiltRelease:
    """A seal that opens, to the right commitment, under the hash of another one."""
    right = commitment_of(city, 7)
    shown = commitment_of(city, 8)
    report = sealed(city, 7, shown, right)
    return build_release(city.parameters, city.roster_version, city.reports_with(report))


def identity_commitment(city: PreparedCity) -> BuiltRelease:
    """A meter that commits to nothing, with nothing to hide it, and encrypts just that."""
    nothing = build_report(city.parameters, city.meters[7], city.window, [0, 0], blinding=0)
    changed = replace(city, reports=city.reports_with(nothing))
    report = sealed(changed, 7, IDENTITY, IDENTITY)
    return build_release(city.parameters, city.roster_version, city.reports_with(report))


def shifted_slots(city: PreparedCity) -> BuiltRelease:
    """Every slot of a lane is off by 0.3: rounding gives the committed integers, yet it is no sum.

    A constant k adds G * k to each folded residue of c0.
    """
    crypto, slots = city.parameters.policy.crypto, city.parameters.policy.layout.slots
    first, second = city.release.lanes
    residues = parse_ciphertext(first.ciphertext, crypto, slots).copy()
    offset = crypto.block(slots) * round(0.3 * crypto.scale)
    residues[: 2 * slots] = (residues[: 2 * slots] + np.uint64(offset)) % np.uint64(crypto.modulus)
    return city.release.resigned(lanes=(replace(first, ciphertext=to_bytes(residues)), second))


def dropped_from_the_sum(city: PreparedCity) -> BuiltRelease:
    """A report that is listed and was not added."""
    crypto, slots = city.parameters.policy.crypto, city.parameters.policy.layout.slots
    report = city.reports[7]
    minus = (crypto.modulus - parse_ciphertext(report.ciphertext, crypto, slots)) % crypto.modulus
    lanes = list(city.release.lanes)
    at = lane_at(city, report)
    total = parse_ciphertext(lanes[at].ciphertext, crypto, slots)
    lanes[at] = replace(lanes[at], ciphertext=to_bytes(add([total, minus], crypto)))
    return city.release.resigned(lanes=tuple(lanes))


AFTER_CLAIM = [
    wrong_seal,
    other_commitment,
    identity_commitment,
    other_values,
    doubled_sum,
    dropped_from_the_sum,
    noise,
    shifted_slots,
    swapped_sums,
    beyond_bound,
]
SEALS = [wrong_seal, other_commitment, identity_commitment]


@pytest.mark.parametrize("build", AFTER_CLAIM)
def test_what_does_not_open_is_refused_for_ever(
    city: PreparedCity, build: Callable[[PreparedCity], BuiltRelease]
) -> None:
    release = build(city)
    with city.open() as keyholder:
        assert refusal_of(keyholder, release).reason is Reason.REFUSED
        decryptions = keyholder.ring.decryptions(city.window)
        assert decryptions == (0 if build in SEALS else 1)
        # The window is settled: neither the same release again nor the honest one opens it.
        assert refusal_of(keyholder, release).reason is Reason.REFUSED
        assert refusal_of(keyholder, city.release).reason is Reason.WINDOW_PINNED
        assert keyholder.ring.decryptions(city.window) == decryptions
    with city.open() as keyholder:
        assert refusal_of(keyholder, release).reason is Reason.REFUSED
        assert refusal_of(keyholder, city.release).reason is Reason.WINDOW_PINNED
        assert keyholder.ring.decryptions(city.window) == 0
    assert city.events() == ["intent", "refused"]
    assert list((city.config.published / "entries").iterdir()) == []
    assert list((city.config.state / "spool").iterdir()) == []


def test_every_refusal_looks_the_same(prepared: PreparedCity, tmp_path: Path) -> None:
    seen = set()
    for build in AFTER_CLAIM:
        city = prepared.copy(tmp_path / build.__name__)
        with city.open() as keyholder:
            error = refusal_of(keyholder, build(city))
        seen.add((type(error), str(error), tuple(error.metadata.items())))
    assert len(seen) == 1
