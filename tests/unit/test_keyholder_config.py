"""A configuration is right in every key, or the key-holder does not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.protocol.city import EntryAudience
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil_services.keyholder.config import KeyHolderConfig

TEXT = """\
city_id = "000102030405060708090a0b0c0d0e0f"
listen = "127.0.0.1:7440"
state = "state"
published = "published"
key_encrypting_key_file = "kek"
refusals_per_day = 5

[tls]
ca = "tls/ca.pem"
certificate = "tls/cert.pem"
key = "tls/key.pem"

[policy]
parameter_set = "ckks-2048"
window_length = 900
grace = 300
early_leeway = 60
min_cohort = 1000
colluding = 0
min_coverage = 0.8
batch_limit = 128
entry_audience = "auditors"
failing_lanes = "leave-out"
failure_budget = 5
development = false
epoch_length = 86400

[[policy.registers]]
name = "import_wh"
unit = "Wh"
bound = 200000
"""


def load(folder: Path, text: str) -> KeyHolderConfig:
    path = folder / "keyholder.toml"
    path.write_text(text)
    return KeyHolderConfig.load(path)


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, TEXT)
    assert config.city_id == bytes(range(16))
    assert config.state == tmp_path / "state"
    assert config.tls.key == tmp_path / "tls" / "key.pem"
    assert config.policy.min_coverage_ppm == 800_000
    assert config.policy.entry_audience is EntryAudience.AUDITORS
    assert config.refusals_per_day == 5


@pytest.mark.parametrize(
    ("share", "ppm"), [("0.8", 800_000), ("0.29e0", None), ("0.5000001", 500_001), ("1", 1_000_000)]
)
def test_coverage_is_never_rounded_down(tmp_path: Path, share: str, ppm: int | None) -> None:
    text = TEXT.replace("min_coverage = 0.8", f"min_coverage = {share}")
    if ppm is None:
        with pytest.raises(MalformedInput):
            load(tmp_path, text)
    else:
        assert load(tmp_path, text).policy.min_coverage_ppm == ppm


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("min_cohort = 1000", "min_cohort = 99", "min_cohort"),
        ("min_cohort = 1000", "min_cohort = 0", "min_cohort"),
        ("colluding = 0", "colluding = 901", "min_cohort"),
        ("colluding = 0", "colluding = -1", "colluding"),
        ("min_coverage = 0.8", "min_coverage = 0.4", "min_coverage"),
        ("min_coverage = 0.8", "min_coverage = 1.1", "min_coverage"),
        ("min_coverage = 0.8", "min_coverage = nan", "min_coverage"),
        ("min_coverage = 0.8", "min_coverage = inf", "min_coverage"),
        ("window_length = 900", "window_length = 0", "window_length"),
        ("grace = 300", "grace = 0", "grace"),
        ("batch_limit = 128", "batch_limit = 100000", "batch_limit"),
        ("epoch_length = 86400", "epoch_length = 86401", "epoch_length"),
        ("epoch_length = 86400", "epoch_length = 0", "epoch_length"),
        ("epoch_length = 86400", "epoch_length = 900000000", "epoch_length"),
        ('"auditors"', '"everybody"', "entry_audience"),
        ('"ckks-2048"', '"ckks-1024"', "parameter set"),
        ("bound = 200000", "bound = 4294967296", "bound"),
        ('unit = "Wh"', 'unit = "W h"', "unit"),
        ('city_id = "00', 'city_id = "', "city_id"),
        ("min_cohort = 1000\n", "", "min_cohort"),
        ("colluding = 0\n", "", "colluding"),
        ("refusals_per_day = 5\n", "", "refusals_per_day"),
        ("refusals_per_day = 5", "refusals_per_day = 0", "refusals_per_day"),
        ("refusals_per_day = 5", "refusals_per_day = 97", "refusals_per_day"),
        ("refusals_per_day = 5", "refusals_per_day = 2.5", "refusals_per_day"),
        ("min_cohort = 1000", "min_cohort = 1000\nmin_kohort = 5", "min_kohort"),
        ("min_cohort = 1000", 'min_cohort = "1000"', "min_cohort"),
        ('listen = "127.0.0.1:7440"\n', "", "listen"),
        ("[tls]", "[tls", "keyholder.toml"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in TEXT
    with pytest.raises(MalformedInput) as refusal:
        load(tmp_path, TEXT.replace(old, new))
    assert refusal.value.reason is Reason.CONFIG_INVALID
    assert named in refusal.value.message


NOISE = """\
[policy.noise]
mechanism = "laplace"
epsilon_per_window = 0.5
epsilon_per_day = 48

[[policy.registers]]
"""


def with_noise(text: str = NOISE) -> str:
    return TEXT.replace("[[policy.registers]]\n", text)


def test_without_a_section_there_is_no_noise(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT).policy.noise is None


def test_noise_is_read_in_the_units_of_its_mechanism(tmp_path: Path) -> None:
    laplace = NoisePolicy(Noise(Mechanism.LAPLACE, 500_000), 48_000_000)
    assert load(tmp_path, with_noise()).policy.noise == laplace
    gaussian = NOISE.replace("laplace", "gaussian").replace("epsilon", "rho")
    found = load(tmp_path, with_noise(gaussian)).policy.noise
    assert found == NoisePolicy(Noise(Mechanism.GAUSSIAN, 500_000), 48_000_000)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"laplace"', '"uniform"', "noise.mechanism"),
        ('"laplace"', '"none"', "noise.mechanism"),
        ('"laplace"', '"gaussian"', "noise"),
        ("epsilon_per_day = 48", "rho_per_day = 48", "noise"),
        ("epsilon_per_day = 48", "epsilon_per_day = 48\nrho_per_day = 1", "noise"),
        ("epsilon_per_day = 48\n", "", "noise"),
        ("epsilon_per_window = 0.5\n", "", "noise"),
        ('mechanism = "laplace"\n', "", "mechanism"),
        ("epsilon_per_day = 48", "epsilon_per_day = 0.4", "loss"),
        ("epsilon_per_window = 0.5", "epsilon_per_window = 0", "noise"),
        ("epsilon_per_window = 0.5", "epsilon_per_window = 0.0000009", "noise"),
        ("epsilon_per_window = 0.5", "epsilon_per_window = -1", "noise"),
        ("epsilon_per_window = 0.5", "epsilon_per_window = nan", "number"),
        ("epsilon_per_day = 48", "epsilon_per_day = inf", "number"),
        ("epsilon_per_day = 48", "epsilon_per_day = 4295", "loss"),
        ("epsilon_per_day = 48", "epsilon_per_day = 48\ndelta = 0.1", "delta"),
    ],
)
def test_noise_that_is_not_clear_is_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in NOISE
    with pytest.raises(MalformedInput) as refusal:
        load(tmp_path, with_noise(NOISE.replace(old, new)))
    assert refusal.value.reason is Reason.CONFIG_INVALID
    assert named in refusal.value.message


def test_noise_beyond_the_room_of_a_total_is_refused(tmp_path: Path) -> None:
    little = with_noise(NOISE.replace("= 0.5", "= 0.0001"))
    load(tmp_path, little)
    with pytest.raises(MalformedInput, match="noise"):
        load(tmp_path, little.replace("bound = 200000", "bound = 4294967295"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput) as refusal:
        KeyHolderConfig.load(tmp_path / "keyholder.toml")
    assert refusal.value.reason is Reason.CONFIG_INVALID
