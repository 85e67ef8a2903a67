"""Server CPU a report with metrics and without: two aggregators, side by side, in one run.

a  metrics are served, and scraped once a round.
b  no [metrics]: nothing counts.

Both in calls of 128 reports and in calls of one, where counting weighs most. Each aggregator is
pinned to core 0, the load to core 1; a round is one burst of each.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import floor_servers
from benchmarks.fleet import BATCH, Fleet, prebuilt
from benchmarks.load import Send, ServerProcess, burst, grpc_sends
from benchmarks.local_city import WINDOW, running_city
from benchmarks.measure import (
    LOAD_CORE,
    SERVER_CORE,
    Goal,
    Spread,
    parser,
    pinned,
    progress,
    ratios,
    report,
)
from gridveil.protocol.v1 import aggregator_pb2

MOST = 1.05
SINGLE = "/gridveil.v1.Aggregator/SubmitReport"


class Side:
    """One aggregator, and the reports that it has not seen yet."""

    def __init__(
        self, stack: ExitStack, folder: Path, options: argparse.Namespace, metrics: str | None
    ) -> None:
        folder.mkdir()
        fleet, bursts = Fleet(os.urandom(16)), options.rounds + 1
        count = bursts * (options.batches + options.single_batches) * BATCH
        city = stack.enter_context(
            running_city(
                folder,
                fleet,
                count + 1,
                aggregator_core=SERVER_CORE,
                other_core=LOAD_CORE,
                metrics=metrics,
            )
        )
        self._pool = iter(prebuilt(fleet, city.parameters, WINDOW, count))
        self._server: ServerProcess = city.aggregator
        self._metrics = metrics
        channels = city.gateway_channels(options.connections)
        self._batched: Sequence[Send] = grpc_sends(channels, floor_servers.METHOD)
        self._single: Sequence[Send] = grpc_sends(channels, SINGLE)
        self._options = options

    def batched(self) -> float:
        """Server CPU of a burst of batches, microseconds a report."""
        return self._run(self._batched, self._take(self._options.batches), BATCH)

    def single(self) -> float:
        """The same in calls of one report."""
        messages = [
            one.SerializeToString()
            for batch in self._take(self._options.single_batches)
            for one in aggregator_pb2.SubmitReportsRequest.FromString(batch).reports
        ]
        return self._run(self._single, messages, 1)

    def _take(self, count: int) -> list[bytes]:
        return [next(self._pool) for _ in range(count)]

    def _run(self, sends: Sequence[Send], messages: Sequence[bytes], each: int) -> float:
        if self._metrics is not None:
            url = f"http://{self._metrics}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                answer.read()
        load, _ = burst(self._server, sends, messages, each)
        return load.cpu_us


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """All rounds; the first is warm-up and dropped."""
    with ExitStack() as stack:
        sides = {
            "a": Side(stack, folder / "a", options, _free_address()),
            "b": Side(stack, folder / "b", options, None),
        }
        stack.enter_context(pinned(LOAD_CORE))
        figures: dict[str, list[float]] = {}
        with progress("a b", 4 * (options.rounds + 1)) as advance:
            for number in range(options.rounds + 1):
                for name, side in sides.items():
                    for kind, run in (("128", side.batched), ("1", side.single)):
                        figure = run()
                        if number:
                            figures.setdefault(f"{name} {kind}", []).append(figure)
                        advance(1)
        return figures


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return f"127.0.0.1:{held.getsockname()[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    made = parser(__doc__, rounds=7)
    made.add_argument("--batches", type=int, default=24, help="calls of 128 a round (default 24)")
    made.add_argument(
        "--single-batches", type=int, default=6, help="hundreds and 28 of single calls (default 6)"
    )
    made.add_argument("--connections", type=int, default=4, help="to each server (default 4)")
    options = made.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gridveil-metrics-") as folder:
        cpu = measure(options, Path(folder))
    over = {kind: ratios(cpu[f"a {kind}"], cpu[f"b {kind}"]) for kind in ("128", "1")}
    lines = [f"{name:<8}{Spread.of(found).show(1)} us a report" for name, found in cpu.items()]
    lines += [f"a/b {kind:<4}{spread.show(3)}" for kind, spread in over.items()]
    goals = [Goal("CPU a / b, calls of 128", over["128"].median, MOST)]
    return report(options, "metrics", lines, goals, {"cpu_us": cpu, "ratios": over})


if __name__ == "__main__":
    sys.exit(main())
