"""Spoilt calls by the thousand: refused by name, changing nothing, repeating nothing secret.

Each service gets MUTATIONS of them at the boundary where gRPC hands bytes over, and a tenth as many
over gRPC and mTLS. `make mutations` sends 100,000. GRIDVEIL_SEED repeats a run; a failure names the
one call.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message

from gridveil.protocol.errors import Reason
from gridveil.protocol.layout import sha256
from gridveil.protocol.report import parse_report, sign_report
from gridveil.protocol.v1 import aggregator_pb2, report_pb2
from gridveil_services.rpc import Role
from tests.support.boundary import WATCH_S, Metadata, Outcome, send
from tests.support.corpus import (
    INTERNALS,
    METERS,
    NAMES,
    OPEN,
    Base,
    Service,
    ServingCity,
    request_type,
    serving_city,
)
from tests.support.mutations import mutate

MUTATIONS = int(os.environ.get("GRIDVEIL_MUTATIONS", "2500"))
OVER_THE_WIRE = max(100, MUTATIONS // 10)
LOOK_EVERY = 400
"""Calls between two looks at all of the state and at the logs."""

CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What a spoilt call may be answered with, beside OK."""
REASON = re.compile(rb"\b(?:%s)\b" % "|".join(Reason).encode())
REMEMBERS_WHAT_IT_SAID = "/gridveil.v1.Roster/GetRoster"
"""To an aggregator: which roster of a window it was told. The one answer that is kept."""


@dataclass
class Spoilt:
    """A call that nobody should make."""

    path: str
    messages: Sequence[bytes]
    role: Role
    how: str
    metadata: Metadata = ()
    remaining_s: float = 10.0


@dataclass
class Watch:
    """Looks at a service after every call."""

    city: ServingCity
    service: Service
    capfd: pytest.CaptureFixture[str]
    label: str
    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[bytes] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.capfd.readouterr()
        self._canaries = self.city.canaries()
        self._cheap, self._digest = self.service.cheap(), self.service.digest()

    def check(self, call: Spoilt, outcome: Outcome) -> None:
        """Raise AssertionError unless the call was answered as it must be."""
        self.codes[outcome.code.name] += 1
        self.reasons.update(REASON.findall(outcome.told))
        refused = outcome.code is not grpc.StatusCode.OK
        assert not refused or outcome.code in CALLERS_FAULT, self._about(call, outcome)
        self._check_silence(outcome.told, call, outcome)
        for error in errors_in(call.path, outcome.answers):
            code = next(c for c in grpc.StatusCode if c.value[0] == error.code)
            assert code in CALLERS_FAULT, self._about(call, outcome)
            self._check_silence(error.SerializeToString(), call, outcome)
        if self.service.cheap() != self._cheap:
            may = not refused and call.path == REMEMBERS_WHAT_IT_SAID
            assert may, "the state changed: " + self._about(call, outcome)
            self._cheap, self._digest = self.service.cheap(), self.service.digest()
        if self.codes.total() % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        """At all of the state, and at what was logged."""
        assert self.service.digest() == self._digest, f"the state changed; {self.label}"
        logged = "".join(self.capfd.readouterr()).encode()
        for canary in self._canaries:
            assert canary not in logged, f"a log holds {canary!r}; {self.label}"
        assert b"integrity lost" not in logged
        assert b"call failed" not in logged, logged[-3000:]

    def _check_silence(self, told: bytes, call: Spoilt, outcome: Outcome) -> None:
        assert len(told) < 8192, self._about(call, outcome)
        assert not INTERNALS.search(told), self._about(call, outcome)
        for canary in self._canaries:
            assert canary not in told, self._about(call, outcome)

    def _about(self, call: Spoilt, outcome: Outcome) -> str:
        sent = [message.hex()[:4000] for message in call.messages[:5]]
        return (
            f"{outcome.code} {outcome.told!r} for {call.path} by {call.role}, {call.how}, "
            f"metadata {call.metadata}: {sent}; {self.label}"
        )


@pytest.fixture(scope="module")
def seed() -> int:
    chosen = int(os.environ.get("GRIDVEIL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"GRIDVEIL_SEED={chosen}")
    return chosen


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingCity]:
    with serving_city(tmp_path_factory.mktemp("mutations")) as city:
        yield city


@pytest.mark.parametrize("name", list(NAMES))
def test_spoilt_calls_are_refused_by_name_and_change_nothing(
    city: ServingCity, name: str, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    service = city.services[name]
    watch = Watch(city, service, capfd, f"GRIDVEIL_SEED={seed}")
    certificates = {role: city.certificate(role) for role in Role}
    for number in range(MUTATIONS):
        chance = Random(f"{seed}/{name}/{number}")
        call = spoil(city, service, chance)
        watch.label = f"GRIDVEIL_SEED={seed}, call {number}"
        certificate = spoilt_certificate(certificates[call.role], chance)
        outcome = service.boundary.call(
            call.path,
            call.messages,
            certificate,
            metadata=call.metadata,
            remaining_s=call.remaining_s,
        )
        watch.check(call, outcome)
        report(capfd, name, number + 1, MUTATIONS)
    watch.look()
    everybodys = {"PERMISSION_DENIED"} if name == "health" else set()
    assert {"INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED"} - everybodys <= set(
        watch.codes
    )
    assert set(service.paths) <= TRIED
    assert b"INTERNAL" not in watch.reasons
    print(name, dict(watch.codes), dict(watch.reasons))


def test_every_method_is_of_one_of_the_services(city: ServingCity) -> None:
    services = city.services.values()
    assert {path for service in services for path in service.boundary.methods} == {
        path for service in services for path in service.paths
    }
    assert all(service.paths for service in services)


@pytest.mark.parametrize("name", list(NAMES))
def test_over_the_wire_they_are_answered_alike(
    city: ServingCity, name: str, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    service = city.services[name]
    watch = Watch(city, service, capfd, f"GRIDVEIL_SEED={seed}")
    channels = {role: city.channel(service, role) for role in Role if role is not Role.KEYHOLDER}
    try:
        for number in range(OVER_THE_WIRE):
            chance = Random(f"{seed}/{name}/wire/{number}")
            call = spoil(city, service, chance)
            if call.role not in channels or call.remaining_s < 1:
                continue
            watch.label = f"GRIDVEIL_SEED={seed}, call {number} over the wire"
            watch.check(call, send_over_the_wire(channels[call.role], call))
            report(capfd, f"{name} over the wire", number + 1, OVER_THE_WIRE)
        watch.look()
    finally:
        for channel in channels.values():
            channel.close()
    assert "INVALID_ARGUMENT" in watch.codes


def test_nonsense_that_a_meter_has_signed_is_refused_or_counts_as_its_one_report(
    city: ServingCity, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a meter signs it may say; beyond that nothing of it is trusted."""
    service, store = city.services["aggregator"], city.local.aggregator.store
    certificate, codes = city.certificate(Role.METER), Counter[str]()
    path = service.path("SubmitReport")
    for number in range(MUTATIONS // 5):
        chance = Random(f"{seed}/signed/{number}")
        report = signed_nonsense(city, chance).SerializeToString()
        outcome = service.boundary.call(path, [report], certificate)
        told = f"{outcome}, GRIDVEIL_SEED={seed}, report {number}"
        assert outcome.code in CALLERS_FAULT | {grpc.StatusCode.OK}, told
        assert not INTERNALS.search(outcome.told), told
        codes[outcome.code.name] += 1
    assert {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "ALREADY_EXISTS"} <= set(codes)
    assert store.count(OPEN) <= METERS
    assert "call failed" not in "".join(capfd.readouterr())


def signed_nonsense(city: ServingCity, chance: Random) -> report_pb2.Report:
    """A report of a meter of the city, signed by it, of which one thing is odd."""
    template = parse_report(chance.choice(city.open_reports))
    meter = chance.choice(city.local.meters[:METERS])
    claim, ciphertext = template.claim._replace(meter_id=meter.meter_id), template.ciphertext
    match chance.randrange(8):
        case 0:
            ciphertext = spoil_messages(report_pb2.Report, [ciphertext], chance, [])[1][0]
        case 1:
            ciphertext = chance.randbytes(len(ciphertext))
        case 2:
            at, size = 8 * chance.randrange(len(ciphertext) // 8), chance.choice((8, 800, 9000))
            filler = chance.choice((b"\0", b"\xff", b"\x01\0\0\0\0\0\0\0"))
            filled = (ciphertext[:at] + filler * size)[: len(ciphertext)]
            ciphertext = filled + ciphertext[len(filled) :]
        case 3:
            moved = chance.choice((1, 900, OPEN - 900, OPEN + 900, 2**53, 2**63 - 1))
            claim = claim._replace(window_start=moved)
        case 4:
            claim = claim._replace(parameters_digest=chance.randbytes(32))
        case 5:
            claim = claim._replace(commitment_hash=chance.randbytes(32))
        case 6:
            claim = claim._replace(sealed_commitment=chance.randbytes(48))
        case _:
            claim = claim._replace(meter_id=chance.choice(city.local.meters).meter_id)
    claim = claim._replace(ciphertext_digest=sha256(ciphertext))
    return sign_report(claim, ciphertext, meter.signing_key).to_message()


TRIED: set[str] = set()
"""Methods that were called."""


def spoil(city: ServingCity, service: Service, chance: Random) -> Spoilt:
    """A valid call of some method, spoilt in its messages, its metadata or its caller."""
    path = chance.choice(service.paths)
    TRIED.add(path)
    base = service.base(path, chance)
    if path.endswith("/Release"):
        base = Base(city.release_messages(), base.role)
    others = [m for bases in service.corpus.values() for known in bases for m in known.messages[:3]]
    how, messages = spoil_messages(request_type(path), base.messages, chance, others)
    if path.endswith("/Release") and messages[: len(base.messages)] == list(base.messages):
        messages, how = messages[: len(base.messages) - 1], "without its end"
    call = Spoilt(path, messages, base.role, how)
    match chance.randrange(30):
        case 0:
            call.role = chance.choice(list(Role))
        case 1:
            call.metadata = spoilt_metadata(chance)
        case 2:
            call.remaining_s = chance.choice((0.0, 0.01, -1.0))
    return call


def spoil_messages(
    kind: type[Message], messages: Sequence[bytes], chance: Random, others: Sequence[bytes]
) -> tuple[str, list[bytes]]:
    """One message spoilt or, of a stream, also the order and number of messages."""
    at = chance.randrange(len(messages))
    if len(messages) > 1 and chance.random() < 0.3:
        match chance.randrange(5):
            case 0:
                return "a message left out", [*messages[:at], *messages[at + 1 :]]
            case 1:
                return "a message twice", [*messages[: at + 1], *messages[at:]]
            case 2:
                return "another order", chance.sample(messages, len(messages))
            case 3:
                return "cut off", list(messages[:at])
            case _:
                strange = chance.choice(others)
                return "a strange message", [*messages[:at], strange, *messages[at:]]
    how, data = mutate(messages[at], chance, others)
    if chance.random() < 0.6:
        data = canonical(kind, data)
    return f"message {at}: {how}", [*messages[:at], data, *messages[at + 1 :]]


def canonical(kind: type[Message], data: bytes) -> bytes:
    """Spoilt values in an impeccable encoding, so that they get past the parser."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return data
    message.DiscardUnknownFields()
    return message.SerializeToString(deterministic=True)


def spoilt_metadata(chance: Random) -> Metadata:
    key = chance.choice(("authorization", "x-forwarded-client-cert", "x-odd-bin", "x-odd"))
    value: Any = chance.randbytes(40) if key.endswith("-bin") else "Bearer " + "7" * 40
    return [(key, value)] * chance.choice((1, 2, 2, 20))


def spoilt_certificate(certificate: bytes, chance: Random) -> bytes:
    """Rarely anything but what TLS has verified: that is its part, and yet nothing may break."""
    match chance.randrange(100):
        case 0:
            return b""
        case 1:
            return chance.randbytes(500)
        case 2:
            return certificate[: chance.randrange(len(certificate) - 40)]
        case _:
            return certificate


def send_over_the_wire(channel: grpc.Channel, call: Spoilt) -> Outcome:
    timeout_s = WATCH_S if "/Watch" in call.path else 20
    return send(channel, call.path, call.messages, call.metadata, timeout_s=timeout_s)


def errors_in(path: str, answers: Sequence[bytes]) -> Iterator[Any]:
    """The refusals inside the answers of a call: one a report."""
    for answer in answers:
        if path.endswith("/SubmitReports"):
            outcomes = list(aggregator_pb2.SubmitReportsResponse.FromString(answer).outcomes)
        elif path.endswith("/StreamReports"):
            outcomes = [report_pb2.ReportOutcome.FromString(answer)]
        else:
            continue
        yield from (outcome.error for outcome in outcomes if outcome.HasField("error"))


def report(capfd: pytest.CaptureFixture[str], name: str, done: int, of: int) -> None:
    if of > 2000 and done % 500 == 0:
        with capfd.disabled():
            print(f"\r{name}: {done} of {of} spoilt calls ", end="", flush=True)
