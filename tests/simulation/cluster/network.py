"""What lies between the parties: calls may be lost, late, doubled, cut off or refused.

The seam is redis-py's client: ``Servers`` is the product's own, with its retry and its rule for
when a write counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from gridveil.protocol.errors import Reason, Unavailable
from gridveil_services.aggregator.store.interface import StoreFailed
from gridveil_services.aggregator.store.redis.servers import ANSWER_S, WAIT_MS, Call, Servers
from tests.simulation.cluster.memory_redis import Argument, Master

if TYPE_CHECKING:
    from tests.simulation.cluster.process import Process
    from tests.simulation.cluster.world import World

Command = Sequence[Argument]

CALL_FAULTS = (
    "request lost",
    "reply lost",
    "cut off midway",
    "call run twice",
    "call delayed",
    "paused in a call",
    "crashed in a call",
)
"""What may happen to one call, each as likely as the others."""


_SOUND = [
    *(b"appendonly", b"yes", b"appendfsync", b"always", b"no-appendfsync-on-rewrite", b"no"),
    *(b"aof-load-truncated", b"no", b"maxmemory-policy", b"noeviction"),
    *(b"min-replicas-to-write", b"9"),
]
"""What every server says of its settings."""


@lru_cache(maxsize=1 << 16)
def _slot(key: str) -> int:
    slot: int = key_slot(key.encode())
    return slot


@dataclass
class Network:
    """Who reaches whom, and what becomes of calls."""

    world: World
    masters: list[Master]
    cut: set[tuple[str, str]] = field(default_factory=set)
    """Process and the other party's name."""

    def exchange(self, process: Process, master: Master, commands: Sequence[Command]) -> list[Any]:
        """The answers to a pipeline; an exception if there are none."""
        world, name = self.world, f"{process.name}->{master.name}"
        self.point(process)
        self._reach(process, master)
        fault = world.faults.of_call()
        if fault is not None:
            world.count(fault)
            world.trace(name, fault)
        match fault:
            case "request lost":
                self._no_answer(process)
            case "cut off midway":
                self._run_all(process, master, commands[: world.source.randint(0, len(commands))])
                self._no_answer(process)
            case "call delayed":
                self._later(master, commands)
                self._no_answer(process)
            case "call run twice":
                self._later(master, commands)
            case "paused in a call":
                process.pause(world.source.expovariate(1 / 60))
            case "crashed in a call" if world.source.random() < 0.5:
                process.crash()
        answers = self._run_all(process, master, commands)
        if fault == "crashed in a call":
            process.crash()
        if fault == "reply lost":
            self._no_answer(process)
        self.point(process)
        return answers

    def point(self, process: Process) -> None:
        """A place where others may come between, and where a process may stop for ever."""
        world = self.world
        if world.source.random() < world.profile.switching:
            world.scheduler.sleep(world.now + world.source.expovariate(100))
        while process.up and world.now < process.paused_until:
            world.scheduler.sleep(process.paused_until)
        process.check_alive()

    def call_keyholder(self, process: Process, action: Callable[[], Any]) -> Any:
        """What the key-holder answers, if it is reached and the answer arrives."""
        world = self.world
        self.point(process)
        lost = world.faults.of_call() if world.faults.on else None
        away = not world.keyholder.up or (process.name, "keyholder") in self.cut
        if away or lost == "request lost":
            world.scheduler.sleep(world.now + 1)
            process.check_alive()
            raise Unavailable(Reason.KEYHOLDER_UNAVAILABLE, "the key-holder cannot be reached")
        if lost == "crashed in a call" and world.source.random() < 0.5:
            world.count(lost)
            process.crash()
        answer = action()
        if lost is not None:
            world.count("answer of the key-holder lost")
            world.trace(process.name, "keyholder", lost)
            if lost == "crashed in a call":
                process.crash()
            raise Unavailable(Reason.DEADLINE_EXCEEDED, "the key-holder did not answer")
        self.point(process)
        return answer

    def master_of(self, key: str) -> Master:
        """Where a key is kept."""
        return self.masters[_slot(key) % len(self.masters)]

    def _reach(self, process: Process, master: Master) -> None:
        if (process.name, master.name) in self.cut:
            self._no_answer(process)
        if not master.up:
            self.world.scheduler.sleep(self.world.now + 0.1)
            process.check_alive()
            raise ConnectionError("refused")

    def _no_answer(self, process: Process) -> None:
        waits = self.world.source.random() < 0.5
        if waits:
            self.world.scheduler.sleep(self.world.now + ANSWER_S)
            process.check_alive()
        raise TimeoutError("no answer") if waits else ConnectionError("reset")

    def _later(self, master: Master, commands: Sequence[Command]) -> None:
        """Run the commands another time; not on a server that was replaced meanwhile."""
        world, run_id = self.world, master.run_id
        held = [tuple(command) for command in commands if command[0] != "WAIT"]

        def arrive() -> None:
            if master.run_id == run_id and master.up and not master.loading:
                world.trace("late", master.name, [_answer(master, command) for command in held])

        delay = world.source.choice([0.01, 1.0, 60.0, 1200.0]) * world.source.random()
        world.scheduler.at(world.now + delay, arrive)

    def _run_all(self, process: Process, master: Master, commands: Sequence[Command]) -> list[Any]:
        answers, run_id = [], master.run_id
        for place, command in enumerate(commands):
            if place and self.world.profile.switching:
                self.point(process)
                if master.run_id != run_id:
                    raise ConnectionError("closed")
            if command[0] == "WAIT":
                self._wait(process, master, int(command[1]))
            answer = _answer(master, command)
            if isinstance(answer, ConnectionError):
                raise answer
            self.world.trace(process.name, command[0], answer)
            answers.append(answer)
        return answers

    def _wait(self, process: Process, master: Master, wanted: int) -> None:
        if master.in_step < wanted:
            self.world.count("too few replicas had a write")
            self.world.scheduler.sleep(self.world.now + WAIT_MS / 1000)
            process.check_alive()


def _answer(master: Master, command: Command) -> Any:
    try:
        return master.execute(command)
    except (ResponseError, ConnectionError) as error:
        return error


class Pipeline:
    """redis-py's, as far as ``Servers`` uses it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[Command] = []

    def execute_command(self, *command: Argument) -> None:
        self._commands.append(command)

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        client = self._client
        return client.network.exchange(client.process, client.master, self._commands)


@dataclass(frozen=True)
class Client:
    """redis-py's, of one process and one server."""

    network: Network
    process: Process
    master: Master

    def pipeline(self, *, transaction: bool) -> Pipeline:
        assert not transaction
        return Pipeline(self)

    def info(self, section: str) -> dict[str, Any]:
        self.network.point(self.process)
        self.network._reach(self.process, self.master)
        return self.master.info(section)

    def close(self) -> None:
        pass


class SimulatedServers(Servers):
    """The product's own, but for how a server is reached."""

    def __init__(
        self,
        network: Network,
        process: Process,
        replicas: int,
        fail: Callable[[str], StoreFailed],
    ) -> None:
        self.replicas = replicas
        self._on_defect = fail
        self._failed = False
        self._single = None
        self._cluster = None
        self._clients: list[Any] = [Client(network, process, m) for m in network.masters]

    def masters(self) -> list[Any]:
        return self._clients

    def close(self) -> None:
        pass

    def _write(
        self, client: Any, calls: Sequence[Call], replicas: int
    ) -> tuple[list[Any], Any, Any]:
        """Not as a transaction: others may come between two scripts, as in a cluster."""
        commands: list[Command] = [call.command for call in calls]
        if not replicas:
            return client.network.exchange(client.process, client.master, commands), _SOUND, 0
        wait: Command = ("WAIT", replicas, WAIT_MS)
        *answers, reached = client.network.exchange(
            client.process, client.master, [*commands, wait]
        )
        return answers, _SOUND, reached

    def _by_server(self, calls: Sequence[Call]) -> list[tuple[Any, list[int]]]:
        places: dict[int, list[int]] = {}
        for place, call in enumerate(calls):
            places.setdefault(_slot(call.key) % len(self._clients), []).append(place)
        return [(self._clients[number], found) for number, found in places.items()]


def all_links(processes: Sequence[str], others: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every pair that can be cut."""
    return ((process, other) for process in processes for other in others)
