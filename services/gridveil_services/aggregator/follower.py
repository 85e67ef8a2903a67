"""Follows the key-holder: city parameters and rosters, and so which windows may be opened.

What it signed is kept, so that a restart works while it is away; a window whose roster is not
known takes no report.

An epoch may be destroyed before its end. So each window's parameters are asked for again once
they are fixed and before its reports are taken, and whenever a window was settled; a window that
holds no report yet comes under the parameters of the successor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from gridveil.clock import Clock
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import (
    GridveilError,
    MalformedInput,
    NotFound,
    Reason,
    WrongState,
)
from gridveil.protocol.roster import RosterVersion, open_roster_version
from gridveil.protocol.windows import WindowRules, lane_count
from gridveil_services.aggregator.city import City, Roster, SignedParameters
from gridveil_services.aggregator.committer import Committer
from gridveil_services.aggregator.periodic import retry_delay_s
from gridveil_services.aggregator.roster_change import checked_change
from gridveil_services.aggregator.store.interface import Documents, Phase, Store, Window
from gridveil_services.aggregator.upstream import KeyHolderClient

_log = structlog.get_logger()

SETTLE_S = 10.0
"""Metering time after a window's start before its roster is asked for: clocks differ."""
LONGEST_SLEEP_S = 5.0
SHORTEST_SLEEP_S = 0.01
KICK_PAUSE_S = 0.5
"""Real time between two questions to the key-holder that reports gave rise to."""


class Follower:
    """Keeps :class:`City` and the store's windows up to date."""

    def __init__(
        self,
        *,
        city: City,
        store: Store,
        documents: Documents,
        committer: Committer,
        keyholder: KeyHolderClient,
        clock: Clock,
        development: bool,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_change`` is called when something new is known."""
        self._city = city
        self._store = store
        self._documents = documents
        self._committer = committer
        self._keyholder = keyholder
        self._clock = clock
        self._development = development
        self._on_change = on_change
        self._failures = 0
        self._kicked = False
        self._asked_at = float("-inf")
        self._leads_now = False
        self._wanted = self._followed = 0
        """How often the epochs were to be looked at again, and the last time that was done."""
        self._confirmed: set[int] = set()
        """Windows whose parameters were asked for after they were fixed."""
        self._ahead_of = 0
        """The window during which the next one's parameters were asked for."""

    @property
    def ready(self) -> bool:
        """Whether reports can be judged at all."""
        return self._city.parameters.policy is not None and self._city.roster.head is not None

    def kick(self) -> None:
        """Ask soon: a report names parameters or a window that are not known."""
        self._kicked = True

    def follow_epochs(self) -> None:
        """Ask soon whether windows that hold no report have come to another epoch."""
        self._wanted += 1

    def lead(self) -> None:
        """Ask soon for the epoch of every window again: whoever led before may have moved none."""
        self._leads_now = True
        self.follow_epochs()

    def step(self) -> float:
        """Ask for what is due; real seconds until something may be due again."""
        now = self._clock.now()
        if self._kicked and time.monotonic() < self._asked_at + KICK_PAUSE_S:
            return KICK_PAUSE_S
        if not (self._kicked or self._is_due(now)):
            return self._until_next_window(now)
        self._kicked = False
        self._asked_at = time.monotonic()
        try:
            self._ask(now)
        except GridveilError as error:
            self._failures += 1
            _log.warning("the key-holder could not be followed", reason=error.reason)
            return retry_delay_s(self._failures, self._clock)
        self._failures = 0
        return self._until_next_window(now)

    def _is_due(self, now: float) -> bool:
        policy = self._city.parameters.policy
        if policy is None:
            return True
        rules = policy.rules
        return (
            rules.start_at(now) != self._ahead_of
            or self._wanted != self._followed
            or bool(self._missing(rules, now))
            or any(confirm_at(rules, window.start) <= now for window in self._unconfirmed(now))
        )

    def _missing(self, rules: WindowRules, now: float) -> list[int]:
        windows = windows_to_open(rules, now)
        return [start for start in windows if self._store.window(start) is None]

    def _unconfirmed(self, now: float) -> list[Window]:
        """Windows that may come under other parameters yet."""
        return [
            window
            for window in self._store.windows()
            if window.phase is Phase.OPEN
            and window.start not in self._confirmed
            and now < window.closes
            and not self._store.count(window.start)
        ]

    def _until_next_window(self, now: float) -> float:
        policy = self._city.parameters.policy
        if policy is None:
            return SHORTEST_SLEEP_S
        rules = policy.rules
        since = now - settle_s(rules)
        times = [confirm_at(rules, window.start) - now for window in self._unconfirmed(now)]
        wait = self._clock.real(min([rules.start_at(since) + rules.length - since, *times]))
        return min(LONGEST_SLEEP_S, max(SHORTEST_SLEEP_S, wait))

    def _ask(self, now: float) -> None:
        wanted = self._wanted
        if self._leads_now:
            self._leads_now = False
            self._confirmed.clear()
        current = self._learn(self._keyholder.parameters(0))
        rules = current.policy.rules
        refusal: GridveilError | None = None
        for start in self._missing(rules, now):
            try:
                self._open(start)
            except (WrongState, NotFound) as error:
                # It will never open. After any other error no later window may overtake:
                # rosters are followed forward.
                refusal = error
        self._learn(self._keyholder.parameters(rules.start_at(now) + rules.length))
        for window in self._unconfirmed(now):
            self._confirm(window, rules, now)
        self._confirmed.intersection_update(window.start for window in self._store.windows())
        self._followed = wanted
        if refusal is not None:
            raise refusal
        self._ahead_of = rules.start_at(now)

    def _learn(self, signed: SignedParameters) -> CityParameters:
        parameters = signed.parameters
        if parameters.policy.development != self._development:
            raise MalformedInput(
                Reason.CONFIG_INVALID, "development is not what the key-holder's parameters say"
            )
        if self._city.parameters.named(parameters.digest) is None:
            self._committer.run(lambda: self._documents.save_parameters(*signed))
            self._city.parameters.add(signed)
            _log.info("parameters", epoch=parameters.epoch.epoch_id.hex())
            self._on_change()
        return parameters

    def _open(self, start: int) -> None:
        parameters = self._learn(self._keyholder.parameters(start))
        head = self._follow_roster(start)
        window = plan_window(parameters, head, start)
        opens = parameters.policy.rules.opens(start)
        self._committer.run(lambda: self._store.open_window(window, opens))
        _log.info("window", window=start, roster=head.version, enrolled=head.count)

    def _confirm(self, window: Window, rules: WindowRules, now: float) -> None:
        """Have a window without reports be of the epoch that serves it."""
        try:
            parameters = self._learn(self._keyholder.parameters(window.start))
        except WrongState as refusal:
            # Its keys are destroyed, and no successor serves it: it will have no total.
            _log.warning("a window is without keys", window=window.start, reason=refusal.reason)
            self._confirmed.add(window.start)
            return
        if window.parameters_digest != parameters.digest:
            moved = moved_window(window, parameters)
            if self._committer.run(lambda: self._store.move_window(moved)):
                epoch = parameters.epoch.epoch_id.hex()
                _log.info("a window has come to another epoch", window=window.start, epoch=epoch)
        if confirm_at(rules, window.start) <= now:
            self._confirmed.add(window.start)

    def _follow_roster(self, start: int) -> RosterVersion:
        """The roster version in force for a window, with all its members known."""
        held = self._city.roster.head
        known = 0 if held is None else held.version
        change = self._keyholder.roster(known, start)
        head = change.head
        if head.effective_window > start or head.version < known:
            raise WrongState(Reason.ROSTER_VERSION, "the roster of the window is not the newest")
        if head == held:
            return head
        change = checked_change(
            change, self._documents.members, lambda: self._keyholder.roster(0, start)
        )
        self._committer.run(
            lambda: self._documents.save_roster(
                head, change.signature, change.removed, change.added
            )
        )
        self._city.roster.apply(head, change.removed, change.added)
        self._on_change()
        return head


def load_city(documents: Documents, city_id: bytes, identity_key: bytes) -> City:
    """What was known before the restart; signatures are checked anew.

    Raises:
        NotAuthentic: KEY_NOT_PINNED if something was signed by another key than the pinned one.
    """
    city = City()
    for document, signature in documents.parameters():
        parameters = open_city_parameters(document, signature, identity_key, city_id)
        city.parameters.add(SignedParameters(parameters, document, signature))
    held = documents.roster()
    if held is not None:
        stored, signature = held
        head = open_roster_version(stored.encode(), signature, identity_key, city_id)
        city.roster = Roster(documents.memberships(), head)
    return city


def windows_to_open(rules: WindowRules, now: float) -> range:
    """Starts of the windows that take reports, or will, and whose roster is fixed."""
    first = rules.start_at(now - rules.length - rules.grace) + rules.length
    last = rules.start_at(now - settle_s(rules))
    return range(max(first, rules.length), last + 1, rules.length)


def settle_s(rules: WindowRules) -> float:
    """Metering time after a window's start in which clocks may differ about it."""
    return min(SETTLE_S, (rules.length - rules.early_leeway) / 2)


def confirm_at(rules: WindowRules, start: int) -> float:
    """When a window's parameters are asked for again: they are fixed, even if clocks differ."""
    fixed = rules.fixed(start)
    return fixed + (rules.opens(start) - fixed) / 3


def moved_window(window: Window, parameters: CityParameters) -> Window:
    """The same window, of the same meters, under other parameters."""
    policy = parameters.policy
    crypto, slots = policy.crypto, policy.layout.slots
    return replace(
        window,
        closes=policy.rules.closes(window.start),
        parameters_digest=parameters.digest,
        lanes=lane_count(window.enrolled, crypto, slots),
        lane_capacity=crypto.meters_per_lane(slots),
        parameter_set=crypto.name,
        slots=slots,
    )


def plan_window(parameters: CityParameters, head: RosterVersion, start: int) -> Window:
    """What is fixed of a window by its parameters and roster version."""
    policy = parameters.policy
    crypto, slots = policy.crypto, policy.layout.slots
    return Window(
        start=start,
        end=policy.rules.end(start),
        closes=policy.rules.closes(start),
        parameters_digest=parameters.digest,
        roster_version=head.version,
        enrolled=head.count,
        lanes=lane_count(head.count, crypto, slots),
        lane_capacity=crypto.meters_per_lane(slots),
        parameter_set=crypto.name,
        slots=slots,
    )
