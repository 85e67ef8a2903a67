"""Making a city: its ids, keys, development certificates and every role's configuration."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from gridveil.days import time_zone
from gridveil.files import make_folder, sync_folder, write_durably
from gridveil.protocol.city import (
    MIN_HONEST,
    PPM,
    CityPolicy,
    EntryAudience,
    FailingLanes,
    Register,
)
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES
from gridveil.protocol.noise import LOSS_UNIT, NoisePolicy
from gridveil.protocol.parameter_sets import DEFAULT_PARAMETER_SET
from gridveil.protocol.refusal_lock import check_refusals_per_day
from gridveil_services.aggregator.config import RedisConfig, RedisSection
from gridveil_services.bootstrap.certificates import Authority, write_tls_folder
from gridveil_services.bootstrap.layout import (
    CLIENTS,
    CONTROLLER,
    ENDPOINTS,
    LISTENING,
    SERVICES,
    CityPaths,
    aggregator_names,
)
from gridveil_services.bootstrap.redis_access import USER, RedisAccess
from gridveil_services.bootstrap.toml import Value, dumps
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest, create_key_file
from gridveil_services.rpc.roles import Role

DEFAULT_REGISTERS = (Register("import_wh", "Wh", 200_000), Register("export_wh", "Wh", 200_000))
DEFAULT_COHORT = 1_000
DEFAULT_PORT = 7440
DEFAULT_CONSOLE = "127.0.0.1:7480"
UNIVERSAL = "UTC"
RECOMMENDED_BATCH = 128
EPOCH_S = 86_400
RETENTION_S = 86_400

_AUTHORITY_DAYS = 3650
_CERTIFICATE_DAYS = 397
_REDIS_FILE = "redis.password"
_TLS: Mapping[str, Value] = {
    "ca": "tls/ca.pem",
    "certificate": "tls/cert.pem",
    "key": "tls/key.pem",
}


def neighbouring_ports(first: int = DEFAULT_PORT, host: str = "127.0.0.1") -> dict[str, str]:
    """An address for each service on ports in a row, the controller's being the last."""
    return {role: f"{host}:{first + at}" for at, role in enumerate(LISTENING)}


@dataclass(frozen=True)
class CityOptions:
    """What a city chooses; seconds and fractions. Checked as a :class:`CityPolicy` is."""

    parameter_set: str = DEFAULT_PARAMETER_SET
    window_length: int = 900
    grace: int = 300
    colluding: int = 0
    """Meters assumed to collude with the aggregator."""
    min_cohort: int | None = None
    """Fewest meters in a total; 1,000 or what ``colluding`` asks for if left out."""
    min_coverage: float = 0.8
    registers: tuple[Register, ...] = DEFAULT_REGISTERS
    entry_audience: EntryAudience = EntryAudience.AUDITORS
    failing_lanes: FailingLanes = FailingLanes.LEAVE_OUT
    failure_budget: int = 5
    refusals_per_day: int = 5
    """Refused windows within 24 hours that lock the key-holder; no part of the policy."""
    noise: NoisePolicy | None = None
    time_zone: str = UNIVERSAL
    """Where the city's days begin and end, for the controller: a name of the IANA database."""
    development: bool = False
    addresses: Mapping[str, str] = field(default_factory=neighbouring_ports)
    """``host:port`` by service: where it listens. Without one there is no controller."""
    console: str = DEFAULT_CONSOLE
    """``host:port`` where the console's page is."""
    further_aggregators: tuple[str, ...] = ()
    """``host:port`` of each aggregator beside the first; they share a Redis."""
    redis_nodes: tuple[str, ...] = ()
    """``host:port`` of some nodes of the Redis Cluster that windows are kept in, if they are."""
    reached_at: Mapping[str, str] = field(default_factory=dict)
    """``host:port`` by service where others find it, if that is not where it listens."""
    redis: str | None = None
    """``redis://host:port`` of the server that keeps windows; the aggregator's file if left out."""
    redis_replicas: int = 0
    """How many of its replicas must have a write before it is acknowledged."""

    @property
    def cohort(self) -> int:
        """The fewest meters in a total, with its default."""
        default = max(DEFAULT_COHORT, self.colluding + MIN_HONEST)
        return default if self.min_cohort is None else self.min_cohort

    def policy(self, city_id: bytes) -> CityPolicy:
        """The policy of a city with these options, or CONFIG_INVALID naming what is wrong."""
        least = self.colluding + MIN_HONEST
        if self.cohort < least:
            raise MalformedInput(
                Reason.CONFIG_INVALID,
                f"min_cohort is at least {least}: {MIN_HONEST} honest meters beside the"
                f" {self.colluding} that may collude",
                field="min_cohort",
            )
        policy = CityPolicy(
            city_id=city_id,
            parameter_set=self.parameter_set,
            registers=self.registers,
            window_length=self.window_length,
            grace=self.grace,
            early_leeway=min(60, self.window_length // 15),
            min_cohort=self.cohort,
            colluding=self.colluding,
            min_coverage_ppm=_ppm(self.min_coverage),
            batch_limit=1,
            entry_audience=self.entry_audience,
            failing_lanes=self.failing_lanes,
            failure_budget=self.failure_budget,
            noise=self.noise,
            development=self.development,
        )
        return _with_batch_limit(policy)


def create_city(folder: Path, options: CityOptions | None = None) -> CityPaths:
    """Make a city in a new or empty folder: wholly, or not at all.

    Raises:
        MalformedInput: CONFIG_INVALID for options outside the limits, or a folder in use.
    """
    options = options or CityOptions()
    policy = options.policy(secrets.token_bytes(ID_BYTES))
    check_refusals_per_day(options.refusals_per_day)
    if options.further_aggregators and not options.redis_nodes:
        raise MalformedInput(Reason.CONFIG_INVALID, "several aggregators share a Redis")
    _check_addresses({**options.addresses, **options.reached_at})
    if options.time_zone != UNIVERSAL:
        # Not every machine that makes a city has the database.
        time_zone(options.time_zone)
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise MalformedInput(Reason.CONFIG_INVALID, f"{folder.name} is there and not empty")
    make_folder(folder.parent)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    try:
        _Maker(CityPaths(unfinished), policy, options).make()
        _move(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return CityPaths(folder)


class _Maker:
    def __init__(self, paths: CityPaths, policy: CityPolicy, options: CityOptions) -> None:
        self._paths = paths
        self._policy = policy
        self._addresses = options.addresses
        self._redis_nodes = options.redis_nodes
        self._aggregators = dict(
            zip(
                aggregator_names(1 + len(options.further_aggregators)),
                (options.addresses["aggregator"], *options.further_aggregators),
                strict=True,
            )
        )
        self._console_address = options.console
        self._reached_at = {**options.addresses, **options.reached_at}
        self._redis = _redis(options)
        self._refusals_per_day = options.refusals_per_day
        self._time_zone = options.time_zone

    def make(self) -> None:
        self._make_certificates()
        identity_key = self._make_keyholder()
        shared: dict[str, Value] = {
            "city_id": self._policy.city_id.hex(),
            "identity_key": identity_key.hex(),
            "development": self._policy.development,
        }
        for name, address in self._aggregators.items():
            self._write(self._paths.config(name), shared | self._aggregator(address))
        self._write(self._paths.config("totals"), shared | self._totals())
        if CONTROLLER in self._addresses:
            self._write(self._paths.config(CONTROLLER), shared | self._controller())
        for client in CLIENTS:
            endpoints: dict[str, Value] = {
                service: {"address": self._endpoint(service)}
                for service in ENDPOINTS[client]
                if service in self._reached_at
            }
            self._write(self._paths.profile(client), shared | endpoints | {"tls": _TLS})
        self._write(self._paths.config("console"), self._console())
        make_folder(self._paths.meters)
        if self._redis:
            self._make_redis()

    def _make_redis(self) -> None:
        access = RedisAccess.create(self._policy.city_id)
        make_folder(self._paths.redis)
        write_durably(self._paths.redis / "users.acl", access.users.encode())
        write_durably(self._paths.redis / "replication.conf", access.replication.encode())
        write_durably(self._paths.role("aggregator") / _REDIS_FILE, access.password.encode())

    def _endpoint(self, service: str) -> str:
        """Where clients find a service; several aggregators as gRPC lists addresses."""
        if service != "aggregator" or len(self._aggregators) == 1:
            return self._reached_at[service]
        return "ipv4:" + ",".join(self._aggregators.values())

    def _make_certificates(self) -> None:
        now = datetime.now(UTC)
        begin = now - timedelta(hours=1)
        authority = Authority.create(
            self._policy.city_id, begin, now + timedelta(days=_AUTHORITY_DAYS)
        )
        authority.write(self._paths.ca)
        named = {str(role): (role, f"{role}-1") for role in Role}
        named |= {name: (Role.AGGREGATOR, name) for name in list(self._aggregators)[1:]}
        named["console"] = (Role.OPERATOR, "console-1")
        for folder, (role, name) in named.items():
            issued = authority.issue(
                role,
                name,
                valid_from=begin,
                valid_until=now + timedelta(days=_CERTIFICATE_DAYS),
            )
            write_tls_folder(self._paths.tls(folder), authority, issued)

    def _make_keyholder(self) -> bytes:
        folder = self._paths.role("keyholder")
        create_key_file(folder / "kek")
        at_rest = AtRest.load(folder / "kek", self._policy.city_id)
        self._write(self._paths.config("keyholder"), self._keyholder())
        return identity.create(folder / "state", at_rest)

    def _keyholder(self) -> dict[str, Value]:
        policy = self._policy
        length = policy.window_length
        registers: list[Mapping[str, Value]] = [
            {"name": r.name, "unit": r.unit, "bound": r.bound} for r in policy.registers
        ]
        noise = {"noise": _noise(policy.noise)} if policy.noise else {}
        return {
            "city_id": policy.city_id.hex(),
            "listen": self._addresses["keyholder"],
            "state": "state",
            "published": "published",
            "key_encrypting_key_file": "kek",
            "refusals_per_day": self._refusals_per_day,
            "tls": _TLS,
            "policy": {
                "parameter_set": policy.parameter_set,
                "window_length": length,
                "grace": policy.grace,
                "early_leeway": policy.early_leeway,
                "min_cohort": policy.min_cohort,
                "colluding": policy.colluding,
                "min_coverage": policy.min_coverage_ppm / PPM,
                "batch_limit": policy.batch_limit,
                "entry_audience": policy.entry_audience.name.lower(),
                "failing_lanes": policy.failing_lanes.name.lower().replace("_", "-"),
                "failure_budget": policy.failure_budget,
                "development": policy.development,
                "epoch_length": max(1, EPOCH_S // length) * length,
                **noise,
                "registers": registers,
            },
        }

    def _aggregator(self, address: str) -> dict[str, Value]:
        nodes: dict[str, Value] = (
            {"redis": {"nodes": self._redis_nodes}} if self._redis_nodes else {}
        )
        return {
            "listen": address,
            "state": "state",
            "retention_s": RETENTION_S,
            "tls": _TLS,
            **nodes,
            "keyholder": {"address": self._reached_at["keyholder"]},
            **self._redis,
        }

    def _totals(self) -> dict[str, Value]:
        return {
            "listen": self._addresses["totals"],
            "published": "../keyholder/published",
            "window_length": self._policy.window_length,
            "tls": _TLS,
        }

    def _controller(self) -> dict[str, Value]:
        return {
            "listen": self._addresses[CONTROLLER],
            "state": "state",
            "rules": "control.toml",
            "time_zone": self._time_zone,
            "tls": _TLS,
            "totals": {"address": self._reached_at["totals"]},
        }

    def _console(self) -> dict[str, Value]:
        """On this machine only, until its operator says how people log in."""
        return {
            "listen": self._console_address,
            "time_zone": self._time_zone,
            "window_length": self._policy.window_length,
            "register": self._policy.registers[0].name,
        }

    def _write(self, path: Path, document: Mapping[str, Value]) -> None:
        write_durably(path, dumps(document).encode())


def _move(made: Path, folder: Path) -> None:
    if not folder.exists():
        made.rename(folder)
        return
    # Somebody may stand in the empty folder: it is filled, not replaced.
    for child in sorted(made.iterdir()):
        child.rename(folder / child.name)
    made.rmdir()
    sync_folder(folder)


def _redis(options: CityOptions) -> Mapping[str, Value]:
    """The section ``[redis]`` of ``aggregator.toml``, checked as the aggregator does."""
    if options.redis is None:
        return {}
    section: dict[str, Value] = {
        "url": options.redis,
        "replicas": options.redis_replicas,
        "username": USER,
        "password_file": _REDIS_FILE,
    }
    RedisConfig.beside(msgspec.convert(section, RedisSection), Path())
    return {"redis": section}


def _noise(noise: NoisePolicy) -> Mapping[str, Value]:
    window = noise.window
    return {
        "mechanism": window.mechanism.name.lower(),
        f"{window.loss_name}_per_window": window.loss,
        f"{window.loss_name}_per_day": noise.day_ppm / LOSS_UNIT,
    }


def _ppm(share: float) -> int:
    # Never below what was asked for; the inner rounding takes away what binary fractions add.
    return math.ceil(round(share * PPM, 3)) if math.isfinite(share) else 0


def _with_batch_limit(policy: CityPolicy) -> CityPolicy:
    return replace(policy, batch_limit=min(RECOMMENDED_BATCH, policy.most_reports_in_a_batch))


def _check_addresses(addresses: Mapping[str, str]) -> None:
    if unknown := set(addresses) - set(LISTENING):
        raise MalformedInput(Reason.CONFIG_INVALID, f"there is no service {min(unknown)}")
    for service in (*SERVICES, *(set(addresses) & {CONTROLLER})):
        host, _, port = addresses.get(service, "").rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"the address of {service} is HOST:PORT", field=service
            )
