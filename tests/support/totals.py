"""Released windows for tests of those who read them: signed totals whose entries really open.

opened = open_window(policy, identity, WINDOW, values_of(120))
publish(paths, released(opened), refused(window))
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from nacl.signing import SigningKey

from gridveil.files import make_folder, write_durably
from gridveil.protocol.city import CityParameters, CityPolicy, Epoch
from gridveil.protocol.commitment import Generators, commitment_hash
from gridveil.protocol.layout import sha256
from gridveil.protocol.log_records import settled_by
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.release import (
    OPENED_ENTRY_BYTES,
    Entry,
    RegisterTotal,
    Total,
    entries_root,
)
from gridveil.protocol.report import Claim, sign_report
from gridveil.protocol.roster import Member
from gridveil.protocol.sealing import x25519_public
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.protocol.v1 import totals_pb2
from gridveil.protocol.v1.aggregator_pb2 import SignedCityParameters
from gridveil.protocol.v1.log_pb2 import (
    LogRecord,
    ReleaseIntent,
    WindowExpired,
    WindowRefused,
    WindowReleased,
)
from gridveil.protocol.windows import lane_count, lane_of
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.releaselog.signing import LogSigner
from gridveil_services.releaselog.writer import LogWriter
from tests.support.reports import MeterKeys, make_members

DAY = 86_400


@dataclass(frozen=True)
class OpenedWindow:
    """A total, its opened entries in order, and who made them."""

    parameters: CityParameters
    identity: SigningKey
    total: Total
    entries: bytes
    roster: dict[bytes, Member]

    def signed(self) -> totals_pb2.SignedTotal:
        """As the key-holder publishes it."""
        return totals_pb2.SignedTotal(
            total=self.total.encode(), signature=self.total.sign(self.identity)
        )

    @cached_property
    def single_entries(self) -> list[bytes]:
        """The opened entries, one by one."""
        size = OPENED_ENTRY_BYTES
        return [self.entries[at : at + size] for at in range(0, len(self.entries), size)]

    def with_entries(self, entries: Sequence[bytes]) -> OpenedWindow:
        """What a dishonest key-holder would sign over other entries, its count and root right."""
        joined = b"".join(entries)
        total = replace(self.total, count=len(entries), entries_root=entries_root([joined]))
        return replace(self, entries=joined, total=total)

    def with_total(self, **changes: object) -> OpenedWindow:
        """A total with other fields, signed as well."""
        return replace(self, total=replace(self.total, **changes))  # type: ignore[arg-type]


def city_identity(paths: CityPaths) -> tuple[CityPolicy, SigningKey]:
    """The policy of a city that was made, and the key that its key-holder signs with."""
    config = KeyHolderConfig.load(paths.config("keyholder"))
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    return config.policy, identity.load(config.state, at_rest)


def open_window(
    policy: CityPolicy,
    signer: SigningKey,
    window: int,
    values: Sequence[Sequence[int]],
    *,
    enrolled: int | None = None,
    seed: int = 0,
) -> OpenedWindow:
    """A released window in which each meter reported its register ``values``."""
    day = window // DAY * DAY
    epoch = Epoch(sha256(b"%d" % day)[:16], day, day + DAY, x25519_public(bytes(32)), b"ckks")
    parameters = CityParameters(policy, epoch)
    meters = make_members(len(values), seed=seed)
    generators = Generators.derive(policy.city_id, epoch.epoch_id, window, policy.register_names)
    expected = len(values) if enrolled is None else enrolled
    lanes = lane_count(expected, policy.crypto, policy.layout.slots)
    blindings = [policy.layout.draw_blinding() for _ in values]
    placed = sorted(
        (
            lane_of(epoch.epoch_id, window, meter.meter_id, lanes),
            meter.meter_id,
            opened_entry(parameters, window, meter, generators.commit(readings, blinding)),
        )
        for meter, readings, blinding in zip(meters, values, blindings, strict=True)
    )
    entries = b"".join(entry for _, _, entry in placed)
    sums = (sum(readings[at] for readings in values) for at in range(len(policy.registers)))
    total = Total(
        city_id=policy.city_id,
        epoch_id=epoch.epoch_id,
        parameters_digest=parameters.digest,
        window_start=window,
        window_length=policy.window_length,
        roster_version=1,
        enrolled=expected,
        count=len(values),
        lanes=lanes,
        left_out=(),
        release_digest=sha256(b"release" + entries),
        entries_root=entries_root([entries]),
        registers=tuple(
            RegisterTotal(register.name, register.unit, found)
            for register, found in zip(policy.registers, sums, strict=True)
        ),
        blinding=(sum(blindings) % GROUP_ORDER).to_bytes(32, "little"),
    )
    roster = {meter.meter_id: meter.member for meter in meters}
    return OpenedWindow(parameters, signer, total, entries, roster)


def readings(meters: int, registers: int = 2, *, seed: int = 0) -> list[list[int]]:
    """Some register values."""
    source = random.Random(seed)
    return [[source.randrange(5_000) for _ in range(registers)] for _ in range(meters)]


def released(opened: OpenedWindow) -> LogRecord:
    """The log's record of a released window."""
    return LogRecord(
        released=WindowReleased(window_start=opened.total.window_start, total=opened.signed())
    )


def refused(window: int) -> LogRecord:
    """The log's record of a refusal."""
    return LogRecord(refused=WindowRefused(window_start=window, release_digest=bytes(32)))


def expired(window: int) -> LogRecord:
    """The log's record of a window that was not settled in time."""
    return LogRecord(expired=WindowExpired(window_start=window))


def intent(window: int) -> LogRecord:
    """The log's record that a release is about to be opened."""
    return LogRecord(
        intent=ReleaseIntent(
            window_start=window,
            release_digest=bytes(32),
            parameters_digest=bytes(32),
            roster_version=1,
        )
    )


def proven(
    signer: LogSigner, records: Sequence[LogRecord], index: int, window: int | None = None
) -> totals_pb2.WindowOutcome:
    """What a totals service says of a log's record, or would if it settled a ``window``."""
    payloads = [record.SerializeToString(deterministic=True) for record in records]
    tree = Tree(map(leaf_hash, payloads))
    proof = totals_pb2.LogProof(
        index=index,
        record=payloads[index],
        hashes=tree.inclusion_proof(index, tree.size),
        checkpoint=signer.sign(tree.size, tree.root(tree.size)).encode(),
    )
    outcome = settled_by(records[index]) or totals_pb2.WindowOutcome(window_start=window)
    outcome.proof.CopyFrom(proof)
    return outcome


def publish(paths: CityPaths, *records: LogRecord, thief: SigningKey | None = None) -> None:
    """Append records to a city's release log, as its key-holder does, or a thief of its place."""
    policy, signer = city_identity(paths)
    writer = LogWriter(paths.published / "log", LogSigner(policy.city_id, thief or signer))
    try:
        writer.append(*records)
    finally:
        writer.close()


def publish_entries(paths: CityPaths, opened: OpenedWindow) -> None:
    """Publish the opened entries of a window, and its parameters."""
    make_folder(paths.published / "entries")
    name = str(opened.total.window_start)
    write_durably(paths.published / "entries" / name, opened.entries)
    make_folder(paths.published / "parameters")
    write_durably(
        paths.published / "parameters" / opened.parameters.digest.hex(),
        SignedCityParameters(
            parameters=opened.parameters.encode(),
            signature=opened.parameters.sign(opened.identity),
        ).SerializeToString(),
    )


def opened_entry(
    parameters: CityParameters, window: int, meter: MeterKeys, commitment: bytes
) -> bytes:
    """The opened entry of a meter that reported a commitment."""
    city_id, epoch_id = parameters.policy.city_id, parameters.epoch.epoch_id
    h = commitment_hash(city_id, epoch_id, window, meter.meter_id, commitment)
    sealed, ciphertext = bytes(48), meter.meter_id
    claim = Claim(parameters.digest, window, meter.meter_id, 0, h, sealed, sha256(ciphertext))
    report = sign_report(claim, ciphertext, meter.signing_key)
    return Entry(claim, report.signature).encode() + commitment
