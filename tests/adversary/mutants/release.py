"""Key-holders whose checks of a release are broken on purpose."""

from __future__ import annotations

from tests.adversary.city import DECRYPTED
from tests.adversary.mutant import KEYHOLDER, PROTOCOL, Attacks, Edit, Mutant, mutant

_SUMS, _COMMITMENTS = "test_sums.py", "test_commitments.py"
_COHORTS, _SETTLEMENT, _PINNING = "test_cohorts.py", "test_settlement.py", "test_pinning.py"
_LANES, _PRECHECKS = "test_lanes.py", "test_prechecks.py"

RELEASE_MUTANTS: dict[str, Mutant] = {
    "the opening equation is not checked": mutant(
        f"{KEYHOLDER}/opening.py",
        "holds = generators.commit(totals, blinding) == point",
        "holds = True",
        _SUMS,
        "[dropped] or [doubled] or [composition]",
    ),
    "totals beyond meters times bound are released": mutant(
        f"{KEYHOLDER}/opening.py",
        "within = all(0 <= total <= bound for",
        "within = True or all(0 <= total <= bound for",
        _COMMITMENTS,
        "beyond_the_bound",
    ),
    "commitments are not sealed": Mutant(
        (
            Edit(
                f"{PROTOCOL}/sealing.py",
                "sealed: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(\n"
                "        commitment, associated, commitment_hash[:NONCE_BYTES], key\n    )",
                "sealed = commitment + bytes(16)",
            ),
            Edit(
                f"{PROTOCOL}/sealing.py",
                "commitment: bytes = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(\n"
                "            sealed, associated, commitment_hash[:NONCE_BYTES], key\n        )",
                "commitment = sealed[:32]",
            ),
        ),
        Attacks(_COMMITMENTS, "related_to_all or copies_of_the_victims"),
    ),
    "a seal that does not open is taken as it is": mutant(
        f"{PROTOCOL}/sealing.py",
        "        raise _does_not_open() from None\n    return commitment",
        "        return sealed[:32]\n    return commitment",
        _COMMITMENTS,
        "unsealed",
    ),
    "h is not compared with the commitment": mutant(
        f"{KEYHOLDER}/seals.py",
        "return commitment if shown == claim.commitment_hash else None",
        "return commitment",
        _COMMITMENTS,
        "another_h or h_of_another_meter",
    ),
    "a commitment may be the neutral point": mutant(
        f"{PROTOCOL}/commitment.py",
        "        or data == IDENTITY\n",
        "",
        _COMMITMENTS,
        "identity",
    ),
    "every window has the same generators": mutant(
        f"{PROTOCOL}/commitment.py",
        "scope = city_id + epoch_id + u64(window_start)",
        "scope = city_id + epoch_id",
        _COMMITMENTS,
        "multiple_of_a_report and [20]",
    ),
    "slots are not checked": mutant(
        f"{PROTOCOL}/decoding.py",
        "if not bool((near & plain & possible).all()):",
        "if False:",
        _SUMS,
        "guess_hidden and [173291] or between_two and [40]",
    ),
    "the blinding's slots are not checked": mutant(
        f"{PROTOCOL}/decoding.py",
        "(near & plain & possible).all()",
        "(near & plain & possible)[:8].all()",
        _SUMS,
        "guess_hidden and [173291] or between_two and [40]",
    ),
    "imaginary parts are not checked": mutant(
        f"{PROTOCOL}/decoding.py",
        "(near & plain & possible).all()",
        "(near & possible).all()",
        _SUMS,
        "guess_hidden and [173292]",
    ),
    "any fraction of a slot is rounded": mutant(
        f"{PROTOCOL}/decoding.py",
        "(near & plain & possible).all()",
        "(plain & possible).all()",
        _SUMS,
        "between_two and [63]",
    ),
    "a slot may be more than meters could fill": mutant(
        f"{PROTOCOL}/decoding.py",
        "(near & plain & possible).all()",
        "(near & plain).all()",
        _COMMITMENTS,
        "a_byte_of_65536",
    ),
    "an entry may stand twice": mutant(
        f"{KEYHOLDER}/cohort.py",
        "all(before < after for",
        "all(before <= after for",
        _COHORTS,
        "doubled_entry",
    ),
    "signatures are not checked": mutant(
        f"{KEYHOLDER}/entries.py",
        "verify(member.signing_key, entry.claim.transcript(), entry.signature)",
        "pass",
        _COHORTS,
        "no_signature or other_signature",
    ),
    "meters count before and after their enrolment": mutant(
        f"{KEYHOLDER}/entries.py",
        "self._members.place_in(self.scope.roster_version, data[:ID_BYTES])",
        "self._members.place(data[:ID_BYTES])",
        _COHORTS,
        "withdrawn_meter or not_enrolled_yet",
    ),
    "lanes need not hold their entries": mutant(
        f"{KEYHOLDER}/cohort.py",
        " or stated != dict(self.lanes)",
        "",
        _COHORTS,
        "wrong_lane",
    ),
    "the count is taken as claimed": Mutant(
        (
            Edit(f"{KEYHOLDER}/cohort.py", "self.count != self._header.count or ", ""),
            Edit(
                f"{KEYHOLDER}/opening.py",
                "return self.is_cohort(sum(lane.count for lane in opened))",
                "return True",
            ),
        ),
        Attacks(_COHORTS, "more_counted"),
    ),
    "a release may be another than its digest says": mutant(
        f"{KEYHOLDER}/intake.py",
        "if not digest == self.spool.digest == message.release_digest:",
        "if False:",
        _COHORTS,
        "other_digest",
    ),
    "any cohort is large enough": mutant(
        f"{KEYHOLDER}/policy.py",
        "count >= cohort and ",
        "",
        _COHORTS,
        "too_small and day-209",
    ),
    "any coverage is enough": mutant(
        f"{KEYHOLDER}/policy.py",
        " and count * PPM >= coverage_ppm * enrolled",
        "",
        _COHORTS,
        "too_small and evening-225",
    ),
    "windows are released while they run": mutant(
        f"{KEYHOLDER}/policy.py",
        "if not everybody and now < closes:",
        "if False:",
        _COHORTS,
        "meters_may_still_report",
    ),
    "the claim of a window binds nobody": Mutant(
        (
            Edit(f"{KEYHOLDER}/policy.py", "if state.status is Status.OPEN:", "if True:"),
            Edit(
                f"{KEYHOLDER}/policy.py",
                "if facts.state != UNCLAIMED:\n        raise _settled()\n    if facts.now",
                "if facts.now",
            ),
            Edit(
                f"{KEYHOLDER}/ledger.py",
                "if self.state(window_start) != expected:",
                "if False:",
            ),
        ),
        Attacks(_SETTLEMENT, "second_cohort or second_attempt"),
    ),
    "a refusal says what was wrong": mutant(
        f"{KEYHOLDER}/settlement.py",
        "                self.refuse(window_start, release.digest, failures)\n",
        "                self.refuse(window_start, release.digest, failures)\n"
        "                raise OpeningFailed(outcome)\n",
        _LANES,
        "smaller_than_it_may_be and [4]",
        "assert answer.code is grpc.StatusCode.FAILED_PRECONDITION",
    ),
    "a lane that does not open is counted": mutant(
        f"{KEYHOLDER}/opening.py",
        " if whole and holds and within else None",
        "",
        _LANES,
        "smaller_than_it_may_be and [1]",
    ),
    "a lane with a broken seal is decrypted": mutant(
        f"{KEYHOLDER}/opening.py",
        "sound = [lane for lane in sealed if not lane.proven]",
        "sound = sealed",
        _COMMITMENTS,
        "unsealed or copied_seal",
        DECRYPTED,
    ),
    "entries of lanes left out are published": mutant(
        f"{KEYHOLDER}/settlement.py",
        "opening.commitments,\n                opening.left_out,",
        "opening.commitments + bytes(16_384),\n                (),",
        _LANES,
        "smaller_than_it_may_be and [1]",
    ),
    "lanes left out are not missed in the cohort": mutant(
        f"{KEYHOLDER}/opening.py",
        "_join(opened, release) if allowance.permits(lanes, release.lanes) else None",
        "_join(opened, release) if lanes else None",
        _LANES,
        "smaller_than_it_may_be and [3]",
    ),
    "a lane that failed is tried again": mutant(
        f"{KEYHOLDER}/opening.py",
        "found = _open_lane(lane, point, generators, keys, window_start)",
        "found = _open_lane(lane, point, generators, keys, window_start) or (\n"
        "            _open_lane(lane, point, generators, keys, window_start)\n        )",
        _LANES,
        "decrypted_once",
        DECRYPTED,
    ),
    "decrypting goes on after the budget is spent": mutant(
        f"{KEYHOLDER}/opening.py",
        "if len(failed) >= most_failures:",
        "if False:",
        _LANES,
        "stay_closed",
        DECRYPTED,
    ),
    "the budget is a window's and not an epoch's": Mutant(
        (
            Edit(
                f"{KEYHOLDER}/ledger.py",
                "return 0 if self.destroyed else max(0, budget - self.failures)",
                "return budget",
            ),
            Edit(
                f"{KEYHOLDER}/epoch_life.py",
                "return not epoch.destroyed and epoch.failures >= failure_budget",
                "return False",
            ),
        ),
        Attacks(_LANES, "and_then_nothing or stay_closed"),
        DECRYPTED,
    ),
    "failures are forgotten with a restart": mutant(
        f"{KEYHOLDER}/ledger.py",
        "        self._apply(record)\n\n    def _check",
        "        for outcome in ('released', 'refused'):\n"
        "            if record.HasField(outcome):\n"
        "                getattr(record, outcome).failures = 0\n"
        "        self._apply(record)\n\n    def _check",
        _LANES,
        "restart_gives_no_new",
        DECRYPTED,
    ),
    "what was prechecked of a meter goes for any entry of it": mutant(
        f"{KEYHOLDER}/precheck.py",
        "return Found(commitment, lane, own_row) if digest == sha256(data) else None",
        "return Found(commitment, lane, own_row) if digest != _NOTHING else None",
        _PRECHECKS,
        "[other_signature] or [no_signature]",
    ),
    "signatures of prechecked entries are not checked": mutant(
        f"{KEYHOLDER}/precheck.py",
        "entry, lane = self._check.signed(data, member), self._check.lane(member.meter_id)",
        "from gridveil.protocol.release import Entry\n"
        "        entry = Entry.decode(data, *self.scope[:2])\n"
        "        lane = self._check.lane(member.meter_id)",
        _PRECHECKS,
        "[other_signature] or [no_signature]",
    ),
    "a lane's sum goes for other meters than it is of": mutant(
        f"{KEYHOLDER}/precheck.py",
        "return held.point if held and held.meters == count else None",
        "return held.point if held else None",
        _PRECHECKS,
        "not_released_are_not_counted",
        "assert answer.code is grpc.StatusCode.OK",
    ),
    "a prechecked seal that does not open is taken as it is": mutant(
        f"{KEYHOLDER}/precheck.py",
        "return Found(NOT_OPENED, lane)",
        "commitment = entry.claim.sealed_commitment[:32]",
        _PRECHECKS,
        "sealed_as_it_must_be and unsealed",
    ),
    "every role may release": mutant(
        f"{KEYHOLDER}/service.py",
        '"Release": {Role.AGGREGATOR},',
        '"Release": set(Role),',
        _SUMS,
        "only_the_aggregator",
    ),
    "parameters need no signature of the pinned key": mutant(
        f"{PROTOCOL}/city.py",
        "if not is_signed_by(identity_key, _signed_bytes(sha256(data)), signature):",
        "if False:",
        _PINNING,
        "attacker",
        "DID NOT RAISE",
    ),
}
