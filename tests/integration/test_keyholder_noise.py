"""Totals with noise: claimed and paid for first, the same through every crash, and verified."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.city import CityPolicy
from gridveil.protocol.errors import Exhausted, GridveilError, MalformedInput, Reason, Unavailable
from gridveil.protocol.log_records import claimed_noise
from gridveil.protocol.noise import Mechanism, Noise, NoiseClaim, NoisePolicy, Spent
from gridveil.protocol.release import Total
from gridveil.verification import verify_total
from gridveil_services.keyholder import noise_pin
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.epoch_store import EpochStore
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.noise import DrawnNoise
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.policy import Status, noise_policy
from gridveil_services.keyholder.spool import SpoolFolder
from tests.support.keyholders import (
    PreparedCity,
    logged,
    prepare_city,
    refusal_of,
    unpublishable,
)
from tests.support.reports import WINDOW, BuiltRelease, build_release, build_report, city_policy

LAPLACE, GAUSSIAN = Mechanism.LAPLACE, Mechanism.GAUSSIAN
LENGTH = 900
AFFORDED = 3
NOISE = Noise(LAPLACE, 500_000)
POLICY = NoisePolicy(NOISE, AFFORDED * 500_000 + 499_999)
LATER = WINDOW + 12 * LENGTH
"""Every window of the tests may be released."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    return prepare_city(tmp_path_factory.mktemp("prepared") / "city", noise=POLICY)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> PreparedCity:
    """The signed parameters demand no noise."""
    return prepare_city(tmp_path_factory.mktemp("exact") / "city")


@pytest.fixture
def city(prepared: PreparedCity, tmp_path: Path) -> PreparedCity:
    return prepared.copy(tmp_path / "city")


@contextmanager
def opened(city: PreparedCity, **own: object) -> Iterator[KeyHolder]:
    """The key-holder, its own policy of today changed."""
    policy = replace(city.config.policy, **own)  # type: ignore[arg-type]
    changed = replace(city, config=replace(city.config, policy=policy))
    with changed.open(ManualClock(LATER)) as keyholder:
        yield keyholder


def window_at(number: int) -> int:
    return WINDOW + number * LENGTH


@lru_cache
def _release(parameters_digest: bytes, number: int, city: Made) -> BuiltRelease:
    found = city.city
    reports = [
        build_report(found.parameters, meter, window_at(number), (300 + 7 * at, at % 5))
        for at, meter in enumerate(found.meters)
    ]
    return build_release(found.parameters, found.roster_version, reports)


class Made:
    """A city as a key of the cache: each window's reports are made once for all of its copies."""

    def __init__(self, city: PreparedCity) -> None:
        self.city = city

    def __hash__(self) -> int:
        return hash(self.city.parameters.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and hash(self) == hash(other)


def release_of(city: PreparedCity, number: int) -> BuiltRelease:
    """What the meters report in a window, the same values in each."""
    return _release(city.parameters.digest, number, Made(city))


def settle(keyholder: KeyHolder, city: PreparedCity, number: int) -> Total:
    keyholder.releases.release(release_of(city, number).messages())
    return city.totals()[window_at(number)]


def epochs_of(city: PreparedCity) -> EpochStore:
    config = city.config
    at_rest = AtRest.load(config.key_encrypting_key_file, config.city_id)
    return EpochStore(config.state / "epochs", at_rest, city.identity_key, config.city_id)


def pinned(city: PreparedCity, number: int = 0, noise: Noise = NOISE) -> DrawnNoise:
    """The noise that lies beside a claimed release, and is there already."""
    spools = SpoolFolder(city.config.state / "spool")
    release = spools.find_whole(window_at(number), release_of(city, number).digest)
    assert release is not None
    assert release.noise_file.exists()
    parameters = city.parameters
    return NoisePins(epochs_of(city).at_rest).take(
        release, noise, parameters.epoch.epoch_id, parameters.policy.bounds
    )


def sums(total: Total) -> tuple[int, ...]:
    return tuple(register.sum for register in total.registers)


def assert_verifies(city: PreparedCity, total: Total) -> None:
    entries = (city.config.published / "entries" / str(total.window_start)).read_bytes()
    found = verify_total(total, [entries], city.parameters)
    assert found.noisy
    assert found.meters == len(city.meters)


def fail_before_result(city: PreparedCity, number: int = 0) -> None:
    """A release that was opened and whose outcome could not be written."""
    with opened(city) as keyholder, unpublishable(city, window_at(number)):
        with pytest.raises(Unavailable):
            keyholder.releases.release(release_of(city, number).messages())
        assert keyholder.ring.decryptions(window_at(number)) == 1


def test_a_total_is_released_with_the_noise_that_the_city_signed(city: PreparedCity) -> None:
    with opened(city) as keyholder:
        total = settle(keyholder, city, 0)
        assert keyholder.ledger.spent_on_day_of(WINDOW) == Spent().plus(NOISE)
    assert total.noise == NOISE
    # Both registers unchanged: a chance of 1e-12.
    assert sums(total) != city.truth
    assert_verifies(city, total)
    (intent,) = logged(city.config, "intent")
    assert claimed_noise(intent) == NoiseClaim(LAPLACE, 500_000)
    assert list((city.config.state / "spool").iterdir()) == []


def test_sums_below_zero_are_released_as_they_are(city: PreparedCity) -> None:
    fail_before_result(city)
    release = SpoolFolder(city.config.state / "spool").find_whole(
        WINDOW, release_of(city, 0).digest
    )
    assert release is not None
    noise = DrawnNoise(NOISE, (-(4 * 10**7), -241), 5)
    epoch_id = city.parameters.epoch.epoch_id
    release.noise_file.write_bytes(
        epochs_of(city)
        .at_rest(epoch_id)
        .seal(noise_pin._PURPOSE, epoch_id, noise_pin._encode(release, noise))
    )
    with opened(city):
        pass
    total = city.totals()[WINDOW]
    assert sums(total) == (city.truth[0] - 4 * 10**7, -1)
    assert_verifies(city, total)


def test_a_copied_pin_opens_nothing_once_its_epoch_is_destroyed(city: PreparedCity) -> None:
    """Not even for who has the key-encrypting key, and copied it all in time but the epoch."""
    fail_before_result(city)
    release = SpoolFolder(city.config.state / "spool").find_whole(
        WINDOW, release_of(city, 0).digest
    )
    assert release is not None
    sealed, epoch_id = release.noise_file.read_bytes(), city.parameters.epoch.epoch_id
    purpose = noise_pin._PURPOSE
    assert epochs_of(city).at_rest(epoch_id).open(purpose, epoch_id, sealed)
    epochs_of(city).delete(epoch_id)
    with pytest.raises(GridveilError):
        epochs_of(city).at_rest(epoch_id)
    kek = AtRest.load(city.config.key_encrypting_key_file, city.config.city_id)
    with pytest.raises(GridveilError):
        kek.open(purpose, epoch_id, sealed)


def test_the_exact_sums_are_what_is_checked(city: PreparedCity) -> None:
    """A sum that is beyond the bound is refused, whatever noise would make of it."""
    bound = city.config.policy.registers[0].bound
    liar = build_report(city.parameters, city.meters[0], WINDOW, (bound * len(city.meters) + 1, 0))
    release = build_release(city.parameters, city.roster_version, [liar, *city.reports[1:]])
    with opened(city) as keyholder:
        assert refusal_of(keyholder, release).reason is Reason.REFUSED
        assert keyholder.ledger.spent_on_day_of(WINDOW) == Spent().plus(NOISE)
    assert city.totals() == {}
    assert list((city.config.state / "spool").iterdir()) == []


def test_a_crash_before_the_result_keeps_the_noise_to_the_bit(city: PreparedCity) -> None:
    fail_before_result(city)
    noise = pinned(city)
    for _ in range(3):
        with unpublishable(city, WINDOW), pytest.raises(Unavailable):
            KeyHolder(city.config, ManualClock(LATER))
        assert pinned(city) == noise
    with opened(city) as keyholder:
        assert keyholder.ledger.spent_on_day_of(WINDOW) == Spent().plus(NOISE)
    total = city.totals()[WINDOW]
    assert sums(total) == tuple(t + v for t, v in zip(city.truth, noise.values, strict=True))
    assert_verifies(city, total)
    assert list((city.config.state / "spool").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""])
def test_noise_that_is_damaged_refuses_its_window_for_ever(
    city: PreparedCity, damage: object
) -> None:
    """Fresh noise on a sum that was opened before is what must not be."""
    fail_before_result(city)
    (folder,) = (city.config.state / "spool").iterdir()
    pin = folder / "noise"
    pin.write_bytes(damage(pin.read_bytes()))  # type: ignore[operator]
    with opened(city) as keyholder:
        assert keyholder.ring.decryptions(WINDOW) == 0
        assert refusal_of(keyholder, release_of(city, 0)).reason is Reason.REFUSED
    assert city.events() == ["intent", "refused"]
    assert not (city.config.published / "entries" / str(WINDOW)).exists()
    assert not (city.config.published / "own" / str(WINDOW)).exists()


def test_a_window_that_the_day_cannot_afford_is_refused_unopened(city: PreparedCity) -> None:
    with opened(city) as keyholder:
        for number in range(AFFORDED):
            settle(keyholder, city, number)
        for number in (AFFORDED, AFFORDED + 1):
            refusal = refusal_of(keyholder, release_of(city, number))
            assert isinstance(refusal, Exhausted)
            assert refusal.reason is Reason.BUDGET_EXHAUSTED
            assert refusal.retry_after_s is None
            assert keyholder.ring.decryptions(window_at(number)) == 0
            assert keyholder.ledger.state(window_at(number)).status is Status.OVER_BUDGET
            # The header alone is told the same, now and ever after.
            header = iter([release_of(city, number).header_message()])
            with pytest.raises(Exhausted):
                keyholder.releases.release(header)
        spent = keyholder.ledger.spent_on_day_of(WINDOW)
    assert spent.laplace_ppm == AFFORDED * 500_000
    claims = [claimed_noise(intent) for intent in logged(city.config, "intent")]
    assert claims == [NoiseClaim(LAPLACE, 500_000)] * AFFORDED + [NoiseClaim(LAPLACE, 0)] * 2
    refused = logged(city.config, "refused")
    assert [(r.over_budget, r.failures) for r in refused] == [(True, 0)] * 2


def test_a_restart_gives_no_budget_back(city: PreparedCity) -> None:
    for number in range(AFFORDED):
        with opened(city) as keyholder:
            settle(keyholder, city, number)
    with opened(city) as keyholder:
        assert refusal_of(keyholder, release_of(city, AFFORDED)).reason is Reason.BUDGET_EXHAUSTED


def test_windows_that_were_refused_have_spent_all_the_same(city: PreparedCity) -> None:
    with opened(city) as keyholder:
        for number in range(AFFORDED):
            release = release_of(city, number)
            lane = release.lanes[0]
            doubled = replace(lane, ciphertext=release.lanes[1].ciphertext)
            wrong = release.resigned(lanes=(doubled, *release.lanes[1:]))
            assert refusal_of(keyholder, wrong).reason is Reason.REFUSED
        assert refusal_of(keyholder, release_of(city, AFFORDED)).reason is Reason.BUDGET_EXHAUSTED
        assert keyholder.ledger.spent_on_day_of(WINDOW).laplace_ppm == AFFORDED * 500_000


def test_a_claim_beyond_the_budget_that_a_crash_left_is_refused_as_one(city: PreparedCity) -> None:
    over_budget = NoiseClaim(LAPLACE, 0)
    release = release_of(city, 0)
    with opened(city) as keyholder:
        keyholder.ledger.claim(
            WINDOW, release.digest, city.parameters.digest, city.roster_version, over_budget
        )
    with opened(city) as keyholder:
        assert keyholder.ring.decryptions(WINDOW) == 0
        assert refusal_of(keyholder, release).reason is Reason.BUDGET_EXHAUSTED
    assert city.events() == ["intent", "refused"]


def test_the_next_day_has_a_budget_again(city: PreparedCity) -> None:
    midnight = (WINDOW // 86_400 + 1) * 86_400
    last = (midnight - LENGTH - WINDOW) // LENGTH
    with opened(city) as keyholder:
        for number in range(AFFORDED):
            settle(keyholder, city, number)
        assert refusal_of(keyholder, release_of(city, last)).reason is Reason.BUDGET_EXHAUSTED
        signed = keyholder.ring.for_window(midnight)
        assert signed is not None
        reports = [
            build_report(signed.parameters, meter, midnight, (5, 0)) for meter in city.meters
        ]
        release = build_release(signed.parameters, city.roster_version, reports)
        keyholder.releases.release(release.messages())
    assert city.totals()[midnight].noise == NOISE


# Of the signed policy and today's the stricter one holds.


def policy_of(noise: NoisePolicy | None) -> CityPolicy:
    return city_policy(noise=noise)


STRICT = NoisePolicy(Noise(LAPLACE, 1_000), 10_000_000)
TIGHT = NoisePolicy(Noise(LAPLACE, 600_000), 600_000)
GAUSS = NoisePolicy(Noise(GAUSSIAN, 1_000), 100_000)


@pytest.mark.parametrize(
    ("signed", "own", "holds"),
    [
        (None, None, None),
        (POLICY, None, POLICY),
        (None, POLICY, None),
        (POLICY, STRICT, NoisePolicy(Noise(LAPLACE, 1_000), POLICY.day_ppm)),
        (POLICY, TIGHT, NoisePolicy(NOISE, 600_000)),
        (POLICY, GAUSS, POLICY),
        (GAUSS, POLICY, GAUSS),
    ],
)
def test_the_stricter_of_two_policies_holds(
    signed: NoisePolicy | None, own: NoisePolicy | None, holds: NoisePolicy | None
) -> None:
    assert noise_policy(policy_of(signed), policy_of(own)) == holds


def test_noise_that_meters_were_not_shown_begins_with_an_epoch_that_shows_it(
    exact: PreparedCity, tmp_path: Path
) -> None:
    """Until then verifiers refuse any: a total of theirs is exact."""
    city = exact.copy(tmp_path / "city")
    with opened(city, noise=STRICT) as keyholder:
        total = settle(keyholder, city, 0)
        later = WINDOW + 2 * 86_400
        keyholder.ring.ensure(later)
        successor = keyholder.ring.for_window(later)
    assert total.noise is None
    assert sums(total) == city.truth
    assert successor is not None
    assert successor.parameters.policy.noise == STRICT


def test_a_city_without_noise_is_exact_and_spends_nothing(
    exact: PreparedCity, tmp_path: Path
) -> None:
    city = exact.copy(tmp_path / "city")
    with opened(city) as keyholder:
        total = settle(keyholder, city, 0)
        assert keyholder.ledger.spent_on_day_of(WINDOW) == Spent()
    assert total.noise is None
    assert sums(total) == city.truth
    (intent,) = logged(city.config, "intent")
    assert (intent.mechanism, intent.loss_ppm) == (0, 0)


def test_dropping_noise_from_the_configuration_does_not_take_it_from_meters_that_saw_it(
    city: PreparedCity,
) -> None:
    with opened(city, noise=None) as keyholder:
        assert settle(keyholder, city, 0).noise == NOISE


def test_a_smaller_budget_of_today_holds_at_once(city: PreparedCity) -> None:
    with opened(city) as keyholder:
        settle(keyholder, city, 0)
    with opened(city, noise=NoisePolicy(NOISE, 500_000)) as keyholder:
        assert refusal_of(keyholder, release_of(city, 1)).reason is Reason.BUDGET_EXHAUSTED


def test_a_claimed_window_with_less_noise_than_demanded_by_now_is_refused(
    city: PreparedCity,
) -> None:
    fail_before_result(city)
    with opened(city, noise=STRICT) as keyholder:
        assert keyholder.ring.decryptions(WINDOW) == 0
    assert city.events() == ["intent", "refused"]


# What is verified of a noisy total.


def refusal_by_verifier(city: PreparedCity, total: Total) -> Reason:
    entries = (city.config.published / "entries" / str(WINDOW)).read_bytes()
    with pytest.raises(GridveilError) as refused:
        verify_total(total, [entries], city.parameters)
    return refused.value.reason


def test_a_verifier_wants_the_noise_of_the_policy_and_every_part_of_the_equation(
    city: PreparedCity,
) -> None:
    with opened(city) as keyholder:
        total = settle(keyholder, city, 0)
    added = total.added
    assert added is not None
    first, *others = total.registers
    more = (replace(first, sum=first.sum + 1), *others)
    foreign = replace(added, commitment=_other_point(city))
    assert refusal_by_verifier(city, replace(total, registers=more)) is Reason.OPENING_FAILED
    assert refusal_by_verifier(city, replace(total, added=foreign)) is Reason.OPENING_FAILED
    for noise in (Noise(GAUSSIAN, 500_000), Noise(LAPLACE, 500_001)):
        relabelled = replace(total, added=replace(added, noise=noise))
        assert refusal_by_verifier(city, relabelled) is Reason.COHORT_INVALID
    assert refusal_by_verifier(city, replace(total, added=None)) is Reason.COHORT_INVALID
    # More noise than the policy asks for is for the key-holder to choose.
    noisier = replace(total, added=replace(added, noise=Noise(LAPLACE, 499_999)))
    assert_verifies(city, noisier)


def _other_point(city: PreparedCity) -> bytes:
    entries = (city.config.published / "entries" / str(WINDOW)).read_bytes()
    return entries[196:228]


@pytest.mark.parametrize("own", [POLICY, None])
def test_noise_that_cannot_be_had_stops_the_start(
    city: PreparedCity, monkeypatch: pytest.MonkeyPatch, own: NoisePolicy | None
) -> None:
    """Also if only the meters were promised any."""
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    config = replace(city.config, policy=replace(city.config.policy, noise=own))
    with pytest.raises(MalformedInput) as refused:
        KeyHolder(config, ManualClock(LATER))
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert "opendp" in refused.value.message
