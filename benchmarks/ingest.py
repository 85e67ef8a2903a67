"""Reports a second and server CPU a report, beside what one would write from the tutorials.

a  Gridveil's aggregator: SubmitReports of 128, mutual TLS, every signature checked, acknowledged
   after the commit to SQLite (synchronous=FULL).
b  A plain aggregator: insecure, one TenSEAL vector of the usual parameters (N = 8192,
   60 + 40 + 40 + 60 bits) a call, added in memory.
c  Receive only: a's messages and TLS; protobuf is parsed and answered.
d  Raw TCP: a's bytes over loopback, a byte back a message.

Each server is a process pinned to core 0; the load and a's key-holder are on core 1. All send
from as many connections, one message in flight each. A round is one burst of each, a b c d; every
round of a consists of reports never sent before.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import tenseal
from google.protobuf.wrappers_pb2 import BytesValue

from benchmarks import baseline_server, floor_servers
from benchmarks.fleet import BATCH, Fleet, prebuilt
from benchmarks.load import (
    Load,
    RawConnection,
    Send,
    ServerProcess,
    burst,
    grpc_sends,
    module,
    serving,
)
from benchmarks.local_city import WINDOW, LocalCity, running_city
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

LEAST_TO_BASELINE = 9.0
DISTINCT_VECTORS = 16
NAMES = {"a": "gridveil", "b": "baseline", "c": "receive only", "d": "raw TCP"}

Measurements = dict[str, list[Load]]


@dataclass(frozen=True)
class Target:
    """A server, how to send to it, and what to send in a round."""

    server: ServerProcess
    sends: Sequence[Send]
    messages: Callable[[int], Sequence[bytes]]
    reports_each: int
    check: Callable[[bytes], None]

    def run(self, number: int) -> Load:
        """One burst, and a look at each answer after it."""
        load, answers = burst(self.server, self.sends, self.messages(number), self.reports_each)
        for answer in answers:
            self.check(answer)
        return load


def measure(options: argparse.Namespace, folder: Path) -> Measurements:
    """All rounds."""
    bursts = options.rounds + 1
    fleet, count = Fleet(os.urandom(16)), bursts * options.batches * BATCH
    with ExitStack() as stack:
        # One meter more than report: the window must not be complete while it is measured.
        city = stack.enter_context(
            running_city(
                folder, fleet, count + 1, aggregator_core=SERVER_CORE, other_core=LOAD_CORE
            )
        )
        pool = prebuilt(fleet, city.parameters, WINDOW, count)
        stack.enter_context(pinned(LOAD_CORE))
        targets = {
            "a": gridveil_target(city, pool, options),
            "b": _baseline(stack, folder, options),
            "c": _receive(stack, city, folder, pool, options),
            "d": _raw(stack, folder, pool, options),
        }
        return _rounds(targets, bursts)


def _rounds(targets: dict[str, Target], bursts: int) -> Measurements:
    loads: Measurements = {name: [] for name in targets}
    with progress("a b c d", bursts * len(targets)) as advance:
        for number in range(bursts):
            for name, target in targets.items():
                load = target.run(number)
                if number:
                    loads[name].append(load)
                advance(1)
    return loads


def gridveil_target(city: LocalCity, pool: Sequence[bytes], options: argparse.Namespace) -> Target:
    """A running city's aggregator; each round takes ``options.batches`` of the pool's messages."""
    sends = grpc_sends(city.gateway_channels(options.connections), floor_servers.METHOD)
    size = options.batches

    def fresh(number: int) -> Sequence[bytes]:
        return pool[number * size : (number + 1) * size]

    return Target(city.aggregator, sends, fresh, BATCH, _check_receipts)


def _check_receipts(answer: bytes) -> None:
    outcomes = aggregator_pb2.SubmitReportsResponse.FromString(answer).outcomes
    fresh = [o for o in outcomes if o.HasField("receipt") and not o.receipt.duplicate]
    if len(fresh) != BATCH:
        refused = next((o.error for o in outcomes if o.HasField("error")), None)
        raise RuntimeError(f"only {len(fresh)} of {BATCH} reports were accepted: {refused}")


def _baseline(stack: ExitStack, folder: Path, options: argparse.Namespace) -> Target:
    context = baseline_server.usual_context()
    public = folder / "baseline-context"
    public.write_bytes(context.serialize(save_secret_key=False))
    vectors = [
        tenseal.ckks_vector(context, [float(at), 0.0]).serialize() for at in range(DISTINCT_VECTORS)
    ]
    distinct = [BytesValue(value=vector).SerializeToString() for vector in vectors]
    messages = [distinct[at % DISTINCT_VECTORS] for at in range(options.baseline_calls)]
    command = module("benchmarks.baseline_server", "--context", str(public))
    server = stack.enter_context(serving(command, folder / "baseline.log", SERVER_CORE))
    pooled = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        stack.enter_context(grpc.insecure_channel(server.address, pooled))
        for _ in range(options.connections)
    ]
    sends = grpc_sends(channels, baseline_server.METHOD)
    return Target(server, sends, lambda _: messages, 1, lambda _: None)


def _receive(
    stack: ExitStack,
    city: LocalCity,
    folder: Path,
    pool: Sequence[bytes],
    options: argparse.Namespace,
) -> Target:
    command = module(
        "benchmarks.floor_servers", "receive", "--tls", str(city.paths.tls("aggregator"))
    )
    server = stack.enter_context(serving(command, folder / "receive.log", SERVER_CORE))
    channels = city.gateway_channels(options.connections, server.address)
    sends = grpc_sends(channels, floor_servers.METHOD)
    return Target(server, sends, lambda _: _floor_messages(pool, options), BATCH, lambda _: None)


def _raw(
    stack: ExitStack, folder: Path, pool: Sequence[bytes], options: argparse.Namespace
) -> Target:
    command = module("benchmarks.floor_servers", "raw")
    server = stack.enter_context(serving(command, folder / "raw.log", SERVER_CORE))
    connections = [RawConnection(server.address) for _ in range(options.connections)]
    for connection in connections:
        stack.callback(connection.close)
    sends = [connection.send for connection in connections]
    return Target(server, sends, lambda _: _floor_messages(pool, options), BATCH, lambda _: None)


def _floor_messages(pool: Sequence[bytes], options: argparse.Namespace) -> list[bytes]:
    """Four times as many as of a: the burst is that much shorter."""
    return list(pool[: options.batches]) * 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    made = parser(__doc__, rounds=7)
    made.add_argument("--batches", type=int, default=40, help="calls of 128 a round (default 40)")
    made.add_argument("--baseline-calls", type=int, default=600, help="of b a round (default 600)")
    made.add_argument("--connections", type=int, default=4, help="to each server (default 4)")
    options = made.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gridveil-ingest-") as folder:
        loads = measure(options, Path(folder))
    speed = {name: [load.per_second for load in found] for name, found in loads.items()}
    busy = {name: [load.cpu_us for load in found] for name, found in loads.items()}
    cpu = {name: Spread.of(found) for name, found in busy.items()}
    over = {f"a/{name}": ratios(speed["a"], speed[name]) for name in "bcd"}
    over["CPU b/a"] = ratios(busy["b"], busy["a"])
    goals = [Goal("a / b, reports a second", over["a/b"].median, LEAST_TO_BASELINE, at_least=True)]
    figures = {
        "reports_per_second": {name: Spread.of(found) for name, found in speed.items()},
        "server_cpu_us": cpu,
        "ratios": over,
    }
    return report(options, "ingest", _lines(speed, cpu, over), goals, figures)


def _lines(
    speed: dict[str, list[float]], cpu: dict[str, Spread], over: dict[str, Spread]
) -> list[str]:
    lines = [f"{'':<16}{'reports/s':<38}{'server CPU, us a report'}"]
    lines += [
        f"{key} {NAMES[key]:<14}{Spread.of(found).show(0):<38}{cpu[key].show(1)}"
        for key, found in speed.items()
    ]
    return lines + [f"{name:<16}{spread.show()}" for name, spread in over.items()]


if __name__ == "__main__":
    sys.exit(main())
