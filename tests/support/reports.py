"""Real meters for tests: their keys, their signed reports, and the release an honest aggregator
makes of them.

    meters = make_members(120)
    reports = [build_report(parameters, meter, window, [1, 0]) for meter in meters]
    release = build_release(parameters, roster_version, reports)
    stub.Release(release.messages())
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from nacl.signing import SigningKey

from gridveil.encryption import Encryptor
from gridveil.protocol.ciphertext import add, parse_ciphertext, to_bytes
from gridveil.protocol.city import CityParameters, CityPolicy, EntryAudience, FailingLanes, Register
from gridveil.protocol.commitment import Generators, commitment_hash
from gridveil.protocol.layout import sha256
from gridveil.protocol.release import (
    CHUNK_BYTES,
    EntriesDigest,
    Entry,
    LaneSum,
    ReleaseHeader,
    release_digest,
)
from gridveil.protocol.report import Claim, Report, seal_data, sign_report
from gridveil.protocol.roster import Member, enrolment_request
from gridveil.protocol.sealing import seal, shared_key, x25519_public
from gridveil.protocol.v1 import keyholder_pb2
from gridveil.protocol.windows import lane_count, lane_of

WINDOW = 1_700_000_100
"""Some window start, aligned to 900 s."""

CITY_ID = bytes(range(16))


def city_policy(**changes: object) -> CityPolicy:
    """A development city of the smallest cohort; ``changes`` replace its fields."""
    policy = CityPolicy(
        city_id=CITY_ID,
        parameter_set="ckks-2048",
        registers=(Register("import_wh", "Wh", 200_000), Register("export_wh", "Wh", 200_000)),
        window_length=900,
        grace=300,
        early_leeway=60,
        min_cohort=100,
        colluding=0,
        min_coverage_ppm=800_000,
        batch_limit=128,
        entry_audience=EntryAudience.AUDITORS,
        failing_lanes=FailingLanes.LEAVE_OUT,
        failure_budget=5,
        development=True,
    )
    return replace(policy, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MeterKeys:
    """One meter and its secrets."""

    meter_id: bytes
    signing_key: SigningKey
    sealing_secret: bytes

    @cached_property
    def member(self) -> Member:
        """What the roster holds of it."""
        return Member(
            self.meter_id, bytes(self.signing_key.verify_key), x25519_public(self.sealing_secret)
        )

    def enrolment(self, city_id: bytes = CITY_ID) -> bytes:
        """Its signed request to be enrolled."""
        return enrolment_request(city_id, self.member, self.signing_key)


def make_members(count: int, *, seed: int = 0) -> list[MeterKeys]:
    """``count`` meters; the same ones for the same seed."""
    source = random.Random(seed)
    return [
        MeterKeys(source.randbytes(16), SigningKey(source.randbytes(32)), source.randbytes(32))
        for _ in range(count)
    ]


def build_report(
    parameters: CityParameters,
    meter: MeterKeys,
    window: int,
    values: Sequence[int],
    *,
    blinding: int | None = None,
) -> Report:
    """A meter's signed report of its register values for a window."""
    city, epoch = parameters.policy.city_id, parameters.epoch
    layout = parameters.policy.layout
    blinding = layout.draw_blinding() if blinding is None else blinding
    ciphertext = encryptor(parameters).encrypt(layout.to_slots(values, blinding))
    commitment = generators(parameters, window).commit(values, blinding)
    h = commitment_hash(city, epoch.epoch_id, window, meter.meter_id, commitment)
    key = shared_key(meter.sealing_secret, epoch.sealing_key, city, epoch.epoch_id, meter.meter_id)
    stated = (parameters.digest, window, meter.meter_id, 0, h)
    digest = sha256(ciphertext)
    sealed = seal(key, commitment, h, seal_data(*stated, digest))
    return sign_report(Claim(*stated, sealed, digest), ciphertext, meter.signing_key)


@lru_cache(maxsize=8)
def encryptor(parameters: CityParameters) -> Encryptor:
    """The encryptor of an epoch, made once."""
    policy = parameters.policy
    return Encryptor(policy.crypto, policy.layout.slots, parameters.epoch.ckks_public_key)


@lru_cache(maxsize=8)
def generators(parameters: CityParameters, window: int) -> Generators:
    """The generators of a window, made once."""
    policy, epoch = parameters.policy, parameters.epoch
    return Generators.derive(policy.city_id, epoch.epoch_id, window, policy.register_names)


@dataclass(frozen=True)
class BuiltRelease:
    """A release as it is streamed; ``replace`` what a test wants wrong."""

    header: ReleaseHeader
    digest: bytes
    lanes: tuple[LaneSum, ...]
    entries: bytes

    def header_message(self) -> keyholder_pb2.ReleaseMessage:
        """The first message."""
        return keyholder_pb2.ReleaseMessage(
            header=keyholder_pb2.ReleaseHeader(
                window_start=self.header.window_start,
                parameters_digest=self.header.parameters_digest,
                roster_version=self.header.roster_version,
                lanes=self.header.lanes,
                count=self.header.count,
                release_digest=self.digest,
            )
        )

    def lane_messages(self) -> Iterator[keyholder_pb2.ReleaseMessage]:
        """The lane sums."""
        for lane in self.lanes:
            yield keyholder_pb2.ReleaseMessage(
                lane=keyholder_pb2.ReleaseLane(
                    lane=lane.lane, count=lane.count, ciphertext=lane.ciphertext
                )
            )

    def chunk_messages(
        self, offset: int = 0, size: int = CHUNK_BYTES
    ) -> Iterator[keyholder_pb2.ReleaseMessage]:
        """The entries from an offset on, in chunks of ``size`` bytes."""
        for at in range(offset, len(self.entries), size):
            yield keyholder_pb2.ReleaseMessage(
                entries=keyholder_pb2.EntryChunk(offset=at, entries=self.entries[at : at + size])
            )

    def close_message(self) -> keyholder_pb2.ReleaseMessage:
        """The last message."""
        return keyholder_pb2.ReleaseMessage(
            close=keyholder_pb2.ReleaseClose(release_digest=self.digest)
        )

    def messages(
        self, offset: int = 0, size: int = CHUNK_BYTES
    ) -> Iterator[keyholder_pb2.ReleaseMessage]:
        """The whole stream, its entries from an offset on."""
        yield self.header_message()
        yield from self.lane_messages()
        yield from self.chunk_messages(offset, size)
        yield self.close_message()

    def resigned(self, **changes: object) -> BuiltRelease:
        """The release with parts changed and its digest right again."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        return replace(changed, digest=_digest(changed.header, changed.lanes, changed.entries))


def build_release(
    parameters: CityParameters,
    roster_version: int,
    reports: Sequence[Report],
    *,
    enrolled: int | None = None,
) -> BuiltRelease:
    """What an honest aggregator hands over for the reports of one window.

    ``enrolled``: meters on the roster, as many as there are reports if left out.
    """
    policy, window = parameters.policy, reports[0].claim.window_start
    crypto, slots = policy.crypto, policy.layout.slots
    lanes = lane_count(len(reports) if enrolled is None else enrolled, crypto, slots)
    placed = sorted(
        (lane_of(parameters.epoch.epoch_id, window, r.claim.meter_id, lanes), r.claim.meter_id, at)
        for at, r in enumerate(reports)
    )
    members: dict[int, list[Report]] = {}
    for lane, _, at in placed:
        members.setdefault(lane, []).append(reports[at])
    sums = tuple(
        LaneSum(lane, len(found), _sum([r.ciphertext for r in found], parameters))
        for lane, found in members.items()
    )
    entries = b"".join(
        Entry(reports[at].claim, reports[at].signature).encode() for _, _, at in placed
    )
    header = ReleaseHeader(
        policy.city_id, parameters.digest, window, roster_version, lanes, len(reports)
    )
    return BuiltRelease(header, _digest(header, sums, entries), sums, entries)


def _sum(ciphertexts: Sequence[bytes], parameters: CityParameters) -> bytes:
    crypto, slots = parameters.policy.crypto, parameters.policy.layout.slots
    parsed = [parse_ciphertext(c, crypto, slots).astype(np.uint64) for c in ciphertexts]
    return to_bytes(add(parsed, crypto))


def _digest(header: ReleaseHeader, lanes: Sequence[LaneSum], entries: bytes) -> bytes:
    digest = EntriesDigest()
    digest.update(entries)
    return release_digest(header, lanes, digest.digest())
