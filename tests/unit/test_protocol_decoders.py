"""Every decoder, given bytes nobody wrote: a refusal with a reason, or they were canonical."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gridveil.protocol.ciphertext import parse_ciphertext, parse_sum, to_bytes
from gridveil.protocol.city import CityParameters, open_city_parameters
from gridveil.protocol.errors import GridveilError, MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import Reader
from gridveil.protocol.parameter_sets import parameter_set
from gridveil.protocol.release import Entry, RegisterTotal, Total, open_total, split_entries
from gridveil.protocol.report import parse_report
from gridveil.protocol.roster import open_enrolment, open_roster_version, parse_members
from gridveil.protocol.signing import sign
from gridveil.protocol.v1 import report_pb2
from gridveil_services.rpc.parsing import Parser
from tests.vectors import generate
from tests.vectors.material import METERS, WINDOW, city

PLACE = city("ckks-2048")
DIGEST, CITY_ID = bytes(range(32)), PLACE.parameters.policy.city_id
IDENTITY_KEY = bytes(PLACE.identity.verify_key)
CRYPTO = parameter_set("ckks-2048")
SHORT_KEY = CityParameters(
    PLACE.parameters.policy, replace(PLACE.parameters.epoch, ckks_public_key=b"key")
)
PARSER = Parser(report_pb2.Report)


def vector(name: str, key: str) -> bytes:
    return bytes.fromhex(generate.load(name)[key])


def _message() -> bytes:
    report = generate.load("reports-ckks-2048")["reports"][0]
    head, tail = bytes.fromhex(report["message_head"]), bytes.fromhex(report["message_tail"])
    message = report_pb2.Report.FromString(head + bytes(17_408) + tail)
    message.ciphertext = bytes(24)
    return message.SerializeToString(deterministic=True)


def _report(data: bytes) -> bytes:
    message = PARSER.parse(data)
    assert isinstance(message, report_pb2.Report)
    return parse_report(message).to_message().SerializeToString(deterministic=True)


def _roster_version(data: bytes) -> bytes:
    """Signed as it is: the reader must hold even if the signer errs."""
    signature = sign(PLACE.identity, data)
    return open_roster_version(data, signature, IDENTITY_KEY, CITY_ID).encode()


def _enrolment(data: bytes) -> bytes:
    """Signed by the key inside, wherever that makes a request."""
    member = open_enrolment(data, CITY_ID)
    return data[:38] + member.encode() + data[-64:]


@dataclass(frozen=True)
class Decoder:
    """A layout: bytes that are right, and reading followed by writing."""

    right: bytes
    rewritten: Callable[[bytes], bytes]


ENTRY = vector("release-ckks-2048", "entries")[:196]
DECODERS = {
    "city parameters": Decoder(
        SHORT_KEY.encode(), lambda data: CityParameters.decode(data).encode()
    ),
    "roster version": Decoder(vector("roster", "encoded"), _roster_version),
    "members": Decoder(
        vector("roster", "entries"),
        lambda data: b"".join(member.encode() for member in parse_members(data)),
    ),
    "enrolment": Decoder(
        bytes.fromhex(generate.load("roster")["enrolments"][0]["request"]), _enrolment
    ),
    "entry": Decoder(ENTRY, lambda data: Entry.decode(data, DIGEST, WINDOW).encode()),
    "entries": Decoder(ENTRY * 2, lambda data: b"".join(split_entries(data))),
    "total": Decoder(
        vector("release-ckks-2048", "total"), lambda data: Total.decode(data).encode()
    ),
    "noisy total": Decoder(
        bytes.fromhex(generate.load("release-ckks-2048")["noisy"]["total"]),
        lambda data: Total.decode(data).encode(),
    ),
    "report": Decoder(_message(), _report),
    "ciphertext": Decoder(
        b"\1\0" * 8_704, lambda data: to_bytes(parse_ciphertext(data, CRYPTO, 64))
    ),
    "sum": Decoder(bytes(17_408), lambda data: to_bytes(parse_sum(data, CRYPTO, 64))),
}
every_layout = pytest.mark.parametrize("layout", DECODERS)


@st.composite
def mutations(draw: st.DrawFn, right: bytes) -> bytes:
    """Bytes near right ones: changed, cut, extended, with a part doubled or missing."""
    data = right
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 40)))
        part = draw(st.one_of(st.binary(max_size=9), st.just(data[at:end] * 2)))
        data = draw(
            st.sampled_from(
                (
                    data[:at] + part + data[at + len(part) :],
                    data[:at] + part + data[at:],
                    data[:at] + data[end:],
                    data[:at],
                    data + part,
                )
            )
        )
    return data


@every_layout
def test_what_was_written_reads_back_to_the_same_bytes(layout: str) -> None:
    decoder = DECODERS[layout]
    assert decoder.rewritten(decoder.right) == decoder.right


@every_layout
@settings(max_examples=300)
@given(data=st.data())
def test_altered_bytes_are_refused_by_reason_or_were_canonical(
    layout: str, data: st.DataObject
) -> None:
    decoder = DECODERS[layout]
    altered = data.draw(mutations(decoder.right))
    try:
        rewritten = decoder.rewritten(altered)
    except GridveilError:
        return
    assert rewritten == altered


@every_layout
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_arbitrary_bytes_are_refused_by_reason_or_were_canonical(layout: str, data: bytes) -> None:
    try:
        rewritten = DECODERS[layout].rewritten(data)
    except GridveilError:
        return
    assert rewritten == data


@pytest.mark.parametrize(
    "layout", ["city parameters", "roster version", "enrolment", "entry", "total", "report"]
)
def test_every_proper_prefix_is_refused(layout: str) -> None:
    decoder = DECODERS[layout]
    for size in range(len(decoder.right)):
        with pytest.raises(GridveilError):
            decoder.rewritten(decoder.right[:size])


@pytest.mark.parametrize("size", [1, 63, 65])
def test_a_signature_of_another_length_is_refused_before_anything_is_verified(size: int) -> None:
    message = report_pb2.Report.FromString(_message())
    message.signature = bytes(size)
    with pytest.raises(NotAuthentic) as refused:
        parse_report(message)
    assert refused.value.reason is Reason.SIGNATURE_INVALID


def test_an_entry_with_flags_that_nobody_defined_is_refused() -> None:
    flagged = ENTRY[:16] + b"\1\0\0\0" + ENTRY[20:]
    with pytest.raises(MalformedInput) as refused:
        Entry.decode(flagged, DIGEST, WINDOW)
    assert refused.value.reason is Reason.FIELD_RANGE


@given(
    st.builds(
        report_pb2.Report,
        parameters_digest=st.binary(max_size=40),
        window_start=st.integers(-(2**63), 2**63 - 1),
        meter_id=st.binary(max_size=20),
        flags=st.integers(0, 2**32 - 1),
        commitment_hash=st.binary(max_size=40),
        sealed_commitment=st.binary(max_size=60),
        ciphertext=st.binary(max_size=20),
        signature=st.binary(max_size=70),
    )
)
def test_any_report_message_is_parsed_or_refused_by_reason(message: report_pb2.Report) -> None:
    try:
        report = parse_report(message)
    except (MalformedInput, NotAuthentic):
        return
    assert report.to_message() == message


@given(st.binary(max_size=200))
def test_unsigned_documents_are_refused_before_they_are_read(data: bytes) -> None:
    signature = sign(METERS[0].signing_key, data)
    for open_document in (
        lambda: open_city_parameters(data, signature, IDENTITY_KEY, CITY_ID),
        lambda: open_roster_version(data, signature, IDENTITY_KEY, CITY_ID),
        lambda: open_total(data, signature, IDENTITY_KEY),
    ):
        with pytest.raises(NotAuthentic):
            open_document()


@given(
    st.lists(
        st.builds(
            RegisterTotal,
            name=st.text(st.characters(codec="ascii"), max_size=255),
            unit=st.text(st.characters(codec="ascii"), max_size=255),
            sum=st.integers(0, 2**52 - 1),
        ),
        max_size=5,
    ),
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_different_totals_have_different_bytes(
    registers: list[RegisterTotal], count: int, window: int
) -> None:
    first = Total.decode(vector("release-ckks-2048", "total"))
    made = replace(
        first, registers=tuple(registers), enrolled=count, count=count, window_start=window
    )
    assert Total.decode(made.encode()) == made


def test_a_reader_tells_short_long_and_foreign_bytes_apart() -> None:
    reader = Reader(b"\3abc\2\0\0\0xy", "thing")
    reader.domain("abc")
    assert reader.blob(2) == b"xy"
    reader.end()
    cases: tuple[tuple[bytes, Callable[[Reader], object], str], ...] = (
        (b"\3abc", lambda r: r.domain("abd"), "domain"),
        (b"\3ab", lambda r: r.domain("abc"), "short"),
        (b"\2\0\0\0xy", lambda r: r.blob(1), "limit"),
        (b"\3\0\0\0xy", lambda r: r.blob(9), "short"),
        (b"\1\xff", lambda r: r.text(), "ASCII"),
        (b"x", lambda r: r.end(), "trailing"),
    )
    for data, read, words in cases:
        with pytest.raises(MalformedInput, match=words):
            read(Reader(data, "thing"))
