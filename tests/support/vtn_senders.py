"""A signaller and a sender over one journal, stepped by a test, for a VTN at a URL."""

from __future__ import annotations

from pathlib import Path

from gridveil.clock import ManualClock
from gridveil_services.controller.core import Gap, Settled
from gridveil_services.controller.history import History
from gridveil_services.controller.journal import Delivery, Journal, Kind
from gridveil_services.controller.rules import ControlRules
from gridveil_services.controller.signalling import Signaller
from gridveil_services.controller.vtn.client import VtnClient
from gridveil_services.controller.vtn.config import VtnAccess, VtnConfig
from gridveil_services.controller.vtn.drafts import Drafter
from gridveil_services.controller.vtn.failure import Failure
from gridveil_services.controller.vtn.sender import Sender
from tests.support.vtn import CLIENT, PROGRAM, REPORT_EVENT, SECRET

CITY = b"c" * 16
START = 1_767_225_600
RULES = ControlRules(
    capacity_w=1_000_000,
    hysteresis_w=10_000,
    ramp_limit_w=900_000,
    sites_w={"works": 300_000, "mall": 100_000},
    sites_share_w=200_000,
)


class Seen:
    """What an observer is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[Kind, Delivery]] = []
        self.failures: list[Failure] = []

    def concluded(self, kind: Kind, delivery: Delivery) -> None:
        self.ended.append((kind, delivery))

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


class Controlled:
    """Signals, and a sender that a test steps; its time is skipped over, not waited for."""

    def __init__(
        self,
        folder: Path,
        url: str,
        ca: Path | None,
        *,
        reports: bool = False,
        scope: str | None = None,
    ) -> None:
        secret = folder / "secret"
        secret.write_text(SECRET + "\n")
        access = VtnAccess(url, f"{url}/auth/token", CLIENT, secret, scope, ca)
        self.config = VtnConfig(PROGRAM, REPORT_EVENT if reports else None, access)
        self.path = folder / "controller.db"
        self.clock = ManualClock(START + 1_220)
        self.seen = Seen()
        self.skipped_s = 0.0
        self.at = 0
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.path, CITY, START)
        history = History(RULES, self.journal.windows())
        drafter = Drafter(
            RULES,
            PROGRAM,
            self.config.report_event,
            self.journal.instance,
            Delivery.PENDING,
        )
        self.signaller = Signaller(RULES, self.journal, history, self.clock, drafter)
        assert self.config.access is not None
        self.client = VtnClient(self.config.access)
        self.sender = Sender(
            self.journal, self.config, self.client, self.seen, lambda: self.skipped_s
        )

    def close(self) -> None:
        self.client.close()
        self.journal.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    def signal(self, power_w: int = 500_000) -> str:
        """Make a signal; the name of its first event."""
        self.clock.move_to(START + (self.at + 1) * 900 + 320)
        self.signaller.settle([Settled(0, START + self.at * 900, power_w // 4, 100, 100)])
        self.at += 1
        newest = self.signaller.newest()
        return f"gridveil-{self.journal.instance}-{newest.signal.at}-{newest.number}"

    def gap(self) -> None:
        self.clock.move_to(START + (self.at + 1) * 900 + 320)
        self.signaller.settle([Gap(0, START + self.at * 900, "REFUSED")])
        self.at += 1

    def send(self, steps: int = 20) -> list[float]:
        """Step until nothing waits, at most so often; how long it wanted to wait in between."""
        waits = []
        for _ in range(steps):
            wait = self.sender.step()
            waits.append(wait)
            self.skipped_s += wait
            if not self.journal.pending():
                break
        return waits

    def states(self, number: int) -> list[Delivery]:
        return [state for _, state in self.journal.signal(number).objects]
