"""What an attacker gets out of noisy totals: one noise a window, and as many windows as are paid.

The attacker holds every opened entry, hence the sum of all commitments, and everything published.
It asks again, crashes the key-holder, restarts it, and looks for the exact total in the algebra.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gridveil.protocol.commitment import Generators, add_points
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.layout import i64
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil.protocol.release import ENTRY_BYTES, OPENED_ENTRY_BYTES, Total
from gridveil.protocol.report import Report
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.verification import check_policy, verify_total
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.epoch_store import EpochStore
from gridveil_services.keyholder.noise import DrawnNoise, draw
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.spool import SpoolFolder
from tests.adversary.city import DECRYPTED, RELEASED, VICTIM_WH, AttackedCity
from tests.adversary.forging import scaled, sums_of, with_sums
from tests.support.reports import BuiltRelease, build_report

AFFORDED = 4
NOISE = Noise(Mechanism.LAPLACE, 500_000)
POLICY = NoisePolicy(NOISE, AFFORDED * NOISE.loss_ppm)

EXACT = "the attacker got the exact total"
AVERAGED = "the attacker got other noise on the same sum"
TOO_SMALL = "the noise is smaller than was said"
LIE = "a verifier believed a lie"


@pytest.fixture(scope="module")
def noisy_city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedCity]:
    city = AttackedCity(tmp_path_factory.mktemp("noisy"), POLICY)
    yield city
    city.close()


@pytest.fixture
def noisy(noisy_city: AttackedCity) -> Iterator[AttackedCity]:
    """A running city with noise, in which nobody has tried anything yet."""
    noisy_city.renew()
    yield noisy_city
    noisy_city.assert_log_is_lawful()


def truth(city: AttackedCity, window: int) -> tuple[int, ...]:
    """The exact sums, which only the test knows."""
    readings = city.readings(window, len(city.day.meters))
    return tuple(map(sum, zip(*readings, strict=True)))


def sums(total: Total) -> tuple[int, ...]:
    return tuple(register.sum for register in total.registers)


def pinned(city: AttackedCity, release: BuiltRelease) -> DrawnNoise:
    """The noise that lies beside a claimed release on the key-holder's disk."""
    spools = SpoolFolder(city.config.state / "spool")
    found = spools.find_whole(release.header.window_start, release.digest)
    assert found is not None
    assert found.noise_file.exists(), AVERAGED
    at_rest = AtRest.load(city.config.key_encrypting_key_file, city.config.city_id)
    epochs = EpochStore(
        city.config.state / "epochs", at_rest, city.identity_key, city.config.city_id
    )
    policy, epoch = city.parameters.policy, city.parameters.epoch
    return NoisePins(epochs.at_rest).take(found, NOISE, epoch.epoch_id, policy.bounds)


@contextmanager
def dying_before_the_result(city: AttackedCity, window: int) -> Iterator[None]:
    """What is opened cannot be published: the key-holder stops between claim and outcome."""
    obstacle = city.entries_file(window).with_suffix(".new")
    obstacle.mkdir()
    yield
    obstacle.rmdir()


# Averaging noise away.


def test_asking_again_gives_the_same_noise(noisy: AttackedCity) -> None:
    window = noisy.window()
    release = noisy.built(noisy.reports(window))
    assert noisy.release(release).receipt
    first = noisy.total(window)
    assert sums(first) != truth(noisy, window), EXACT
    for _ in range(3):
        assert noisy.release(release).receipt
        noisy.restart()
        assert noisy.total(window) == first, AVERAGED
    noisy.assert_pinned(noisy.built(noisy.reports(window)[1:]))
    assert noisy.events(window) == ["intent", "released"]


def test_a_crash_between_opening_and_outcome_gives_no_second_noise(noisy: AttackedCity) -> None:
    window = noisy.window()
    release = noisy.built(noisy.reports(window))
    with dying_before_the_result(noisy, window):
        assert noisy.release(release).reason == Reason.KEYHOLDER_UNAVAILABLE
        drawn = pinned(noisy, release)
        for _ in range(2):
            with pytest.raises(GridveilError):
                noisy.restart()
            assert pinned(noisy, release) == drawn, AVERAGED
    noisy.restart()
    added = [s - t for s, t in zip(sums(noisy.total(window)), truth(noisy, window), strict=True)]
    assert added == list(drawn.values), AVERAGED


# Looking for the exact total in what is published.


def guess_fits(
    city: AttackedCity, window: int, guess: Sequence[int], blinding: int, committed: bytes
) -> bool:
    """Whether C - B*H == M*G for a guess at M, which is as good as knowing M."""
    policy, epoch = city.parameters.policy, city.parameters.epoch
    scope = policy.city_id, epoch.epoch_id, window, policy.register_names
    return Generators.derive(*scope).commit(guess, blinding % GROUP_ORDER) == committed


def published(city: AttackedCity, window: int) -> tuple[bytes, Total]:
    """The sum of all commitments in the entries, and the total."""
    data = city.entries_file(window).read_bytes()
    size = OPENED_ENTRY_BYTES
    return (
        add_points(data[at + ENTRY_BYTES : at + size] for at in range(0, len(data), size)),
        city.total(window),
    )


def test_entries_and_total_do_not_give_the_exact_sums_back(noisy: AttackedCity) -> None:
    """The attacker even knows the right answer, and cannot tell that it is right."""
    window = noisy.window()
    assert noisy.release(noisy.built(noisy.reports(window))).receipt
    committed, total = published(noisy, window)
    exact, blinding = truth(noisy, window), int.from_bytes(total.blinding, "little")
    assert total.added is not None
    both = add_points([committed, total.added.commitment])
    assert guess_fits(noisy, window, sums(total), blinding, both)
    assert sums(total) != exact, EXACT
    for target in (committed, both, total.added.commitment):
        assert not guess_fits(noisy, window, exact, blinding, target), EXACT
        assert not guess_fits(noisy, window, exact, -blinding, target), EXACT
    noise_alone = [s - e for s, e in zip(sums(total), exact, strict=True)]
    assert not guess_fits(noisy, window, noise_alone, 0, total.added.commitment), EXACT


def test_noise_on_the_sums_alone_would_give_the_exact_ones_back(city: AttackedCity) -> None:
    """Why it is committed to: with B as it is, C - B*H confirms the right guess at once."""
    window = city.window()
    assert city.release(city.built(city.reports(window))).receipt
    committed, total = published(city, window)
    blinding = int.from_bytes(total.blinding, "little")
    shown = [
        s + v for s, v in zip(sums(total), draw(NOISE, (200_000, 200_000)).values, strict=True)
    ]
    exact = truth(city, window)
    assert not guess_fits(city, window, shown, blinding, committed)
    assert guess_fits(city, window, exact, blinding, committed)


def test_a_refused_window_shows_nothing_of_its_noise(noisy: AttackedCity) -> None:
    window = noisy.window()
    release = spoiled(noisy, noisy.reports(window))
    noisy.assert_refused(release, noisy.reports(window))
    assert not list((noisy.config.state / "spool").iterdir())
    for folder in ("own", "entries", "public"):
        assert not (noisy.config.published / folder / str(window)).exists()


def test_pinned_noise_is_nowhere_in_the_clear(noisy: AttackedCity) -> None:
    window = noisy.window()
    release = noisy.built(noisy.reports(window))
    with dying_before_the_result(noisy, window):
        noisy.release(release)
        drawn = pinned(noisy, release)
    secrets = [*map(i64, drawn.values), drawn.blinding.to_bytes(32, "little")]
    for path in noisy.config.state.parent.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(secret in data for secret in secrets), EXACT


def spoiled(city: AttackedCity, reports: Sequence[Report]) -> BuiltRelease:
    """A release in which so many lanes do not open that the rest is no cohort."""
    honest = city.built(reports)
    found = sums_of(honest)
    return with_sums(honest, {lane: scaled(city.parameters, found[lane], 2) for lane in (0, 1, 2)})


# The budget of a day.


def assert_not_afforded(city: AttackedCity, window: int) -> None:
    """Whoever asks for it, however often: nothing is opened, and the answer is one."""
    release = city.built(city.reports(window))
    answer = city.release(release)
    assert answer.receipt is None, RELEASED
    assert city.decrypted(window) == {}, DECRYPTED
    assert answer.reason == Reason.BUDGET_EXHAUSTED
    assert len(answer.status.details) == 1
    assert city.release(release) == answer
    assert city.decrypted(window) == {}, DECRYPTED
    assert city.events(window) == ["intent", "refused"]


def test_a_day_gives_as_many_totals_as_its_budget_affords(noisy: AttackedCity) -> None:
    windows = [noisy.window() for _ in range(AFFORDED + 2)]
    for window in windows[:AFFORDED]:
        assert noisy.release(noisy.built(noisy.reports(window))).receipt
    for window in windows[AFFORDED:]:
        assert_not_afforded(noisy, window)


def test_a_restart_gives_no_budget_back(noisy: AttackedCity) -> None:
    windows = [noisy.window() for _ in range(AFFORDED + 1)]
    for window in windows[:AFFORDED]:
        assert noisy.release(noisy.built(noisy.reports(window))).receipt
        noisy.restart()
    assert_not_afforded(noisy, windows[AFFORDED])


def test_a_window_that_is_refused_has_spent_its_loss(noisy: AttackedCity) -> None:
    """It was opened, and what passes and fails was told: it is not free."""
    windows = [noisy.window() for _ in range(AFFORDED + 1)]
    refused = spoiled(noisy, noisy.reports(windows[0]))
    noisy.assert_refused(refused, noisy.reports(windows[0]))
    for window in windows[1:AFFORDED]:
        assert noisy.release(noisy.built(noisy.reports(window))).receipt
    assert_not_afforded(noisy, windows[AFFORDED])


# How much noise there is.


def test_noise_is_as_large_as_the_policy_says() -> None:
    """Real draws: off by chance below 1e-10, and for certain with half or twice the scale."""
    draws, bounds = 3_000, (200_000, 1_000)
    for noise, kurtosis in ((NOISE, 6.0), (Noise(Mechanism.GAUSSIAN, 125_000), 3.0)):
        drawn = [draw(noise, bounds).values for _ in range(draws)]
        for values, bound in zip(zip(*drawn, strict=True), bounds, strict=True):
            ratio = sum(v * v for v in values) / draws / noise.deviation(bound, 2) ** 2
            assert abs(ratio - 1) < 13 * math.sqrt((kurtosis - 1) / draws), TOO_SMALL


def test_no_verifier_takes_less_noise_than_meters_were_promised(noisy: AttackedCity) -> None:
    window = noisy.window()
    assert noisy.release(noisy.built(noisy.reports(window))).receipt
    total = noisy.total(window)
    entries = [noisy.entries_file(window).read_bytes()]
    assert verify_total(total, entries, noisy.parameters).noisy
    assert total.added is not None
    less = replace(total.added, noise=Noise(Mechanism.LAPLACE, NOISE.loss_ppm + 1))
    other = replace(total.added, noise=Noise(Mechanism.GAUSSIAN, 1))
    for added in (None, less, other):
        assert not believed(replace(total, added=added), noisy), LIE


def believed(total: Total, city: AttackedCity) -> bool:
    """Whether a verifier takes a signed total for one of its policy."""
    shown = total
    if total.added is None:
        shown = replace(total, registers=tuple(replace(r, sum=1) for r in total.registers))
    try:
        check_policy(shown, city.parameters)
    except MalformedInput:
        return False
    return True


# What noise does not cover.


@pytest.mark.parametrize(("asked", "answer"), [(VICTIM_WH, False), (VICTIM_WH - 1, True)])
def test_a_corrupted_meter_gets_one_exact_answer_about_its_lane(
    noisy: AttackedCity, asked: int, answer: bool
) -> None:
    """One bit, without noise: whether the victim used more than it asks; a yes costs a failure.

    It knows what all others of the lane used, and commits to what is left below the lane's bound.
    """
    window = noisy.window()
    reports = noisy.reports(window)
    lane = noisy.lane(reports[0])
    mates = [at for at, report in enumerate(reports) if noisy.lane(report) == lane]
    liar = mates[-1]
    readings = noisy.readings(window, len(reports))
    known = sum(readings[at][0] for at in mates if at not in {0, liar})
    bound = noisy.parameters.policy.registers[0].bound * len(mates)
    lie = build_report(noisy.parameters, noisy.day.meters[liar], window, [bound - known - asked, 0])
    noisy.release(noisy.built([*reports[:liar], lie, *reports[liar + 1 :]]))
    assert noisy.total(window).left_out == ((lane,) if answer else ())
    assert noisy.failures() == int(answer)
