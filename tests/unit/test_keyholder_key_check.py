"""The key check: it predicts the noise that is measured, and noisy keys are not used."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest

from gridveil.encryption import Encryptor
from gridveil.protocol.ciphertext import parse_ciphertext
from gridveil.protocol.decoding import decrypt_folded, slot_values
from gridveil.protocol.errors import Reason, Unavailable
from gridveil.protocol.parameter_sets import PARAMETER_SETS, ParameterSet, parameter_set
from gridveil_services.keyholder import epoch_keys
from gridveil_services.keyholder.epoch_keys import generate_ckks_keys, sound_ckks_keys
from gridveil_services.keyholder.key_check import is_sound_key, key_coefficients, slot_stds

SLOTS = 64
CRYPTO = parameter_set("ckks-2048")
REPORTS = 300


def measured_stds(public: bytes, secret: bytes, crypto: ParameterSet) -> list[float]:
    """Of a part of each slot, over fresh reports."""
    encryptor = Encryptor(crypto, SLOTS, public)
    key = [int(residue) for residue in np.frombuffer(secret, dtype="<u8")]
    errors = []
    for _ in range(REPORTS):
        plain = secrets.token_bytes(SLOTS)
        folded = parse_ciphertext(encryptor.encrypt(plain), crypto, SLOTS)
        values = slot_values(decrypt_folded(folded, key, crypto, SLOTS), crypto, SLOTS)
        errors.append(values - np.frombuffer(plain, dtype=np.uint8))
    return [math.sqrt(v) for v in np.mean(np.abs(np.array(errors)) ** 2, axis=0) / 2]


def test_the_predicted_noise_of_every_slot_is_the_measured_one() -> None:
    """Slot by slot: 300 reports tell a slot's deviation to 4 percent."""
    public, secret = generate_ckks_keys(CRYPTO)
    predicted = slot_stds(*key_coefficients(public, secret, CRYPTO), CRYPTO, SLOTS)
    turns = [pow(3, slot, 4 * SLOTS) for slot in range(SLOTS)]
    # exp(i pi (1 - 2k) / 2P) is the root of the slot whose turn is 1 - 2k.
    of_slots = [predicted[(1 - turn) // 2 % (2 * SLOTS)] for turn in turns]
    ratios = np.array(measured_stds(public, secret, CRYPTO)) / of_slots
    assert 0.8 < ratios.min() < ratios.max() < 1.25
    assert abs(ratios.mean() - 1) < 0.03


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_keys_as_seal_makes_them_are_small_and_sound(name: str) -> None:
    crypto = parameter_set(name)
    public, secret = generate_ckks_keys(crypto)
    error, key = key_coefficients(public, secret, crypto)
    assert set(key) == {-1, 0, 1}
    assert max(map(abs, error)) <= 6 * 3.2 + 1
    assert is_sound_key(public, secret, crypto, SLOTS)


def aimed_at_one_slot() -> list[int]:
    """A ternary polynomial that is as large as it can be at the first slot's first root."""
    angles = math.pi * np.arange(CRYPTO.degree) / CRYPTO.degree
    return [int(sign) for sign in np.sign(np.round(np.cos(angles), 12))]


def test_a_key_with_one_noisy_slot_is_seen() -> None:
    public, secret = generate_ckks_keys(CRYPTO)
    error, key = key_coefficients(public, secret, CRYPTO)
    limit = CRYPTO.worst_slot(SLOTS) * CRYPTO.slot_noise_std(SLOTS)
    assert slot_stds(error, key, CRYPTO, SLOTS).max() <= limit
    aimed = slot_stds(error, aimed_at_one_slot(), CRYPTO, SLOTS)
    assert aimed.max() > 2 * limit
    assert np.median(aimed) < limit


def test_keys_of_another_pair_are_not_sound() -> None:
    """The error of a public key for another secret is as large as the modulus."""
    public, _ = generate_ckks_keys(CRYPTO)
    _, secret = generate_ckks_keys(CRYPTO)
    assert not is_sound_key(public, secret, CRYPTO, SLOTS)


def test_a_pair_that_is_not_sound_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = generate_ckks_keys(CRYPTO)[0], generate_ckks_keys(CRYPTO)[1]
    good = generate_ckks_keys(CRYPTO)
    made = iter([bad, bad, good])
    monkeypatch.setattr(epoch_keys, "generate_ckks_keys", lambda _crypto: next(made))
    assert sound_ckks_keys(CRYPTO, SLOTS) == good


def test_the_search_for_a_sound_pair_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = generate_ckks_keys(CRYPTO)[0], generate_ckks_keys(CRYPTO)[1]
    made: list[ParameterSet] = []

    def generate(crypto: ParameterSet) -> tuple[bytes, bytes]:
        made.append(crypto)
        return bad

    monkeypatch.setattr(epoch_keys, "generate_ckks_keys", generate)
    with pytest.raises(Unavailable) as refusal:
        sound_ckks_keys(CRYPTO, SLOTS)
    assert refusal.value.reason is Reason.KEYHOLDER_UNAVAILABLE
    assert 1 < len(made) < 100
