"""Folded ciphertexts: exact against SEAL, exact in any order, exact at the limits."""

from __future__ import annotations

import random
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridveil.encryption import Encryptor, public_context
from gridveil.protocol.ciphertext import Residues, add, fold, parse_ciphertext, stored_sum, to_bytes
from gridveil.protocol.decoding import (
    SlotCheckFailed,
    checked_slot_sums,
    decrypt_folded,
    slot_values,
)
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil.protocol.parameter_sets import PARAMETER_SETS, SLOT_TOLERANCE, parameter_set
from tests.support.seal import SealKeys
from tests.vectors.material import city

both_sets = pytest.mark.parametrize("name", PARAMETER_SETS)


def random_ciphertexts(name: str, count: int, seed: int = 1) -> list[Residues]:
    crypto, source = parameter_set(name), np.random.default_rng(seed)
    shape = (count, crypto.ciphertext_bytes(64) // 8)
    return list(source.integers(0, crypto.modulus, shape, dtype=np.uint64))


@pytest.mark.parametrize("slots", [64, 256])
@both_sets
def test_a_sum_of_hundreds_opens_to_what_seal_itself_decrypts(
    name: str, slots: int, tmp_path: Path
) -> None:
    crypto, source = parameter_set(name), random.Random(7)
    keys = SealKeys(crypto, tmp_path)
    reports = [source.randbytes(slots) for _ in range(300)]
    vectors = [keys.encrypt(slot_bytes) for slot_bytes in reports]
    total = add([keys.folded(vector, slots) for vector in vectors], crypto)
    whole = vectors[0]
    for vector in vectors[1:]:
        whole = whole + vector
    values = slot_values(decrypt_folded(total, keys.secret, crypto, slots), crypto, slots)
    assert np.abs(values - keys.decrypt(whole, slots)).max() < 1e-6
    assert checked_slot_sums(values, 300) == [sum(column) for column in zip(*reports, strict=True)]


@both_sets
def test_a_fresh_ciphertext_has_the_documented_size_and_opens(name: str, tmp_path: Path) -> None:
    crypto = parameter_set(name)
    keys = SealKeys(crypto, tmp_path)
    slot_bytes = bytes(range(128, 192))
    data = Encryptor(crypto, 64, keys.public_key).encrypt(slot_bytes)
    assert len(data) == {"ckks-2048": 17_408, "ckks-4096": 33_792}[name]
    residues = parse_ciphertext(data, crypto, 64)
    coefficients = decrypt_folded(residues, keys.secret, crypto, 64)
    opened = checked_slot_sums(slot_values(coefficients, crypto, 64), 1)
    assert bytes(opened) == slot_bytes


@both_sets
def test_no_two_encryptions_of_a_reading_are_alike(name: str) -> None:
    encryptor = Encryptor(parameter_set(name), 64, city(name).public_key)
    assert encryptor.encrypt(bytes(64)) != encryptor.encrypt(bytes(64))


@pytest.mark.parametrize(
    "public_key",
    [b"", b"\0", b"\xff" * 300, city("ckks-4096").public_key, city("ckks-2048").public_key[:-9]],
    ids=["missing", "one byte", "noise", "of the other set", "cut"],
)
def test_a_public_key_that_cannot_be_used_is_refused_by_name(public_key: bytes) -> None:
    with pytest.raises(MalformedInput) as refused:
        public_context(parameter_set("ckks-2048"), public_key)
    assert refused.value.reason is Reason.KEY_EPOCH


@both_sets
@settings(max_examples=30)
@given(data=st.data())
def test_a_sum_is_the_same_bytes_in_any_order_and_grouping(name: str, data: st.DataObject) -> None:
    crypto, ciphertexts = parameter_set(name), random_ciphertexts(name, 40)
    order = data.draw(st.permutations(ciphertexts))
    cuts = sorted(data.draw(st.sets(st.integers(1, 39))))
    groups = [order[a:b] for a, b in pairwise([0, *cuts, 40])]
    partials = [add(group, crypto) for group in groups]
    expected = [sum(int(c[at]) for c in ciphertexts) % crypto.modulus for at in (0, 64, 900, -1)]
    total = add(partials, crypto)
    assert to_bytes(total) == to_bytes(add(ciphertexts, crypto))
    assert [int(total[at]) for at in (0, 64, 900, -1)] == expected


@both_sets
def test_the_accumulator_never_overflows_at_its_limit(name: str) -> None:
    crypto = parameter_set(name)
    limit, q = crypto.unreduced_terms, crypto.modulus
    assert limit == {"ckks-2048": 16_384, "ckks-4096": 16}[name]
    assert limit * (q - 1) < 2**64 <= (limit + 1) * (q - 1)
    largest = np.full(8, q - 1, dtype=np.uint64)
    for count in (limit - 1, limit, limit + 1, 2 * limit - 1, 2 * limit, 2 * limit + 1):
        assert set(add(repeat(largest, count), crypto).tolist()) == {count * (q - 1) % q}


@both_sets
def test_folding_never_overflows_at_any_number_of_slots(name: str) -> None:
    crypto = parameter_set(name)
    residues = np.full(crypto.degree, crypto.modulus - 1, dtype=np.uint64)
    slots = 64
    while slots <= crypto.degree // 2:
        expected = crypto.block(slots) * (crypto.modulus - 1) % crypto.modulus
        assert set(fold(residues, crypto, slots).tolist()) == {expected}
        slots *= 2


def test_adding_leaves_its_terms_alone() -> None:
    ciphertexts = random_ciphertexts("ckks-4096", 20)
    before = [to_bytes(c) for c in ciphertexts]
    add(ciphertexts, parameter_set("ckks-4096"))
    assert [to_bytes(c) for c in ciphertexts] == before


@both_sets
def test_reports_that_cancel_leave_a_sum_that_can_still_be_read(name: str) -> None:
    crypto = parameter_set(name)
    one = random_ciphertexts(name, 1)[0]
    other = np.uint64(crypto.modulus) - one
    total = to_bytes(add([one, other], crypto))
    assert not any(stored_sum(total, crypto, 64))
    with pytest.raises(MalformedInput) as refused:
        parse_ciphertext(total, crypto, 64)
    assert refused.value.reason is Reason.CIPHERTEXT_TRANSPARENT


@pytest.mark.parametrize("data", [b"", bytes(8), b"\xff" * 17_408])
def test_a_stored_sum_that_is_none_is_reported_as_lost(data: bytes) -> None:
    with pytest.raises(IntegrityLost) as lost:
        stored_sum(data, parameter_set("ckks-2048"), 64)
    assert lost.value.reason is Reason.PARTIAL_CORRUPT


@pytest.mark.parametrize(
    "off",
    [
        SLOT_TOLERANCE + 1e-9,
        -SLOT_TOLERANCE - 1e-9,
        0.5,
        1j * (SLOT_TOLERANCE + 1e-9),
        -1j,
        -8.0,
        255 * 10 - 7 + 1.0,
        float("nan"),
    ],
)
@pytest.mark.parametrize("slot", [0, 63])
def test_one_slot_that_is_no_sum_of_bytes_fails_the_check(slot: int, off: complex) -> None:
    values = np.full(64, 7, dtype=np.complex128)
    assert checked_slot_sums(values, 10) == [7] * 64
    values[slot] += off
    with pytest.raises(SlotCheckFailed):
        checked_slot_sums(values, 10)


def test_slots_up_to_the_tolerance_and_up_to_the_largest_sum_pass() -> None:
    edge = SLOT_TOLERANCE + 1j * SLOT_TOLERANCE
    values = np.array([edge, 255 * 3 - edge], dtype=np.complex128)
    assert checked_slot_sums(values, 3) == [0, 765]
