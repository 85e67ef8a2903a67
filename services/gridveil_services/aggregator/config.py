"""``aggregator.toml``: read once, checked whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gridveil.config import ConfigFile, Section, TlsFiles, hex_bytes, load
from gridveil.profile import Tls
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.layout import ID_BYTES, KEY_BYTES
from gridveil.tracing.settings import TracingSection, TracingSettings
from gridveil_services.metrics.config import Address, MetricsSection, address_of

DEFAULT_RETENTION_S = 86_400
_LEAST_STORE_BYTES = 64 * 1024 * 1024
_MOST_REPLICAS = 16


class KeyHolderSection(Section, frozen=True, kw_only=True):
    """Where the key-holder listens."""

    address: str


class RedisSection(Section, frozen=True, kw_only=True):
    """One server by ``url``, or a cluster by some of its ``nodes``."""

    url: str | None = None
    nodes: list[str] | None = None
    replicas: int = 0
    username: str | None = None
    password_file: str | None = None
    tls: TlsFiles | None = None


class AggregatorFile(ConfigFile, frozen=True, kw_only=True):
    """``aggregator.toml``. Paths are relative to its folder."""

    city_id: str
    identity_key: str
    development: bool = False
    listen: str
    state: str
    retention_s: int = DEFAULT_RETENTION_S
    max_store_bytes: int | None = None
    tls: TlsFiles
    keyholder: KeyHolderSection
    redis: RedisSection | None = None
    metrics: MetricsSection | None = None
    tracing: TracingSection | None = None


@dataclass(frozen=True)
class RedisConfig:
    """Where windows are kept, if not in the aggregator's own file."""

    addresses: tuple[tuple[str, int], ...]
    cluster: bool
    """Whether the addresses are nodes of a Redis Cluster."""
    replicas: int = 0
    """How many must have each write before it is acknowledged."""
    database: int = 0
    username: str | None = None
    password_file: Path | None = None
    tls: Tls | None = None

    @classmethod
    def beside(cls, section: RedisSection, folder: Path) -> RedisConfig:
        """The section with paths below ``folder``; CONFIG_INVALID names what is wrong."""
        if (section.url is None) == (section.nodes is None):
            raise _invalid("redis", "has either url or nodes")
        if not 0 <= section.replicas <= _MOST_REPLICAS:
            raise _invalid("redis.replicas", f"is 0 to {_MOST_REPLICAS}")
        if section.username is not None and section.password_file is None:
            raise _invalid("redis.username", "needs password_file")
        addresses, database = (
            (_nodes(section), 0) if section.url is None else _one_server(section.url)
        )
        return cls(
            addresses,
            section.nodes is not None,
            section.replicas,
            database,
            section.username,
            None if section.password_file is None else folder / section.password_file,
            None if section.tls is None else Tls.beside(section.tls, folder),
        )

    def password(self) -> str | None:
        """What the password file says, without the line's end."""
        if self.password_file is None:
            return None
        try:
            return self.password_file.read_text("utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError):
            raise _invalid("redis.password_file", "cannot be read") from None


@dataclass(frozen=True)
class AggregatorConfig:
    """A checked configuration."""

    city_id: bytes
    identity_key: bytes
    """Ed25519 public key of the key-holder, pinned."""
    development: bool
    listen: str
    state: Path
    retention_s: int
    """Metering seconds after a window's end that its receipts and sums are kept, if settled."""
    max_store_bytes: int | None
    """Longest database file; reports beyond it are refused as STORE_FULL."""
    tls: Tls
    keyholder: str
    """Address."""
    redis: RedisConfig | None = None
    metrics: Address | None = None
    """Where metrics are served, if anywhere."""
    tracing: TracingSettings | None = None
    """Where traces are sent, if anywhere."""

    @classmethod
    def load(cls, path: Path) -> AggregatorConfig:
        """The configuration in a TOML file; CONFIG_INVALID names what is wrong."""
        file, folder = load(path, AggregatorFile), path.parent
        if not DEFAULT_RETENTION_S <= file.retention_s <= 366 * 86_400:
            raise _invalid("retention_s", "is a day to a year: no window opens again after it")
        if file.max_store_bytes is not None and file.max_store_bytes < _LEAST_STORE_BYTES:
            raise _invalid("max_store_bytes", f"is at least {_LEAST_STORE_BYTES}")
        return cls(
            hex_bytes(file.city_id, ID_BYTES, "city_id"),
            hex_bytes(file.identity_key, KEY_BYTES, "identity_key"),
            file.development,
            file.listen,
            folder / file.state,
            file.retention_s,
            file.max_store_bytes,
            Tls.beside(file.tls, folder),
            file.keyholder.address,
            None if file.redis is None else RedisConfig.beside(file.redis, folder),
            address_of(file.metrics),
            TracingSettings.of(file.tracing),
        )


def _invalid(key: str, rule: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, f"{key} {rule}", field=key)


def _one_server(text: str) -> tuple[tuple[tuple[str, int], ...], int]:
    """Address and database of ``redis://host:port[/database]``."""
    rule = "is redis://host:port or redis://host:port/database; all else has keys of its own"
    url = urlsplit(text)
    database = url.path.removeprefix("/") or "0"
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    odd = url.username is not None or url.password is not None or url.query or url.fragment
    if not host or not port or url.scheme != "redis" or odd or not database.isdecimal():
        raise _invalid("redis.url", rule)
    return ((host, port),), int(database)


def _nodes(section: RedisSection) -> tuple[tuple[str, int], ...]:
    """Addresses of cluster nodes, ``host:port`` each."""
    found = []
    for node in section.nodes or ():
        host, _, port = node.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise _invalid("redis.nodes", "are host:port")
        found.append((host.strip("[]"), int(port)))
    if not found:
        raise _invalid("redis.nodes", "names at least one")
    return tuple(found)
