"""Following the totals service: what was settled since the journal left off, then as it settles."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import structlog

from gridveil.clock import Clock
from gridveil.operator import NotReleased, Operator, Outcome
from gridveil.profile import Profile
from gridveil.protocol.errors import (
    Exhausted,
    GridveilError,
    IntegrityLost,
    MalformedInput,
    Reason,
    Unavailable,
)
from gridveil.protocol.windows import EXPIRY_S
from gridveil.reconnection import Reconnection
from gridveil_services.controller.core import Gap, Settled
from gridveil_services.controller.history import History
from gridveil_services.controller.rules import ControlRules
from gridveil_services.controller.signalling import Signaller

HISTORY_S = 63 * 86_400
"""What is fetched at the first start: what the forecast learns from."""
_LOOK_BACK_S = 2 * EXPIRY_S
"""A window this much older than one that was settled is settled too: by then it is expired."""
_BATCH = 200
_AFTER_A_REFUSAL_S = 10.0
"""What time does not heal by itself may be healed by people: it is tried again."""

_log = structlog.get_logger()


class Follower:
    """Hands verified outcomes to the signaller, from a thread of its own."""

    def __init__(
        self,
        profile: Profile,
        rules: ControlRules,
        signaller: Signaller,
        history: History,
        clock: Clock,
    ) -> None:
        self._profile = profile
        self._rules = rules
        self._signaller = signaller
        self._history = history
        self._clock = clock
        self._operator: Operator | None = None
        self._following = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def following(self) -> bool:
        """Whether all that is settled is known, as far as the totals service says."""
        return self._following

    def catch_up(self) -> None:
        """Take what was settled while nobody followed; GridveilError if that is not possible."""
        with Operator.open(self._profile) as operator:
            self._catch_up(operator)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; a batch in progress is taken."""
        self._stopped.set()
        if (operator := self._operator) is not None:
            operator.interrupt()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        failures = Reconnection(None)
        while not self._stopped.is_set():
            delay = self._follow_once(failures)
            self._following, self._operator = False, None
            self._stopped.wait(delay)

    def _follow_once(self, failures: Reconnection) -> float:
        """Follow until that fails; real seconds to wait."""
        try:
            with Operator.open(self._profile) as self._operator:
                self._follow(self._operator, failures)
        except GridveilError as error:
            return self._delay(error, failures)
        except Exception as error:
            if not self._stopped.is_set():
                _log.error("following totals failed", exc_info=error)
        return _AFTER_A_REFUSAL_S

    def _follow(self, operator: Operator, failures: Reconnection) -> None:
        if self._stopped.is_set():
            return
        self._catch_up(operator)
        failures.connected(time.monotonic())
        failures.received()
        self._following = True
        _log.info("following totals")
        for outcome in operator.watch(self._resume_from(), give_up_after_s=0):
            self._settle([outcome])

    def _delay(self, error: GridveilError, failures: Reconnection) -> float:
        if self._stopped.is_set():
            return 0.0
        if isinstance(error, Unavailable | Exhausted):
            _log.warning("totals are out of reach", reason=error.reason)
            return failures.failed(error, time.monotonic())
        level = _log.critical if isinstance(error, IntegrityLost) else _log.error
        level("totals cannot be acted on", reason=error.reason, cause=error.message)
        return _AFTER_A_REFUSAL_S

    def _catch_up(self, operator: Operator) -> None:
        outcomes = operator.list(self._resume_from())
        while batch := list(islice(outcomes, _BATCH)):
            self._settle(batch)
            if self._stopped.is_set():
                return

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        self._signaller.settle(self._events(outcomes))

    def _events(self, outcomes: Iterable[Outcome]) -> Iterator[Settled | Gap]:
        for outcome in outcomes:
            if not self._history.knows(outcome.window_start):
                yield event_of(self._rules, outcome)

    def _resume_from(self) -> int:
        """First window to ask for, on the grid."""
        newest, length = self._history.newest, self._rules.window_length
        oldest = int(self._clock.now()) - HISTORY_S if newest is None else newest - _LOOK_BACK_S
        return max(oldest // length, 1) * length


def event_of(rules: ControlRules, outcome: Outcome) -> Settled | Gap:
    """What became of a window, its time still to be set.

    Raises:
        MalformedInput: CONFIG_INVALID for a total of other windows than in the rules, or without
            their register in Wh.
    """
    if isinstance(outcome, NotReleased):
        return Gap(0, outcome.window_start, outcome.reason.value)
    total = outcome.total
    units = {register.name: register.unit for register in total.registers}
    if units.get(rules.register) != "Wh" or total.window_length != rules.window_length:
        raise MalformedInput(
            Reason.CONFIG_INVALID, "the totals have no such register in Wh, or other windows"
        )
    return Settled(0, total.window_start, total.sum(rules.register), total.count, total.enrolled)
