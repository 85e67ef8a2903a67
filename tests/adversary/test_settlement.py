"""An aggregator that asks a second time, in another way, at once, or after a restart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gridveil.protocol.errors import Reason
from gridveil.protocol.report import Report
from tests.adversary.answers import Answer
from tests.adversary.city import VICTIM_WH, AttackedCity
from tests.adversary.forging import commitment_in, scaled, split, sums_of, with_sums
from tests.support.reports import BuiltRelease


def without(city: AttackedCity, reports: Sequence[Report], left_out: int) -> BuiltRelease:
    """A release that is right, but for one meter that reported."""
    return city.built([r for at, r in enumerate(reports) if at != left_out])


def scaled_release(city: AttackedCity, release: BuiltRelease) -> BuiltRelease:
    """A release of whose lanes three do not open, so that the others are no cohort."""
    sums = sums_of(release)
    twice = {lane: scaled(city.parameters, sums[lane], 2) for lane in (0, 2, 4)}
    return with_sums(release, twice)


def test_a_second_cohort_of_a_released_window_is_turned_away(city: AttackedCity) -> None:
    """The difference of two totals would be one reading: there is no second total."""
    window = city.window()
    reports = city.reports(window)
    first = city.built(reports)
    city.assert_released(first, city.truth(window))
    city.assert_pinned(without(city, reports, 0))
    replayed = city.release(first)
    assert replayed.receipt
    assert replayed.receipt.replayed
    assert city.events(window) == ["intent", "released"]
    assert city.keyholder.ring.decryptions(window) == 1


def test_a_second_attempt_at_a_refused_window_is_turned_away(city: AttackedCity) -> None:
    """A failed attempt spends the window: the key is asked once, whatever comes of it."""
    window = city.window()
    reports = city.reports(window)
    city.assert_refused(scaled_release(city, city.built(reports)), reports)
    for again in (without(city, reports, 0), scaled_release(city, without(city, reports, 1))):
        city.assert_pinned(again)
    assert city.keyholder.ring.decryptions(window) == 1


def test_of_two_cohorts_handed_over_at_once_one_is_released(city: AttackedCity) -> None:
    """A race between two cohorts gains nothing: one total, and the other release never opens."""
    window = city.window()
    reports = city.reports(window)
    rivals = [city.built(reports), *(without(city, reports, at) for at in range(5))]
    answers: list[Answer] = []
    start = threading.Barrier(len(rivals))

    def hand_over(release: BuiltRelease) -> None:
        start.wait()
        answers.append(city.release(release))

    threads = [threading.Thread(target=hand_over, args=(release,)) for release in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    receipts = [answer.receipt for answer in answers if answer.receipt]
    assert len(receipts) == 1
    assert city.total(window).release_digest == receipts[0].release_digest
    lost = {answer.reason for answer in answers if not answer.receipt}
    assert lost <= {Reason.WINDOW_PINNED, Reason.KEYHOLDER_UNAVAILABLE}
    assert city.events(window) == ["intent", "released"]
    assert city.keyholder.ring.decryptions(window) == 1


def test_entries_of_two_cohorts_cannot_be_spliced_by_resuming(city: AttackedCity) -> None:
    """A stream that breaks and is resumed with other lanes or entries gains nothing."""
    window = city.window()
    reports = city.reports(window)
    lane = city.lane(reports[0])
    neighbour = next(at for at, r in enumerate(reports) if at and city.lane(r) == lane)
    one, other = without(city, reports, 0), without(city, reports, neighbour)
    begun = city.release_messages([one.header_message(), *one.chunk_messages(size=196 * 50)][:3])
    assert begun.reason == Reason.STREAM_PROTOCOL
    held = city.progress(window, one.digest).entry_bytes
    assert held == 196 * 100
    assert city.progress(window, other.digest).entry_bytes == 0
    spliced = city.release_messages(
        [
            one.header_message(),
            *other.lane_messages(),
            *other.chunk_messages(held),
            one.close_message(),
        ]
    )
    assert spliced.reason in {Reason.DIGEST_MISMATCH, Reason.COHORT_INVALID}
    assert city.events(window) == []
    city.assert_released(city.built(reports), city.truth(window))


@pytest.mark.parametrize("begun", [slice(1, None), slice(100, None), slice(0, None, 2)])
def test_entries_sent_under_anothers_digest_do_not_keep_its_release_away(
    city: AttackedCity, begun: slice
) -> None:
    """A second holder of the aggregator's role gains nothing by beginning the first one's release.

    Each of its entries is genuine and in order, so they are held; but they are not the release's.
    """
    window = city.window()
    release = city.built(city.reports(window))
    wrong = replace(release, entries=b"".join(split(release)[begun]))
    assert city.release(wrong).reason == Reason.COHORT_INVALID
    for _ in range(2):  # as an aggregator does it: what is held need not be sent again
        held = city.progress(window, release.digest).entry_bytes
        answer = city.release_messages(release.messages(offset=held))
        if answer.receipt:
            break
    assert city.events(window) == ["intent", "released"]
    assert city.total(window).sum("import_wh") == city.truth(window)


def test_the_key_holders_own_log_holds_no_reading(
    city: AttackedCity, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who reads the operator's logs gains nothing, whether a release opens or not."""
    for spoil in (False, True):
        window = city.window()
        reports = city.reports(window)
        honest = city.built(reports)
        city.release(scaled_release(city, honest) if spoil else honest)
        commitment = commitment_in(city.parameters, city.victim, reports[0])
        said = "".join(capfd.readouterr())
        assert str(window) in said
        total = city.truth(window)
        for secret in (str(VICTIM_WH), str(total), commitment.hex(), city.victim.meter_id.hex()):
            assert secret not in said


def test_a_restart_undoes_no_settlement(city: AttackedCity) -> None:
    """Making the key-holder start again gains nothing: what was settled stays so."""
    refused_window, released_window = city.window(), city.window()
    refused_reports, released_reports = city.reports(refused_window), city.reports(released_window)
    refused = scaled_release(city, city.built(refused_reports))
    city.assert_refused(refused, refused_reports)
    city.assert_released(city.built(released_reports), city.truth(released_window))
    city.restart()
    city.assert_is_the_refusal(city.release(refused))
    for honest in (city.built(refused_reports), without(city, released_reports, 0)):
        city.assert_pinned(honest)
    assert city.keyholder.ring.decryptions(refused_window) == 0
    assert city.keyholder.ring.decryptions(released_window) == 0
