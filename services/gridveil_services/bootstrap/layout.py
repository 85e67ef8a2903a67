"""Where the files of a city are that ``gridveil init`` made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SERVICES = ("keyholder", "aggregator", "totals")
"""In the order in which they are started, and in which ports are given out."""

CONTROLLER = "controller"
LISTENING = (*SERVICES, CONTROLLER)
"""All that have an address. A city does without a controller until somebody writes its rules."""

COMMANDS = {CONTROLLER: "control"}
"""How a service is called on the command line, where that is not its role's name."""

ENDPOINTS = {
    "registrar": ("keyholder",),
    "operator": ("totals", CONTROLLER),
    "auditor": ("totals", "aggregator", CONTROLLER),
    "meter": ("aggregator", "totals"),
    "gateway": ("aggregator", "totals"),
    "console": ("totals", CONTROLLER),
}
"""Services that each client is told the address of, as far as they have one. The console is an
operator."""

CLIENTS = tuple(ENDPOINTS)


def aggregator_names(count: int) -> list[str]:
    """Names of several aggregators, and of their folders: the first is called as if alone."""
    return ["aggregator", *(f"aggregator-{number}" for number in range(2, count + 1))]


@dataclass(frozen=True)
class CityPaths:
    """A city's folder. Each role's folder is all that role needs, and can be moved to its host."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca"

    @property
    def meters(self) -> Path:
        """Keys and outbox of simulated meters."""
        return self.folder / "meters"

    @property
    def fleet(self) -> Path:
        return self.meters / "fleet.jsonl"

    @property
    def published(self) -> Path:
        """What the key-holder publishes: release log and opened entries."""
        return self.role("keyholder") / "published"

    @property
    def redis(self) -> Path:
        """Who is let into the city's Redis, for its servers; only if windows are kept there."""
        return self.folder / "redis"

    def role(self, role: str) -> Path:
        return self.folder / role

    def tls(self, role: str) -> Path:
        return self.role(role) / "tls"

    def config(self, service: str) -> Path:
        return self.role(service) / f"{service}.toml"

    def profile(self, client: str) -> Path:
        return self.role(client) / "profile.toml"
