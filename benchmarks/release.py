"""Opening a lane, and a whole window: time from the last report to the total, and peak memory.

Part 1, in this process on one core: signature checks, sealing keys, seals, point additions, and
the opening check proper (decryption, every slot, the opening equation) of one lane of 1,024 and
one of 16,384 reports.

Part 2, with the real services: a gateway hands in a window of --meters reports, evenly over
--spread seconds (0: as fast as the aggregator takes them); the last one completes the window.
Clients spread themselves over two thirds of the grace period, 200 s by default. Reports are built
before and kept in this process (17.7 kB each). Key-holder, aggregator and gateway share all cores.
Work after the seal is the CPU time of key-holder and aggregator from the last receipt to the total.
Peak memory is the kernel's VmHWM of each process, from its start to the release. The released total
is compared with the sum of the readings.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import floor_servers, opening
from benchmarks.fleet import Fleet, prebuilt, values
from benchmarks.load import Send, ServerProcess, grpc_sends
from benchmarks.local_city import WINDOW, LocalCity, running_city
from benchmarks.measure import (
    STDERR,
    Goal,
    Spread,
    parser,
    progress,
    report,
)
from gridveil.protocol.release import Total
from gridveil.protocol.v1 import aggregator_pb2
from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.releaselog.reader import LogReader

MOST_OPENING_MS = 10.0
MOST_CHECK_CPU_S = 12.0
MOST_WORK_AFTER_S = 3.0
FOR_METERS = 100_000
"""The goals for CPU are those of a window of so many reports."""
MOST_MEMORY_MB = 300.0
LANES = (1_024, 16_384)
CONNECTIONS = 4
RELEASE_LIMIT_S = 900
IDLE_S = 40
"""Longer than between two looks of the key-holder at what is due."""
IDLE_CPU_S = 0.5


@dataclass(frozen=True)
class Window:
    """What one window of the running city took."""

    meters: int
    feed_s: float
    """From the first call to the last receipt."""
    to_intent_s: float
    """From the last receipt until the key-holder's INTENT was durable."""
    to_release_s: float
    """From the last receipt until the total was durable."""
    keyholder_cpu_s: float
    """From the first call to the total: checks of entries, opening, and all else but what is done
    once an epoch."""
    aggregator_cpu_s: float
    keyholder_after_s: float
    """CPU from the last receipt to the total."""
    aggregator_after_s: float
    keyholder_idle_mb: float
    aggregator_idle_mb: float
    keyholder_peak_mb: float
    aggregator_peak_mb: float


def measure_window(meters: int, spread_s: float, folder: Path) -> Window:
    """Pass one window through a running city."""
    fleet = Fleet(os.urandom(16))
    with running_city(folder, fleet, meters, aggregator_core=None, other_core=None) as city:
        pool = prebuilt(fleet, city.parameters, WINDOW, meters)
        servers = (city.keyholder, city.aggregator)
        _await_idle(city.keyholder)
        idle = [server.resident_bytes() / 1e6 for server in servers]
        used = [server.cpu_seconds() for server in servers]
        started = time.time()
        _feed(city, pool, meters, spread_s)
        fed = time.time()
        used_fed = [server.cpu_seconds() for server in servers]
        intent, released = _settlement(city)
        used_all = [server.cpu_seconds() for server in servers]
        _compare(Total.decode(released.released.total.total), meters)
        last = fed + city.ahead
        return Window(
            meters,
            fed - started,
            intent.recorded_at_ms / 1000 - last,
            released.recorded_at_ms / 1000 - last,
            *(now - before for now, before in zip(used_all, used, strict=True)),
            *(now - before for now, before in zip(used_all, used_fed, strict=True)),
            *idle,
            *(server.peak_bytes() / 1e6 for server in servers),
        )


def _await_idle(server: ServerProcess) -> None:
    """Until all keys shared with meters, of this epoch and the next, are derived."""
    with STDERR.status("waiting for the key-holder to be idle"):
        before = server.cpu_seconds()
        while True:
            time.sleep(IDLE_S)
            now = server.cpu_seconds()
            if now - before < IDLE_CPU_S:
                return
            before = now


def _feed(city: LocalCity, pool: Sequence[bytes], meters: int, spread_s: float) -> None:
    """Hand all reports in, one call in flight on each connection."""
    pause = spread_s * CONNECTIONS / len(pool)
    sends = grpc_sends(city.gateway_channels(CONNECTIONS), floor_servers.METHOD)
    with ThreadPoolExecutor(CONNECTIONS) as threads, progress("handing in", meters) as advance:
        shares = [
            threads.submit(_hand_in, send, pool[at::CONNECTIONS], pause, advance)
            for at, send in enumerate(sends)
        ]
        for share in shares:
            share.result()


def _hand_in(
    send: Send, pool: Sequence[bytes], pause: float, advance: Callable[[int], None]
) -> None:
    started = time.monotonic()
    for at, batch in enumerate(pool):
        time.sleep(max(0.0, started + at * pause - time.monotonic()))
        outcomes = aggregator_pb2.SubmitReportsResponse.FromString(send(batch)).outcomes
        refused = [outcome.error for outcome in outcomes if outcome.HasField("error")]
        if refused:
            raise RuntimeError(f"{len(refused)} reports were refused: {refused[0]}")
        advance(len(outcomes))


def _settlement(city: LocalCity) -> tuple[LogRecord, LogRecord]:
    """INTENT and RESULT of the window, from the release log."""
    reader, found = LogReader(city.paths.published / "log"), dict[str, LogRecord]()
    until = time.monotonic() + RELEASE_LIMIT_S
    with STDERR.status("waiting for the total"):
        while time.monotonic() < until:
            found |= {str(record.WhichOneof("event")): record for record in reader.poll()}
            if "released" in found:
                return found["intent"], found["released"]
            if "refused" in found:
                raise RuntimeError("the window was refused")
            time.sleep(0.1)
    raise RuntimeError("the window was not released in time")


def _compare(total: Total, meters: int) -> None:
    names = [register.name for register in total.registers]
    truth = dict.fromkeys(names, 0)
    for number in range(meters):
        for name, value in values(names, number).items():
            truth[name] += value
    if total.count != meters or {name: total.sum(name) for name in names} != truth:
        raise RuntimeError("the total is not the sum of the readings")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    made = parser(__doc__, rounds=5)
    made.add_argument(
        "--meters", type=int, default=100_000, help="reports of the window (default 100000)"
    )
    made.add_argument(
        "--spread", type=float, default=60.0, help="seconds of handing them in (default 60)"
    )
    made.add_argument(
        "--part", choices=("opening", "window", "both"), default="both", help="what to measure"
    )
    options = made.parse_args(arguments)
    lines: list[str] = []
    goals: list[Goal] = []
    figures: dict[str, object] = {}
    if options.part != "window":
        _add_opening(options, lines, goals, figures)
    if options.part != "opening":
        _add_window(options, lines, goals, figures)
    return report(options, "release", lines, goals, figures)


def _add_opening(
    options: argparse.Namespace, lines: list[str], goals: list[Goal], figures: dict[str, object]
) -> None:
    measured: dict[int, dict[str, Spread]] = {}
    for count in LANES:
        measured[count] = opening.measure(count, options.rounds)
        goals.append(
            Goal(
                f"opening check of a lane of {count:,}, ms",
                measured[count][opening.CHECK].median,
                MOST_OPENING_MS,
            )
        )
    largest = measured[LANES[-1]]
    checks_s = sum(largest[step].median for step in opening.CHECKS) / 1000 * FOR_METERS / LANES[-1]
    what = f"signature and opening checks of {FOR_METERS:,} reports, s of CPU"
    goals.append(Goal(what, checks_s, MOST_CHECK_CPU_S))
    lines.append(f"{'one lane, ms':<34}" + "".join(f"{count:<30,}" for count in LANES))
    lines += [
        f"{step:<34}" + "".join(f"{measured[count][step].show(1):<30}" for count in LANES)
        for step in measured[LANES[0]]
    ]
    figures["opening_ms"] = {str(count): steps for count, steps in measured.items()}


def _add_window(
    options: argparse.Namespace, lines: list[str], goals: list[Goal], figures: dict[str, object]
) -> None:
    with tempfile.TemporaryDirectory(prefix="gridveil-release-") as folder:
        window = measure_window(options.meters, options.spread, Path(folder))
    if window.meters == FOR_METERS:
        after = window.keyholder_after_s + window.aggregator_after_s
        goals.append(Goal("CPU of both after the seal, s", after, MOST_WORK_AFTER_S))
    goals += [
        Goal("key-holder's peak memory, MB", window.keyholder_peak_mb, MOST_MEMORY_MB),
        Goal("aggregator's peak memory, MB", window.aggregator_peak_mb, MOST_MEMORY_MB),
    ]
    lines += ["", f"a window of {window.meters:,} reports"]
    lines += [f"{name:<34}{figure:,.1f}" for name, figure in asdict(window).items()]
    figures["window"] = asdict(window)


if __name__ == "__main__":
    sys.exit(main())
