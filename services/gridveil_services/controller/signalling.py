"""Signals as they come to be: an event is decided on, journalled, and then shown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from gridveil.clock import Clock
from gridveil.protocol.errors import GridveilError, Reason, Unavailable, WrongState
from gridveil_services.controller.core import (
    Event,
    Gap,
    Settled,
    Signal,
    Tick,
    next_tick,
    step,
)
from gridveil_services.controller.history import History
from gridveil_services.controller.journal import RETENTION_S, Draft, Entry, Journal, Shown
from gridveil_services.controller.rules import ControlRules

PAGE = 500
"""Signals that are read for a watcher at a time."""
MOST_BEHIND_S = 60
"""A clock may be set back by this without anybody noticing."""
_PRUNE_EVERY_S = 86_400

Drafts = Callable[[int, Event, Signal], Sequence[Draft]]
"""What is to be sent to the VTN for the signal with a number."""


class SignalObserver(Protocol):
    """Told of every signal once it is durable. Neither blocks nor raises."""

    def signalled(self, signal: Signal) -> None: ...


def nothing_to_send(_number: int, _event: Event, _signal: Signal) -> Sequence[Draft]:
    """No program is configured."""
    return ()


class Signaller:
    """The one place where signals are made. Thread-safe.

    A signal that cannot be journalled is not shown; until the journal can be written again, no
    older one is shown in its place. Nor is any shown, or made, while the clock is behind the newest
    one: how long that has stood for is not known.
    """

    def __init__(
        self,
        rules: ControlRules,
        journal: Journal,
        history: History,
        clock: Clock,
        drafts: Drafts = nothing_to_send,
        observers: Iterable[SignalObserver] = (),
    ) -> None:
        journal.keep_rules(rules)
        self._rules = rules
        self._journal = journal
        self._history = history
        self._clock = clock
        self._drafts = drafts
        self._observers = list(observers)
        self._number, self._state = journal.newest()
        self._pruned_at = -_PRUNE_EVERY_S
        self._failure: GridveilError | None = None
        self._changed = threading.Condition()

    def settle(self, windows: Iterable[Settled | Gap]) -> None:
        """Act on windows that were settled just now, in order; known ones are passed over.

        Those that ended before the controller's first start are history, and signal nothing.

        Raises:
            WrongState: WINDOW_OPEN for a window that has not ended by this clock.
            Unavailable: STORE_UNAVAILABLE while the clock is behind.
            GridveilError: what the journal raises; nothing was shown.
        """
        with self._changed:
            # One that was forgotten is not news.
            oldest = self._clock.now() - RETENTION_S
            fresh = [
                one
                for one in windows
                if one.window_start >= oldest and not self._history.knows(one.window_start)
            ]
            if any(self._end(one) > self._clock.now() for one in fresh):
                raise WrongState(
                    Reason.WINDOW_OPEN, "a window was settled that has not ended by this clock"
                )
            if fresh:
                self._check_clock()
            past = [one for one in fresh if self._end(one) <= self._journal.begun]
            self._apply([one for one in fresh if self._end(one) > self._journal.begun], past)
            for one in fresh:
                self._history.add(one)

    def tick(self) -> None:
        """Let time pass: signal what it decides, if it is due."""
        with self._changed:
            if self.is_behind:
                self._changed.notify_all()
            if self._clock.now() >= self.next_tick:
                self._apply([Tick(0)])
        self._prune()

    @property
    def next_tick(self) -> int:
        """When :meth:`tick` is due, Unix seconds."""
        return next_tick(self._rules, self._state)

    @property
    def is_behind(self) -> bool:
        """Whether the clock says that the newest signal is yet to come."""
        return self._clock.now() < self._state.at - MOST_BEHIND_S

    @property
    def newest_window(self) -> int | None:
        """The newest window that was acted on."""
        return self._state.window_start

    @property
    def level(self) -> int:
        """The level that stands."""
        return self._state.level

    def newest(self) -> Shown:
        """The signal that stands; NO_SIGNAL before the first."""
        with self._changed:
            self._check()
            number = self._number
        if not number:
            raise WrongState(Reason.NO_SIGNAL, "nothing was signalled yet")
        return self._journal.signal(number)

    def watch(self, from_: int, is_active: Callable[[], bool]) -> Iterator[Shown]:
        """Signals at or after a time in order, then each new one; 0 for new ones only.

        Ends when ``is_active`` says so; :meth:`wake` makes it look.
        """
        with self._changed:
            self._check()
            place = 0 if from_ else self._number
        while newest := self._wait_beyond(place, is_active):
            page = self._journal.signals(from_, place, PAGE)
            for shown in page:
                if not is_active():
                    return
                yield shown
            # Those before ``from_`` are passed over.
            place = page[-1].number if page else newest

    def wake(self) -> None:
        """Let watchers look whether anybody still listens to them."""
        with self._changed:
            self._changed.notify_all()

    def _wait_beyond(self, place: int, is_active: Callable[[], bool]) -> int:
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or self.is_behind or self._number > place or not is_active()
            )
            self._check()
            return self._number if is_active() else 0

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(self._failure.reason, self._failure.message)
        self._check_clock()

    def _check_clock(self) -> None:
        if self.is_behind:
            raise Unavailable(
                Reason.STORE_UNAVAILABLE, "the clock is behind the newest signal: it was set back"
            )

    def _end(self, event: Settled | Gap) -> int:
        return event.window_start + self._rules.window_length

    def _apply(self, events: Sequence[Event], history: Sequence[Settled | Gap] = ()) -> None:
        entries, state = [], self._state
        for number, event in enumerate(events, self._number + 1):
            at = max(int(self._clock.now()), state.at)
            timed = msgspec.structs.replace(event, at=at)
            state, signal = step(self._rules, state, timed)
            drafts = self._drafts(number, timed, signal)
            entries.append(Entry(number, timed, state, signal, drafts))
        if not entries and not history:
            return
        try:
            self._journal.append(entries, history)
        except GridveilError as error:
            self._failure = error
            self._changed.notify_all()
            raise
        self._failure, self._state = None, state
        self._number += len(entries)
        self._changed.notify_all()
        for entry in entries:
            self._tell(entry.signal)

    def _tell(self, signal: Signal) -> None:
        for observer in self._observers:
            with suppress(Exception):  # who counts must not change what is signalled
                observer.signalled(signal)

    def _prune(self) -> None:
        now = int(self._clock.now())
        if now - self._pruned_at >= _PRUNE_EVERY_S:
            self._pruned_at = now
            # A clock that is ahead for a moment makes nothing old: windows tell the time too.
            before = min(now, self._history.newest or 0) - RETENTION_S
            self._journal.prune(before)
            self._history.forget(before)
