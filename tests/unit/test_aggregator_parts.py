"""Streams in groups, releases in chunks, rosters by changes, work in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gridveil.clock import ManualClock, ScaledClock
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.release import CHUNK_BYTES, ENTRY_BYTES
from gridveil.protocol.roster import Member, RosterVersion, roster_digest
from gridveil_services.aggregator.periodic import Periodic, retry_delay_s
from gridveil_services.aggregator.release import chunks
from gridveil_services.aggregator.roster_change import checked_change
from gridveil_services.aggregator.stream import Groups
from gridveil_services.aggregator.upstream import RosterChange
from tests.support.reports import CITY_ID, WINDOW


class TestGroups:
    def test_what_waits_is_taken_together_up_to_the_bound(self) -> None:
        """The source runs ahead of a consumer that is busy, by one group and no more."""
        given_out = 0

        def source() -> Iterator[int]:
            nonlocal given_out
            for number in range(100):
                given_out = number
                yield number

        groups = iter(Groups(source(), 4, idle_s=10))
        first = next(groups)
        while given_out < len(first) + 4:
            time.sleep(0.001)
        time.sleep(0.02)
        # Four are held, and one more was taken from the source.
        assert given_out == len(first) + 4
        rest = [number for group in groups for number in group]
        assert first + rest == list(range(100))

    def test_no_group_is_beyond_the_bound(self) -> None:
        assert all(0 < len(group) <= 3 for group in Groups(iter(range(50)), 3, idle_s=10))

    def test_an_error_comes_after_what_was_read_before_it(self) -> None:
        def source() -> Iterator[int]:
            yield from range(5)
            raise MalformedInput(Reason.MALFORMED_MESSAGE, "no report")

        seen: list[int] = []

        def consume() -> None:
            for group in Groups(source(), 64, idle_s=10):
                seen.extend(group)

        with pytest.raises(MalformedInput) as refused:
            consume()
        assert refused.value.reason is Reason.MALFORMED_MESSAGE
        assert seen == [0, 1, 2, 3, 4]

    def test_a_silent_stream_is_ended(self) -> None:
        release = threading.Event()

        def source() -> Iterator[int]:
            yield 1
            release.wait(10)

        groups = iter(Groups(source(), 4, idle_s=0.05))
        assert next(groups) == [1]
        with pytest.raises(MalformedInput) as refused:
            next(groups)
        assert refused.value.reason is Reason.STREAM_PROTOCOL
        release.set()

    def test_a_consumer_that_leaves_ends_the_reading(self) -> None:
        ended = threading.Event()

        def source() -> Iterator[int]:
            try:
                yield from range(10**9)
            finally:
                ended.set()

        groups: Iterator[list[int]] = iter(Groups(source(), 4, idle_s=10))
        next(groups)
        groups.close()  # type: ignore[attr-defined]
        assert ended.wait(10)


class TestChunks:
    @given(
        sizes=st.lists(st.integers(0, 12_000), max_size=5),
        skipped=st.integers(0, 12_000),
    )
    def test_chunks_are_the_pieces_from_the_offset_on(self, sizes: list[int], skipped: int) -> None:
        pieces = [bytes([at]) * (size * ENTRY_BYTES) for at, size in enumerate(sizes)]
        whole = b"".join(pieces)
        offset = min(skipped * ENTRY_BYTES, len(whole))
        made = list(chunks(iter(pieces), offset))
        assert b"".join(chunk for _, chunk in made) == whole[offset:]
        expected = offset
        for at, chunk in made:
            assert at == expected
            assert 0 < len(chunk) <= CHUNK_BYTES
            assert len(chunk) % ENTRY_BYTES == 0
            expected += len(chunk)


KEYS = [bytes(SigningKey(bytes([at]) * 32).verify_key) for at in range(4)]


def member(name: int, key: int = 0) -> Member:
    return Member(bytes([name]) * 16, KEYS[key], KEYS[key])


def change(
    target: set[Member], removed: list[bytes], added: list[Member], version: int = 2
) -> RosterChange:
    """A change whose head is of ``target``, whatever the change leads to."""
    head = RosterVersion(CITY_ID, version, WINDOW, len(target), roster_digest(sorted(target)))
    return RosterChange(head, bytes(64), removed, added)


class TestRosterChange:
    HELD = (member(1), member(2), member(3))

    def fetch(self, answer: RosterChange | None) -> Callable[[], RosterChange]:
        def whole() -> RosterChange:
            assert answer is not None, "there was no need to fetch the whole roster"
            return answer

        return whole

    def test_a_change_that_leads_to_the_head_is_taken_as_it_is(self) -> None:
        target = {member(1), member(3), member(9), member(0)}
        asked = change(target, [member(2).meter_id], [member(9), member(0)])
        assert checked_change(asked, lambda: self.HELD, self.fetch(None)) is asked

    @given(
        target=st.sets(st.builds(member, st.integers(0, 6), st.integers(0, 1)), max_size=6).filter(
            lambda members: len({m.meter_id for m in members}) == len(members)
        )
    )
    def test_any_whole_roster_becomes_the_change_that_leads_to_it(
        self, target: set[Member]
    ) -> None:
        wrong = change(target, [], [member(7)])
        whole = change(target, [], sorted(target))
        found = checked_change(wrong, lambda: self.HELD, self.fetch(whole))
        left = {m for m in self.HELD if m.meter_id not in set(found.removed)}
        assert left | set(found.added) == target
        assert len(left) + len(found.added) == len(target)

    @pytest.mark.parametrize("version", [2, 3])
    def test_a_roster_that_is_not_what_its_head_says_is_refused(self, version: int) -> None:
        target = {member(1)}
        lie = change(target, [], [member(1), member(2)])
        whole = change(target, [], [member(1), member(2)], version)
        with pytest.raises(MalformedInput) as refused:
            checked_change(lie, lambda: self.HELD, self.fetch(whole))
        assert refused.value.reason is Reason.DIGEST_MISMATCH

    def test_a_member_twice_is_refused(self) -> None:
        target = {member(1), member(2)}
        twice = change(target, [], [member(1), member(2), member(2)])
        with pytest.raises(MalformedInput):
            checked_change(twice, lambda: (), self.fetch(twice))


class TestPeriodic:
    def test_a_step_that_fails_is_taken_again_when_woken(self) -> None:
        calls: list[int] = []
        called = threading.Semaphore(0)

        def step() -> float:
            calls.append(len(calls))
            called.release()
            if len(calls) == 1:
                raise RuntimeError("a defect")
            return 3600.0

        work = Periodic("test", step)
        work.start()
        for _ in range(3):
            assert called.acquire(timeout=10)
            work.wake()
        work.stop()
        assert len(calls) >= 3

    def test_retries_wait_longer_each_time_up_to_a_minute_of_metering_time(self) -> None:
        fast = ScaledClock(0, 0, 600)
        for failures, most in ((1, 0.4), (4, 3.2), (50, 15.0)):
            delays = [retry_delay_s(failures, ScaledClock(0, 0, 1)) for _ in range(200)]
            assert most / 4 <= min(delays) <= max(delays) <= most
            assert max(delays) - min(delays) > most / 3
        assert retry_delay_s(50, fast) <= 0.2
        assert retry_delay_s(50, ManualClock(0)) <= 0.2
