"""Key-holders and verifiers whose noise is broken on purpose."""

from __future__ import annotations

from tests.adversary.city import DECRYPTED
from tests.adversary.mutant import KEYHOLDER, PROTOCOL, Attacks, Edit, Mutant, mutant

_NOISE = "test_noise.py"
_EXACT = "the attacker got the exact total"
_AVERAGED = "the attacker got other noise on the same sum"
_AFFORDS = "as_many_totals or no_budget_back or has_spent_its_loss"

NOISE_MUTANTS: dict[str, Mutant] = {
    "noise is drawn anew after a crash": mutant(
        f"{KEYHOLDER}/noise_pin.py",
        "        if path.exists():\n",
        "        if False:\n",
        _NOISE,
        "no_second_noise",
        _AVERAGED,
    ),
    "noise is not pinned before it is used": mutant(
        f"{KEYHOLDER}/noise_pin.py",
        "        write_durably(path, sealed)\n",
        "        del sealed\n",
        _NOISE,
        "no_second_noise",
        _AVERAGED,
    ),
    "pinned noise is not sealed": Mutant(
        (
            Edit(
                f"{KEYHOLDER}/noise_pin.py",
                "self._at_rest(epoch_id).seal(_PURPOSE, epoch_id, _encode(release, drawn))",
                "_encode(release, drawn)",
            ),
            Edit(
                f"{KEYHOLDER}/noise_pin.py",
                "self._at_rest(epoch_id).open(_PURPOSE, epoch_id, release.noise_file.read_bytes())",
                "release.noise_file.read_bytes()",
            ),
        ),
        Attacks(_NOISE, "nowhere_in_the_clear"),
        _EXACT,
    ),
    "no noise is added": mutant(
        f"{KEYHOLDER}/settlement.py",
        "totals = map(sum, zip(opening.totals, noise.values, strict=True))",
        "totals = opening.totals",
        _NOISE,
        "asking_again",
        _EXACT,
    ),
    "the noise has no blinding of its own": mutant(
        f"{KEYHOLDER}/noise.py",
        "secrets.randbelow(GROUP_ORDER)",
        "0 * secrets.randbelow(GROUP_ORDER)",
        _NOISE,
        "do_not_give_the_exact_sums",
        _EXACT,
    ),
    "the noise is not committed to": Mutant(
        (
            Edit(
                f"{KEYHOLDER}/settlement.py",
                "blinding = (opening.blinding + noise.blinding) % GROUP_ORDER",
                "blinding = opening.blinding",
            ),
            Edit(
                f"{KEYHOLDER}/noise.py",
                "generators.commit(self.values, self.blinding)",
                "generators.commit(self.values, 0)",
            ),
        ),
        Attacks(_NOISE, "do_not_give_the_exact_sums"),
        _EXACT,
    ),
    "noise is half as large as it must be": Mutant(
        (
            Edit(
                f"{KEYHOLDER}/noise.py",
                "scale = noise.scale(bound, registers)",
                "scale = noise.scale(bound, registers) / 2",
            ),
            Edit(
                f"{KEYHOLDER}/noise.py",
                "if Fraction(measurement.map(bound)) <= share:",
                "if Fraction(measurement.map(bound)) or share:",
            ),
        ),
        Attacks(_NOISE, "as_large_as_the_policy"),
        "the noise is smaller than was said",
    ),
    "a claim spends nothing": mutant(
        f"{KEYHOLDER}/ledger.py",
        "        self._spent[day_of(window)] = self.spent_on_day_of(window).plus(noise)\n",
        "",
        _NOISE,
        _AFFORDS,
    ),
    "what was spent is not found in the log again": mutant(
        f"{KEYHOLDER}/ledger.py",
        "        self._apply(record)\n\n    def _check",
        "        self._apply(record)\n        self._spent.clear()\n\n    def _check",
        _NOISE,
        "no_budget_back",
    ),
    "the loss is not in the intent": mutant(
        f"{KEYHOLDER}/ledger.py",
        "            loss_ppm=noise.loss_ppm,\n",
        "            loss_ppm=noise.loss_ppm and 1,\n",
        _NOISE,
        _AFFORDS,
    ),
    "any budget affords a window": mutant(
        f"{PROTOCOL}/noise.py",
        "return not then.gaussian_ppm and then.laplace_ppm <= policy.day_ppm",
        "return not then.gaussian_ppm",
        _NOISE,
        _AFFORDS,
    ),
    "a window beyond the budget is opened all the same": Mutant(
        (
            Edit(
                f"{KEYHOLDER}/release.py",
                "if self._noise(header, keys).is_over_budget:",
                "if False:",
            ),
            Edit(
                f"{KEYHOLDER}/settlement.py",
                "if claimed.is_over_budget or not enough:",
                "if False:",
            ),
        ),
        Attacks(_NOISE, _AFFORDS),
        DECRYPTED,
    ),
    "a verifier takes any noise": mutant(
        "client/gridveil/verification.py",
        "satisfies(total.noise, policy.noise.window if policy.noise else None)",
        "bool(satisfies)",
        _NOISE,
        "no_verifier_takes_less",
        "a verifier believed a lie",
    ),
}
