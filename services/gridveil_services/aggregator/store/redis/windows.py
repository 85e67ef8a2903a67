"""Windows as Redis has them: their records and their lanes' markers, and what changes these.

Nothing here decides by memory. A record is written after its lanes' markers, so that a marker
that is missing was lost; the aggregator's own file is written after both.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gridveil.protocol.errors import IntegrityLost
from gridveil_services.aggregator.store.interface import Phase, Window
from gridveil_services.aggregator.store.redis import scripts
from gridveil_services.aggregator.store.redis.keys import CityKeys, buckets
from gridveil_services.aggregator.store.redis.lanes import Lanes
from gridveil_services.aggregator.store.redis.layout import (
    decode_facts,
    encode_facts,
    first_digest,
)
from gridveil_services.aggregator.store.redis.pins import Record
from gridveil_services.aggregator.store.redis.servers import Call, Servers, script
from gridveil_services.aggregator.store.redis.writer import LaneWriter

_OPEN, _SEALED = str(int(Phase.OPEN)), str(int(Phase.SEALED))


class Windows:
    """Records of windows. Changes come from one thread at a time."""

    def __init__(self, servers: Servers, keys: CityKeys, lanes: Lanes) -> None:
        self._servers = servers
        self._keys = keys
        self._lanes = lanes

    def starts(self) -> set[int]:
        """Of every window that Redis knows to be held."""
        key = self._keys.windows
        (found,) = self._servers.read([Call(key, ("SMEMBERS", key))])
        return {int(start) for start in found}

    def forgotten(self) -> int:
        key = self._keys.forgotten
        (found,) = self._servers.read([Call(key, ("GET", key))])
        return int(found or 0)

    def record(self, start: int) -> Record | None:
        """A window's record, or None if there is none that can be read."""
        return self.records([start])[start]

    def records(self, starts: Collection[int]) -> dict[int, Record | None]:
        """Records of windows, of each None if there is none that can be read."""
        keys = [self._keys.window(start) for start in starts]
        answers = self._servers.read([Call(key, ("HGETALL", key)) for key in keys])
        return {s: _record(s, answer) for s, answer in zip(starts, answers, strict=True)}

    def open(self, window: Window, lineage: str, doubt: str) -> Window:
        """Make a window known; what is stored of it first stands.

        Args:
            window: its facts.
            lineage: of the servers now.
            doubt: why a window without a record cannot be new, or ''.
        """
        key = self._keys.window(window.start)
        record = self.record(window.start)
        if record is None:
            # Without a record a marked lane is a trace of one that was lost, unless it is empty.
            if not doubt and not self.mark(window, range(window.lanes)):
                doubt = "its record is gone"
            window = replace(window, phase=Phase.POISONED) if doubt else window
            phase = str(int(window.phase))
            facts = encode_facts(window)
            self._servers.write([script(scripts.OPEN_WINDOW, [key], facts, phase, lineage, doubt)])
            record = self.record(window.start)
        self._servers.write([Call(self._keys.windows, ("SADD", self._keys.windows, window.start))])
        return window if record is None else record.window

    def join(self, start: int, name: str) -> bool:
        """Have an aggregator take part in a window that is not settled; whether it does."""
        call = script(scripts.JOIN, [self._keys.window(start)], name, _OPEN, _SEALED)
        ((word, *_),) = self._servers.write([call], everywhere=True)
        return bool(word == b"done")

    def inquire(self, start: int, name: str, token: str) -> bool:
        """Ask all that take part whether an open window was sealed; whether it is open."""
        call = script(scripts.INQUIRE, [self._keys.window(start)], name, _OPEN, token)
        ((word, *_),) = self._servers.write([call])
        return bool(word == b"done")

    def answer(self, start: int, asker: str, name: str, token: str) -> None:
        """Answer to :meth:`inquire` that it was not."""
        call = script(scripts.ANSWER, [self._keys.window(start)], asker, _OPEN, token, name)
        self._servers.write([call])

    def vouch(self, start: int, name: str, sealed: int, digest: str) -> bool:
        """Say that an aggregator misses nothing in what was sealed; whether that is wanted."""
        key = self._keys.window(start)
        call = script(scripts.VOUCH, [key], name, _SEALED, str(sealed), digest)
        ((word, *_),) = self._servers.write([call])
        return bool(word == b"done")

    def mark(self, window: Window, lanes: Iterable[int]) -> bool:
        """Open lanes, or put empty ones under the window's facts; whether none stands otherwise."""
        calls = []
        for lane in lanes:
            keys = self._keys.lane(window.start, lane)
            calls.append(
                script(
                    scripts.OPEN_LANE,
                    [keys.lane, keys.journal, keys.partials],
                    window.parameters_digest,
                    str(window.lane_capacity),
                    first_digest(window.start, lane),
                )
            )
        return all(word == b"done" for word, *_ in self._servers.write(calls))

    def align(self, window: Window) -> bool:
        """Have all lanes of an open window be under its facts; whether they are whole."""
        markers = self._lanes.markers(window)
        if any(marker is None for marker in markers):
            return False
        others = [
            lane
            for lane, marker in enumerate(markers)
            if marker is not None and marker.parameters_digest != window.parameters_digest
        ]
        return self.mark(window, others) if others else True

    def take_over(self, window: Window) -> bool:
        """As :meth:`align`, after which no move that was begun before can end."""
        self._fence(window.start)
        return self.align(window)

    def move(self, before: Window, window: Window) -> bool:
        """Put a window without reports under other facts; whether it has none."""
        word, epoch = self._fence(window.start)
        if word != b"done":
            return False
        markers = self._lanes.markers(before)
        if any(marker is None or marker.reports or marker.sealed for marker in markers):
            return False
        if not self.mark(window, range(window.lanes)):
            return False
        key = self._keys.window(window.start)
        facts = encode_facts(window), _OPEN, encode_facts(before)
        answer = self._servers.write([script(scripts.MOVE_WINDOW, [key], *facts, epoch)])
        if answer[0][0] != b"done":
            return False
        spare = [
            self._keys.lane(window.start, lane).lane for lane in range(window.lanes, before.lanes)
        ]
        if spare:
            self._servers.write([Call(key, ("UNLINK", key)) for key in spare])
        return True

    def seal(self, window: Window, writers: Sequence[LaneWriter]) -> int | None:
        """Seal all lanes under a new fencing epoch, then the window.

        Returns:
            The epoch; 0 if somebody else has sealed it or is about to; None if it is not whole.
        """
        key = self._keys.window(window.start)
        word, epoch = self._fence(window.start)
        if word != b"done":
            return None if word == b"lost" else 0
        of_lane = {writer.lane: writer.acknowledged for writer in writers}
        calls = []
        for lane in range(window.lanes):
            keys = self._keys.lane(window.start, lane)
            pairs = [part for pair in of_lane.get(lane, {}).items() for part in map(str, pair)]
            calls.append(script(scripts.SEAL_LANE, [keys.lane, keys.partials], epoch, *pairs))
        words = {word for word, *_ in self._servers.write(calls)}
        if words != {b"done"}:
            return None if b"lost" in words else 0
        ((word, *_),) = self._servers.write(
            [script(scripts.SEAL_WINDOW, [key], _OPEN, _SEALED, epoch)]
        )
        if word == b"done":
            return int(epoch)
        return None if word == b"lost" else 0

    def _fence(self, start: int) -> tuple[bytes, str]:
        """Draw the next fencing epoch of an open window; '' if there is none."""
        call = script(scripts.FENCE, [self._keys.window(start)], _OPEN)
        ((word, *rest),) = self._servers.write([call])
        return word, rest[0].decode() if word == b"done" else ""

    def settle(
        self, window: Window, before: Iterable[Phase], *, missing: bool = False, why: str = ""
    ) -> bool:
        """Compare-and-set to the window's phase; ``missing`` if its record may be gone."""
        may = [str(int(phase)) for phase in before] + [""] * missing
        ((word, *_),) = self._servers.write(
            [
                script(
                    scripts.SETTLE,
                    [self._keys.window(window.start)],
                    encode_facts(window),
                    str(int(window.phase)),
                    secrets.token_hex(8),
                    why,
                    *may,
                )
            ]
        )
        if word == b"done":
            key = self._keys.windows
            self._servers.write([Call(key, ("SADD", key, window.start))])
        return bool(word == b"done")

    def clean(self, window: Window) -> None:
        """Delete what a settled window must not hold any more."""
        calls = []
        for lane in range(window.lanes):
            keys = self._keys.lane(window.start, lane)
            released = window.phase is Phase.RELEASED
            gone = [keys.journal] if released else [keys.journal, keys.partials]
            calls.append(Call(keys.lane, ("UNLINK", *gone)))
        self._servers.write(calls)

    def forget(self, windows: Sequence[Window], forgotten: int) -> None:
        """Delete everything of windows, after it is known that they never open again."""
        keys = [self._keys.forgotten, self._keys.windows]
        starts = [str(window.start) for window in windows]
        self._servers.write([script(scripts.FORGET, keys, str(forgotten), *starts)])
        for window in windows:
            self._servers.write(list(self._deletions(window)))

    def _deletions(self, window: Window) -> Iterator[Call]:
        for lane in range(window.lanes):
            keys = self._keys.lane(window.start, lane)
            receipts = [keys.receipts(bucket) for bucket in range(buckets(window))]
            fixed = (keys.lane, keys.journal, keys.partials, keys.equivocations)
            yield Call(keys.lane, ("UNLINK", *fixed, *receipts))
        key = self._keys.window(window.start)
        yield Call(key, ("UNLINK", key))


def _record(start: int, answer: Mapping[bytes, bytes]) -> Record | None:
    try:
        window = decode_facts(answer[b"facts"], Phase(int(answer[b"phase"])))
        if window.start != start:
            return None
        named = {
            name.decode(): value.decode() for name, value in answer.items() if name != b"facts"
        }
        return Record(
            window,
            int(named.get("sealed", "0")),
            named.get("lineage", ""),
            named.get("why", ""),
            frozenset(_prefixed(named, "r:")),
            _prefixed(named, "v:"),
            _prefixed(named, "i:"),
            {_pair(name): value for name, value in _prefixed(named, "o:").items()},
        )
    except (IntegrityLost, KeyError, ValueError):
        return None


def _prefixed(named: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {n.removeprefix(prefix): value for n, value in named.items() if n.startswith(prefix)}


def _pair(name: str) -> tuple[str, str]:
    asker, answerer = name.split(":")
    return asker, answerer
