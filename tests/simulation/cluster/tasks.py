"""One thread of control: what would run at the same time takes turns, in an order from a seed.

A task has a thread of its own only for the sake of its stack. Exactly one thread runs at any
time: who hands over waits until it is called again. So nothing depends on the machine.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Killed(BaseException):
    """The process that a task belongs to has died."""


@dataclass(eq=False)
class Task:
    """Something that may wait."""

    action: Callable[[], Any]
    owner: object
    killed: bool = False
    ended: bool = False
    waits: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.turn.acquire()


class Scheduler:
    """Events in the order of their times, and the tasks that they start."""

    def __init__(self, start: float) -> None:
        self.now = start
        self.steps = 0
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._number = 0
        self._main = threading.Lock()
        self._main.acquire()
        self._idle: list[_Worker] = []
        self._workers: list[_Worker] = []
        self.tasks: dict[Task, None] = {}

    def at(self, when: float, action: Callable[[], Any]) -> None:
        """Do something then, or now if that is past; of the same time, in the order asked for."""
        self._number += 1
        heapq.heappush(self._events, (max(when, self.now), self._number, action))

    def run(self, until: float) -> None:
        """Do everything that is due before ``until``; what fails is raised."""
        while self._events and self._events[0][0] < until:
            self.now, _, action = heapq.heappop(self._events)
            self.steps += 1
            action()
            if self.failure is not None:
                raise self.failure
        self.now = max(self.now, until)

    def start(self, owner: object, action: Callable[[], Any]) -> Task:
        """Run a task until it waits or ends. Not from inside another task."""
        assert self.current is None
        task = Task(action, owner)
        self.tasks[task] = None
        worker = self._idle.pop() if self._idle else self._hire()
        worker.task = task
        self._hand_to(task, worker.turn)
        return task

    def sleep(self, until: float) -> None:
        """The running task waits."""
        task = self._running()
        self.at(until, lambda: self.wake(task))
        self._wait(task)

    def wait(self) -> None:
        """The running task waits until somebody wakes it."""
        self._wait(self._running())

    def wake(self, task: Task) -> None:
        """Go on with a task that waits."""
        if task.waits and not task.ended:
            self._hand_to(task, task.turn)

    def kill(self, owner: object) -> None:
        """Unwind all tasks of an owner, in the order they were started."""
        for task in [task for task in self.tasks if task.owner is owner]:
            task.killed = True
            self.wake(task)

    def close(self) -> None:
        """End all threads."""
        for task in list(self.tasks):
            task.killed = True
            self.wake(task)
        for worker in self._workers:
            worker.task = None
            worker.turn.release()
            worker.thread.join()

    def _running(self) -> Task:
        assert self.current is not None
        return self.current

    def _hand_to(self, task: Task, turn: threading.Lock) -> None:
        self.current, task.waits = task, False
        turn.release()
        self._main.acquire()
        self.current = None

    def _wait(self, task: Task) -> None:
        task.waits = True
        self._main.release()
        task.turn.acquire()
        if task.killed:
            raise Killed

    def _hire(self) -> _Worker:
        worker = _Worker(self)
        self._workers.append(worker)
        return worker

    def _done(self, worker: _Worker, task: Task, failure: BaseException | None) -> None:
        task.ended = True
        del self.tasks[task]
        self.failure = self.failure or failure
        self._idle.append(worker)
        self._main.release()


class _Worker:
    def __init__(self, scheduler: Scheduler) -> None:
        self.task: Task | None = None
        self.turn = threading.Lock()
        self.turn.acquire()
        self._scheduler = scheduler
        self.thread = threading.Thread(target=self._work, name="simulated", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            self.turn.acquire()
            if (task := self.task) is None:
                return
            failure: BaseException | None = None
            try:
                task.action()
            except Killed:
                pass
            except BaseException as error:
                failure = error
            self._scheduler._done(self, task, failure)
