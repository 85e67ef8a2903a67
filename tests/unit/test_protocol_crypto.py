"""Commitments, seals and signatures: what they bind, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import rbcl
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

import gridveil.protocol
from gridveil.protocol.city import open_city_parameters
from gridveil.protocol.commitment import IDENTITY, Generators, add_points, parse_commitment
from gridveil.protocol.errors import GridveilError, MalformedInput, NotAuthentic, Reason
from gridveil.protocol.layout import text
from gridveil.protocol.release import open_total
from gridveil.protocol.roster import open_enrolment, open_roster_version
from gridveil.protocol.sealing import open_sealed, seal, shared_key, x25519_public
from gridveil.protocol.signing import is_signed_by, sign, verify
from gridveil.protocol.slots import GROUP_ORDER
from tests.vectors import generate
from tests.vectors.material import METERS, WINDOW, city
from tests.vectors.refusals import LOW_ORDER_X25519

NAMES = ("import_wh", "export_wh")
CITY, EPOCH = bytes(range(16)), bytes(range(16, 32))
GENERATORS = Generators.derive(CITY, EPOCH, WINDOW, NAMES)
scalars = st.integers(0, 2**384 - 1)
values = st.integers(0, 2**32 - 1)
few = settings(max_examples=25)


@few
@given(values, values, values, values, scalars, scalars)
def test_the_sum_of_commitments_commits_to_the_sums(
    a: int, b: int, c: int, d: int, r: int, s: int
) -> None:
    parts = [GENERATORS.commit([a, b], r), GENERATORS.commit([c, d], s)]
    assert add_points(parts) == GENERATORS.commit([a + c, b + d], r + s)


def test_a_commitment_to_small_numbers_is_repeated_addition() -> None:
    five = Generators.derive(CITY, EPOCH, WINDOW, ["a", "b", "c", "d", "e"])
    first, second = five.registers
    expected = add_points([first, first, second, *[five.blinding] * 3])
    assert five.commit([2, 0, 0, 0, 1], 3) == expected


def test_the_registers_of_a_generator_are_digits_of_60_bits() -> None:
    (generator,) = GENERATORS.registers
    doubled = generator
    for _ in range(60):
        doubled = add_points([doubled, doubled])
    assert GENERATORS.commit([0, 1], 0) == doubled


@pytest.mark.parametrize("blinding", [0, GROUP_ORDER, 2 * GROUP_ORDER])
def test_commitments_to_zeros_are_what_is_left_of_the_equation(blinding: int) -> None:
    assert GENERATORS.commit([0, 0], blinding) == IDENTITY
    assert GENERATORS.commit([1, 0], blinding) == GENERATORS.registers[0]
    assert GENERATORS.commit([0, 0], blinding + 1) == GENERATORS.blinding


def test_the_identity_is_no_commitment_but_sums_may_pass_through_it() -> None:
    point = GENERATORS.blinding
    negative = rbcl.crypto_core_ristretto255_sub(IDENTITY, point)
    assert add_points([]) == IDENTITY
    assert add_points([point, negative]) == IDENTITY
    assert add_points([point, negative, point]) == point
    with pytest.raises(MalformedInput):
        parse_commitment(IDENTITY)
    assert parse_commitment(point) == point


@pytest.mark.parametrize("place", [0, 1])
def test_a_sum_with_something_that_is_no_point_is_refused(place: int) -> None:
    points = [GENERATORS.blinding, *GENERATORS.registers]
    points[place] = b"\xff" * 32
    with pytest.raises(MalformedInput) as refused:
        add_points(points)
    assert refused.value.reason is Reason.FIELD_FORMAT


@pytest.mark.parametrize(
    ("other", "same_blinding"),
    [
        (Generators.derive(bytes(16), EPOCH, WINDOW, NAMES), False),
        (Generators.derive(CITY, bytes(16), WINDOW, NAMES), False),
        (Generators.derive(CITY, EPOCH, WINDOW + 900, NAMES), False),
        (Generators.derive(CITY, EPOCH, WINDOW, ("import_w", "hexport_wh")), True),
    ],
    ids=["city", "epoch", "window", "names"],
)
def test_generators_of_another_scope_are_other_points(
    other: Generators, *, same_blinding: bool
) -> None:
    ours, theirs = set(GENERATORS.registers), {*other.registers, other.blinding}
    assert len(ours) == 1
    assert len(theirs) == 2
    assert not ours & theirs
    assert (other.blinding == GENERATORS.blinding) is same_blinding


def test_a_generator_belongs_to_its_registers_in_their_order() -> None:
    swapped = Generators.derive(CITY, EPOCH, WINDOW, NAMES[::-1])
    assert not set(swapped.registers) & set(GENERATORS.registers)
    assert swapped.blinding == GENERATORS.blinding


@pytest.mark.parametrize(("registers", "generators"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_four_registers_share_a_generator(registers: int, generators: int) -> None:
    names = [f"register_{at}" for at in range(registers)]
    assert len(Generators.derive(CITY, EPOCH, WINDOW, names).registers) == generators


@given(*[st.lists(st.integers(0, 2**52), min_size=6, max_size=6)] * 2)
def test_totals_in_range_commit_alike_only_if_they_are_the_same(
    ones: list[int], others: list[int]
) -> None:
    six = Generators.derive(CITY, EPOCH, WINDOW, ["a", "b", "c", "d", "e", "f"])
    assert (six.commit(ones, 1) == six.commit(others, 1)) is (ones == others)


@pytest.mark.parametrize("register", range(4))
def test_a_unit_moved_to_the_neighbouring_register_is_another_commitment(register: int) -> None:
    four = Generators.derive(CITY, EPOCH, WINDOW, ["a", "b", "c", "d"])
    values = [2**51] * 4
    shifted = [
        value + (at == register) - (at == (register + 1) % 4) for at, value in enumerate(values)
    ]
    assert four.commit(values, 1) != four.commit(shifted, 1)


METER_SECRET, EPOCH_SECRET = bytes(range(32)), bytes(range(32, 64))
SCOPE = (CITY, EPOCH, bytes(range(64, 80)))
KEY = shared_key(METER_SECRET, x25519_public(EPOCH_SECRET), *SCOPE)
HASH, DATA, POINT = bytes(range(100, 132)), b"associated", GENERATORS.blinding
SEALED = seal(KEY, POINT, HASH, DATA)


def test_both_sides_derive_the_same_key_and_the_seal_opens() -> None:
    assert shared_key(EPOCH_SECRET, x25519_public(METER_SECRET), *SCOPE) == KEY
    assert len(SEALED) == 48
    assert open_sealed(KEY, SEALED, HASH, DATA) == POINT


@given(st.integers(0, 8 * 48 - 1))
def test_a_seal_with_any_bit_flipped_does_not_open(bit: int) -> None:
    flipped = (int.from_bytes(SEALED, "big") ^ 1 << bit).to_bytes(48, "big")
    _does_not_open(KEY, flipped, HASH, DATA)


@given(st.integers(0, 8 * 24 - 1))
def test_a_seal_does_not_open_under_another_nonce(bit: int) -> None:
    other = (int.from_bytes(HASH[:24], "big") ^ 1 << bit).to_bytes(24, "big")
    _does_not_open(KEY, SEALED, other + HASH[24:], DATA)


@given(st.binary().filter(lambda data: data != DATA))
def test_a_seal_does_not_open_with_other_associated_data(data: bytes) -> None:
    _does_not_open(KEY, SEALED, HASH, data)


@given(st.binary(max_size=100).filter(lambda data: data != SEALED))
def test_nothing_but_the_sealed_bytes_opens(data: bytes) -> None:
    _does_not_open(KEY, data, HASH, DATA)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_seal_of_another_city_epoch_or_meter_does_not_open(place: int) -> None:
    scope = list(SCOPE)
    scope[place] = bytes(16)
    other = shared_key(METER_SECRET, x25519_public(EPOCH_SECRET), *scope)
    _does_not_open(other, SEALED, HASH, DATA)


def _does_not_open(key: bytes, sealed: bytes, commitment_hash: bytes, data: bytes) -> None:
    with pytest.raises(NotAuthentic) as refused:
        open_sealed(key, sealed, commitment_hash, data)
    assert refused.value.reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize("public", LOW_ORDER_X25519)
def test_an_exchange_with_a_point_of_low_order_is_refused(public: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        shared_key(METER_SECRET, bytes.fromhex(public), *SCOPE)
    assert refused.value.reason is Reason.FIELD_FORMAT


def signed_documents() -> dict[str, bytes]:
    """The bytes under every signature of the protocol, by what they are."""
    place = city("ckks-2048")
    report = generate.load("reports-ckks-2048")["reports"][0]
    digest = place.parameters.digest
    return {
        "report": bytes.fromhex(report["transcript"]),
        "enrolment": bytes.fromhex(generate.load("roster")["enrolments"][0]["request"])[:-64],
        "city parameters": text("gridveil/v1/city-parameters-signature") + digest,
        "roster version": bytes.fromhex(generate.load("roster")["encoded"]),
        "total": bytes.fromhex(generate.load("release-ckks-2048")["total"]),
    }


@pytest.mark.parametrize("signed", signed_documents())
@pytest.mark.parametrize("claimed", signed_documents())
def test_a_signature_of_one_domain_never_verifies_in_another(signed: str, claimed: str) -> None:
    documents, key = signed_documents(), METERS[0].signing_key
    signature = sign(key, documents[signed])
    verifies = is_signed_by(bytes(key.verify_key), documents[claimed], signature)
    assert verifies is (signed == claimed)


@pytest.mark.parametrize("signed", signed_documents())
def test_a_document_signed_as_another_kind_is_opened_by_no_reader(signed: str) -> None:
    document, key = signed_documents()[signed], METERS[0].signing_key
    public, signature = bytes(key.verify_key), sign(key, document)
    city_id = city("ckks-2048").parameters.policy.city_id
    readers: dict[str, Callable[[], object]] = {
        "city parameters": lambda: open_city_parameters(document, signature, public, city_id),
        "roster version": lambda: open_roster_version(document, signature, public, city_id),
        "total": lambda: open_total(document, signature, public),
        "enrolment": lambda: open_enrolment(document + signature, city_id),
    }
    for kind, read in readers.items():
        # City parameters are signed by their digest: not even they are signed as they are.
        if kind == signed != "city parameters":
            read()
            continue
        with pytest.raises(GridveilError):
            read()


def test_no_domain_is_used_twice_and_none_is_the_start_of_another() -> None:
    folder = Path(next(iter(gridveil.protocol.__path__)))
    sources = [path.read_text() for path in sorted(folder.glob("*.py"))]
    domains = [d for source in sources for d in re.findall(r'"(gridveil/v1/[a-z0-9-]+)"', source)]
    assert len(domains) >= 12
    assert len(set(domains)) == len(domains)
    framed = [text(domain) for domain in domains]
    assert not any(a != b and b.startswith(a) for a in framed for b in framed)


@given(st.binary(max_size=200), st.integers(0, 511))
def test_a_signature_with_any_bit_flipped_is_refused(message: bytes, bit: int) -> None:
    key = METERS[0].signing_key
    signature = sign(key, message)
    verify(bytes(key.verify_key), message, signature)
    flipped = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
    assert not is_signed_by(bytes(key.verify_key), message, flipped)


@given(st.binary(max_size=100), st.binary(max_size=40), st.binary(max_size=70))
def test_verifying_arbitrary_bytes_refuses_and_does_not_fail(
    message: bytes, key: bytes, signature: bytes
) -> None:
    assert not is_signed_by(key, message, signature)


@pytest.mark.parametrize("key", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"])
def test_a_signing_key_of_low_order_signs_nothing(key: str) -> None:
    public = bytes.fromhex(key)
    for signature in (public + bytes(32), bytes(64), SigningKey(bytes(32)).sign(b"").signature):
        assert not is_signed_by(public, b"message", signature)
