"""Loopback ports for servers that a test starts later than it chooses their ports.

No two test processes of a run are given the same port, nor is one process given a port twice:
one that is free now may be needed for a server that is still to start, or is being restarted.
"""

from __future__ import annotations

import os
import random
import socket
from functools import cache
from itertools import cycle

from gridveil_services.bootstrap.layout import LISTENING

HOST = "127.0.0.1"
# Ports and those 10,000 above are below the ones that a demo draws from, and those of outgoing
# connections.
_FIRST, _END = 2_000, 5_000


def spare_port() -> int:
    """A port that is free, and so is the one 10,000 above, which a Redis cluster uses."""
    ports = _ports()
    return next(port for port in ports if _is_free(port) and _is_free(port + 10_000))


def spare_addresses() -> dict[str, str]:
    """An address for each service of a city."""
    return {role: f"{HOST}:{spare_port()}" for role in LISTENING}


@cache
def _ports() -> cycle[int]:
    """The ports of this test process, from anywhere on."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(_FIRST + worker % workers, _END, workers)
    start = random.SystemRandom().randrange(len(own))
    return cycle([*own[start:], *own[:start]])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
