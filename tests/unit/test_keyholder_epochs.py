"""Epoch keys: there when needed, sealed at rest, gone when done, and bound to the log."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.ciphertext import add, parse_ciphertext, to_bytes
from gridveil.protocol.city import open_city_parameters
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil.protocol.release import LaneSum
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest, create_key_file
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.epoch_keys import EpochKeys, OpeningFailed
from gridveil_services.keyholder.epoch_store import EpochStore, Secrets, SignedParameters
from gridveil_services.keyholder.keyholder import KeyHolder
from tests.support.keyholders import make_config
from tests.support.reports import WINDOW, encryptor, make_members

DAY = 86_400
NOON = 1_700_000_000 // DAY * DAY + DAY // 2


@pytest.fixture
def config(tmp_path: Path) -> KeyHolderConfig:
    return make_config(tmp_path / "keyholder")


def folders(config: KeyHolderConfig) -> list[Path]:
    return sorted((config.state / "epochs").iterdir())


def served(config: KeyHolderConfig, now: float) -> dict[int, bytes]:
    """First window and encoded parameters of every epoch after a start at ``now``."""
    keyholder = KeyHolder(config, ManualClock(now))
    windows = range(NOON - 30 * DAY, NOON + 30 * DAY, DAY)
    found = [keyholder.ring.for_window(window) for window in windows]
    keyholder.close()
    return {
        signed.parameters.epoch.first_window: signed.parameters.encode()
        for signed in found
        if signed
    }


def test_the_current_and_the_next_epoch_exist_and_start_where_days_do(
    config: KeyHolderConfig,
) -> None:
    today = NOON - DAY // 2
    assert list(served(config, NOON)) == [today, today + DAY]
    assert len(folders(config)) == 2


def test_parameters_are_signed_and_the_same_after_a_restart(config: KeyHolderConfig) -> None:
    keyholder = KeyHolder(config, ManualClock(NOON))
    signed = keyholder.ring.for_window(NOON)
    assert signed is not None
    keyholder.close()
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    key = bytes(identity.load(config.state, at_rest).verify_key)
    opened = open_city_parameters(signed.parameters.encode(), signed.signature, key, config.city_id)
    assert opened == signed.parameters
    assert opened.encode() in served(config, NOON).values()


def test_epochs_follow_one_another_without_gap_or_overlap(config: KeyHolderConfig) -> None:
    clock = ManualClock(NOON)
    keyholder = KeyHolder(config, clock)
    # Without a roster no window can be claimed: passed epochs are done at once.
    for day in range(1, 4):
        clock.move_to(NOON + day * DAY)
        keyholder.upkeep.tick()
        assert len(folders(config)) == 2
    logged = sorted(keyholder.ledger.epochs().values(), key=lambda epoch: epoch.first_window)
    keyholder.close()
    ends = [epoch.end_window for epoch in logged]
    assert [epoch.first_window for epoch in logged[1:]] == ends[:-1]
    assert len(logged) == 5


def test_after_a_long_stop_the_day_of_the_restart_has_keys(config: KeyHolderConfig) -> None:
    served(config, NOON)
    late = NOON + 10 * DAY
    assert list(served(config, late)) == [late - DAY // 2, late + DAY // 2]


@pytest.mark.parametrize("days", [1, 2, 5])
def test_a_clock_that_went_back_finds_keys_and_no_window_has_two(
    config: KeyHolderConfig, days: int
) -> None:
    later = served(config, NOON)
    earlier = served(config, NOON - days * DAY)
    today = NOON - DAY // 2
    assert {today - days * DAY, today - days * DAY + DAY} <= earlier.keys()
    assert later.items() <= earlier.items()
    assert served(config, NOON) == later


def test_epochs_of_another_length_fill_the_gaps_and_never_overlap(config: KeyHolderConfig) -> None:
    clock = ManualClock(NOON)
    for length, now in ((DAY, NOON), (9000, NOON - 2 * DAY), (7 * DAY, NOON - DAY), (900, NOON)):
        clock.move_to(now)
        keyholder = KeyHolder(replace(config, epoch_length=length), clock)
        window = now // 900 * 900
        signed = keyholder.ring.for_window(window)
        assert signed is not None
        assert keyholder.ring.for_window(signed.parameters.epoch.end_window) is not None
        epochs = sorted(keyholder.ledger.epochs().values(), key=lambda epoch: epoch.first_window)
        assert all(a.end_window <= b.first_window for a, b in pairwise(epochs))
        keyholder.close()


def test_keys_are_destroyed_once_their_last_window_is_over(config: KeyHolderConfig) -> None:
    clock = ManualClock(NOON)
    keyholder = KeyHolder(config, clock)
    keyholder.roster.enrol([meter.member for meter in make_members(3)])
    first = keyholder.ring.for_window(NOON)
    assert first is not None
    folder = config.state / "epochs" / first.parameters.epoch.epoch_id.hex()
    last_window = first.parameters.epoch.end_window - 900
    expires = config.policy.rules.expires(last_window)
    clock.move_to(expires - 1)
    keyholder.upkeep.tick()
    assert (folder / "secrets").exists()
    assert keyholder.ring.by_digest(first.parameters.digest) is not None
    clock.move_to(expires)
    keyholder.upkeep.tick()
    assert not folder.exists()
    assert keyholder.ring.by_digest(first.parameters.digest) is None
    keyholder.close()
    assert first.parameters.encode() not in served(config, expires).values()


def test_a_new_policy_holds_from_the_next_epoch_on(config: KeyHolderConfig) -> None:
    today = served(config, NOON)
    stricter = replace(config, policy=replace(config.policy, min_cohort=500))
    tomorrow = served(stricter, NOON + DAY)
    assert today.items() & tomorrow.items()
    keyholder = KeyHolder(stricter, ManualClock(NOON + DAY))
    cohorts = [
        signed.parameters.policy.min_cohort
        for signed in (keyholder.ring.for_window(NOON + day * DAY) for day in (1, 2))
        if signed
    ]
    keyholder.close()
    assert cohorts == [100, 500]


def refused_start(config: KeyHolderConfig, now: float = NOON) -> Reason:
    with pytest.raises(GridveilError) as refusal:
        KeyHolder(config, ManualClock(now))
    return refusal.value.reason


def test_another_window_length_is_refused(config: KeyHolderConfig) -> None:
    served(config, NOON)
    other = replace(config, policy=replace(config.policy, window_length=1800))
    assert refused_start(other) is Reason.CONFIG_INVALID


def test_another_key_encrypting_key_is_refused(config: KeyHolderConfig) -> None:
    served(config, NOON)
    config.key_encrypting_key_file.unlink()
    create_key_file(config.key_encrypting_key_file)
    assert refused_start(config) is Reason.PARTIAL_CORRUPT


@pytest.mark.parametrize("name", ["parameters", "secrets"])
def test_a_changed_byte_of_an_epoch_is_refused(config: KeyHolderConfig, name: str) -> None:
    served(config, NOON)
    path = folders(config)[0] / name
    whole = path.read_bytes()
    for at in [*range(0, len(whole), 1 + len(whole) // 40), len(whole) - 1]:
        changed = bytearray(whole)
        changed[at] ^= 0x40
        path.write_bytes(changed)
        assert refused_start(config) is Reason.PARTIAL_CORRUPT
    path.write_bytes(whole[:-1])
    assert refused_start(config) is Reason.PARTIAL_CORRUPT
    path.write_bytes(whole)
    served(config, NOON)


def test_the_secrets_of_another_epoch_are_refused(config: KeyHolderConfig) -> None:
    served(config, NOON)
    one, other = folders(config)
    shutil.copy(one / "secrets", other / "secrets")
    assert refused_start(config) is Reason.PARTIAL_CORRUPT


def test_the_whole_of_another_epoch_is_refused(config: KeyHolderConfig) -> None:
    served(config, NOON)
    one, other = folders(config)
    for name in ("parameters", "secrets"):
        shutil.copy(one / name, other / name)
    assert refused_start(config) is Reason.PARTIAL_CORRUPT


def test_an_epoch_with_other_parameters_than_the_log_names_is_refused(
    config: KeyHolderConfig,
) -> None:
    served(config, NOON)
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    key = identity.load(config.state, at_rest)
    store = EpochStore(config.state / "epochs", at_rest, bytes(key.verify_key), config.city_id)
    signed, secrets = store.load(next(store.ids()))
    weaker = replace(signed.parameters.policy, min_coverage_ppm=500_000)
    parameters = replace(signed.parameters, policy=weaker)
    store.save(SignedParameters(parameters, parameters.sign(key)), secrets)
    assert refused_start(config) is Reason.PARTIAL_CORRUPT


def test_an_epoch_whose_keys_are_lost_before_its_windows_are_settled_is_refused(
    config: KeyHolderConfig,
) -> None:
    keyholder = KeyHolder(config, ManualClock(NOON))
    keyholder.roster.enrol([meter.member for meter in make_members(3)])
    keyholder.close()
    shutil.rmtree(folders(config)[0])
    assert refused_start(config) is Reason.PARTIAL_CORRUPT


def test_keys_that_were_never_logged_are_made_anew(config: KeyHolderConfig) -> None:
    before = served(config, NOON)
    stray = config.state / "epochs" / bytes(16).hex()
    shutil.copytree(folders(config)[0], stray)
    (stray / "parameters").unlink()
    assert served(config, NOON) == before
    assert not stray.exists()


def test_a_log_that_lacks_the_epochs_is_refused(config: KeyHolderConfig) -> None:
    served(config, NOON)
    shutil.rmtree(config.published / "log")
    assert refused_start(config) is Reason.LOG_CORRUPT
    assert len(folders(config)) == 2


def all_secrets(config: KeyHolderConfig) -> dict[str, bytes]:
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    key = identity.load(config.state, at_rest)
    store = EpochStore(config.state / "epochs", at_rest, bytes(key.verify_key), config.city_id)
    found = {"identity": bytes(key), "kek": config.key_encrypting_key_file.read_bytes()}
    for epoch_id in store.ids():
        secrets = store.load(epoch_id)[1]
        found[f"sealing {epoch_id.hex()}"] = secrets.sealing
        found[f"ckks {epoch_id.hex()}"] = secrets.ckks
    return found


def test_no_file_holds_a_secret_in_the_clear(config: KeyHolderConfig) -> None:
    keyholder = KeyHolder(config, ManualClock(NOON))
    keyholder.roster.enrol([meter.member for meter in make_members(3)])
    keyholder.close()
    files = [path for path in config.state.parent.rglob("*") if path.is_file()]
    files.remove(config.key_encrypting_key_file)
    assert len(files) >= 7
    for name, secret in all_secrets(config).items():
        pieces = [secret[at : at + 16] for at in range(0, len(secret), 16)]
        for path in files:
            data = path.read_bytes()
            assert not any(piece in data for piece in pieces), (name, path.name)


def test_secrets_do_not_show_themselves(config: KeyHolderConfig) -> None:
    assert repr(Secrets(bytes(32), bytes(8))) == "Secrets()"


def keys_of(config: KeyHolderConfig) -> EpochKeys:
    keyholder = KeyHolder(config, ManualClock(WINDOW - 1))
    signed = keyholder.ring.for_window(WINDOW)
    assert signed is not None
    keys = keyholder.ring.by_digest(signed.parameters.digest)
    keyholder.close()
    assert keys is not None
    return keys


def lane_sum(keys: EpochKeys, reports: list[bytes], lane: int = 0) -> LaneSum:
    policy = keys.parameters.policy
    crypto, slots = policy.crypto, policy.layout.slots
    encrypt = encryptor(keys.parameters).encrypt
    parsed = (parse_ciphertext(encrypt(report), crypto, slots) for report in reports)
    return LaneSum(lane, len(reports), to_bytes(add(parsed, crypto)))


@pytest.mark.parametrize(("name", "batch"), [("ckks-2048", 128), ("ckks-4096", 64)])
def test_the_sum_of_every_slot_is_exact(tmp_path: Path, name: str, batch: int) -> None:
    keys = keys_of(make_config(tmp_path / "city", parameter_set=name, batch_limit=batch))
    slots = keys.parameters.policy.layout.slots
    reports = [bytes((at * (slot + 1) + 255) % 256 for slot in range(slots)) for at in range(20)]
    sums = keys.slot_sums(WINDOW, lane_sum(keys, reports))
    assert sums == [sum(column) for column in zip(*reports, strict=True)]
    assert keys.decryptions == {(WINDOW, 0): 1}


def test_a_sum_that_is_not_of_bytes_does_not_open(config: KeyHolderConfig) -> None:
    keys = keys_of(config)
    whole = lane_sum(keys, [bytes(64)])
    off = bytearray(whole.ciphertext)
    off[2] ^= 1
    with pytest.raises(OpeningFailed):
        keys.slot_sums(WINDOW, replace(whole, ciphertext=bytes(off)))


def test_a_sum_of_more_than_its_meters_can_hold_does_not_open(config: KeyHolderConfig) -> None:
    keys = keys_of(config)
    full = lane_sum(keys, [bytes([255] * 64)] * 2)
    assert keys.slot_sums(WINDOW, full) == [510] * 64
    with pytest.raises(OpeningFailed):
        keys.slot_sums(WINDOW, replace(full, count=1))


def test_secrets_that_are_not_the_epochs_own_are_refused(config: KeyHolderConfig) -> None:
    keys = keys_of(config)
    residues = bytes(8 * keys.parameters.policy.crypto.degree)
    with pytest.raises(IntegrityLost):
        EpochKeys(keys.signed, Secrets(bytes(32), residues))


def test_an_identity_of_another_city_is_refused(config: KeyHolderConfig) -> None:
    served(config, NOON)
    (config.state / "identity.key").unlink()
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    identity.create(config.state, at_rest)
    assert refused_start(config) is Reason.LOG_CORRUPT


def test_a_state_without_identity_is_refused(config: KeyHolderConfig) -> None:
    (config.state / "identity.key").unlink()
    assert refused_start(config) is Reason.PARTIAL_CORRUPT


def test_epoch_lengths_must_hold_whole_windows(config: KeyHolderConfig) -> None:
    with pytest.raises(MalformedInput):
        KeyHolder(replace(config, epoch_length=1000), ManualClock(NOON))
