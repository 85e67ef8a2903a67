"""How long it takes from a released total to the control signal that an operator receives.

    python -m benchmarks.control --rounds 60

Totals service and controller run as processes; totals are written to the release log as the
key-holder writes them, at random moments after their windows' ends. A round is a window: from
before its record is written until a client that watches has the signal. Encryption and opening are
no part of it.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from benchmarks.measure import Goal, Spread, parser, progress, report
from gridveil.clock import ScaledClock
from gridveil.control import Basis, ControlClient
from gridveil.protocol.layout import DIGEST_BYTES, ID_BYTES
from gridveil.protocol.release import RegisterTotal, Total
from gridveil.protocol.signing import SigningKey
from gridveil.protocol.v1 import totals_pb2
from gridveil.protocol.v1.log_pb2 import LogRecord, WindowReleased
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import LISTENING, CityPaths
from gridveil_services.demo.processes import ServiceProcess, free_addresses
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter

LENGTH = 900
RATE = 900.0
METERS = 1_000
RULES = "capacity_w = 1000000\nhysteresis_w = 10000\nramp_limit_w = 200000\n"
GOAL_MS = 200
MEASURED = Basis.MEASURED


class Releases:
    """The release log of a city whose key-holder does not run."""

    def __init__(self, paths: CityPaths) -> None:
        config = KeyHolderConfig.load(paths.config("keyholder"))
        at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
        self._policy = config.policy
        self._key: SigningKey = identity.load(config.state, at_rest)
        signer = LogSigner(config.city_id, self._key)
        self._log = LogWriter(paths.published / "log", signer)

    def close(self) -> None:
        self._log.close()

    def release(self, window: int, power_w: int) -> None:
        """Write a window's total, durably."""
        total = Total(
            city_id=self._policy.city_id,
            epoch_id=bytes(ID_BYTES),
            parameters_digest=bytes(DIGEST_BYTES),
            window_start=window,
            window_length=LENGTH,
            roster_version=1,
            enrolled=METERS,
            count=METERS,
            lanes=1,
            left_out=(),
            release_digest=bytes(DIGEST_BYTES),
            entries_root=bytes(DIGEST_BYTES),
            registers=tuple(
                RegisterTotal(register.name, register.unit, power_w * LENGTH // 3_600)
                for register in self._policy.registers
            ),
            blinding=bytes(32),
        )
        signed = totals_pb2.SignedTotal(total=total.encode(), signature=total.sign(self._key))
        self._log.append(LogRecord(released=WindowReleased(window_start=window, total=signed)))


@contextmanager
def running(folder: Path, clock: ScaledClock) -> Iterator[CityPaths]:
    """A city with its totals service and controller as processes."""
    options = CityOptions(min_cohort=100, development=True, addresses=free_addresses(LISTENING))
    paths = create_city(folder / "city", options)
    (paths.role("controller") / "control.toml").write_text(RULES)
    with ExitStack() as stack:
        # The totals service reads a log that is there.
        Releases(paths).close()
        for role in ("totals", "controller"):
            service = ServiceProcess(role, paths, clock)
            service.start()
            stack.callback(service.stop)
        yield paths


def latencies(paths: CityPaths, clock: ScaledClock, rounds: int) -> list[float]:
    """Milliseconds from each total to its signal."""
    draw, found = random.Random(1), []  # noqa: S311 - reproducible, and no secret
    first = int(clock.now() // LENGTH + 1) * LENGTH
    with ExitStack() as stack:
        log = stack.enter_context(closing(Releases(paths)))
        client = stack.enter_context(ControlClient.open(paths.profile("operator")))
        signals = stack.enter_context(closing(client.watch(1)))
        advance = stack.enter_context(progress("signals", rounds))
        for window in range(first, first + rounds * LENGTH, LENGTH):
            clock.sleep(window + LENGTH + draw.uniform(50, 500) - clock.now())
            began = time.perf_counter()
            log.release(window, draw.randrange(400_000, 1_200_000))
            next(one for one in signals if (one.window_start, one.basis) == (window, MEASURED))
            found.append((time.perf_counter() - began) * 1_000)
            advance(1)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__, 60).parse_args(arguments)
    clock = ScaledClock(1_767_225_600 + 10, time.time(), RATE)
    with tempfile.TemporaryDirectory() as name, running(Path(name), clock) as paths:
        found = latencies(paths, clock, options.rounds)
    spread = Spread.of(found)
    slowest = sorted(found)[int(len(found) * 0.95)]
    lines = [
        f"from total to signal, median of {len(found)}   {spread.show(0)} ms",
        f"nineteen in twenty within             {slowest:,.0f} ms",
    ]
    goals = [Goal("from total to signal, median ms", spread.median, GOAL_MS)]
    return report(options, "control", lines, goals, {"ms": found})


if __name__ == "__main__":
    sys.exit(main())
