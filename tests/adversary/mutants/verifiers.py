"""Verifiers and households that are broken on purpose."""

from __future__ import annotations

from tests.adversary.mutant import KEYHOLDER, Mutant, mutant

_VERIFICATION, _VERIFIER = "test_verification.py", "client/gridveil/verification.py"
_LIE = "a verifier believed a lie"

VERIFIERS_MUTANTS: dict[str, Mutant] = {
    "a verifier takes entries in any order": mutant(
        _VERIFIER, "if place <= self._last:", "if False:", _VERIFICATION, "another_order", _LIE
    ),
    "a verifier checks no meter's signature": mutant(
        _VERIFIER,
        "        self._check_signature(entry)\n",
        "",
        _VERIFICATION,
        "never_signed",
        _LIE,
    ),
    "a verifier takes any commitment for the one reported": mutant(
        _VERIFIER,
        "if shown != entry.claim.commitment_hash:",
        "if False:",
        _VERIFICATION,
        "changed_places",
        _LIE,
    ),
    "a verifier counts lanes that were left out": mutant(
        _VERIFIER, "if lane in total.left_out:", "if False:", _VERIFICATION, "left_out", _LIE
    ),
    "a verifier does not open the commitments": mutant(
        _VERIFIER,
        'if generators.commit(sums, int.from_bytes(total.blinding, "little")) != committed:',
        "if False:",
        _VERIFICATION,
        "off_by_one",
        _LIE,
    ),
    "a household needs no proof that it was counted": mutant(
        _VERIFIER,
        "    verify_inclusion("
        "leaf_hash(opened_entry), index, total.count, proof, total.entries_root)\n",
        "",
        _VERIFICATION,
        "without_it",
        _LIE,
    ),
    "a household takes any report for its own": mutant(
        _VERIFIER,
        "    verify(member.signing_key, entry.claim.transcript(), entry.signature)\n"
        "    verify_inclusion(",
        "    verify_inclusion(",
        _VERIFICATION,
        "another_meters_report",
        _LIE,
    ),
    "own entries are published in the clear": mutant(
        f"{KEYHOLDER}/seals.py",
        "own.seal(opened_entry, leaf)",
        "opened_entry + bytes(16)",
        _VERIFICATION,
        "names_no_meter",
        "what is published names a meter",
    ),
}
