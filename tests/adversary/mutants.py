"""Copies of Gridveil with one protection taken out, and the attacks that must then succeed."""

from __future__ import annotations

from tests.adversary.city import DECRYPTED, MISSED, PROBED
from tests.adversary.mutant import Attacks, Edit, Mutant, mutant

PROTOCOL = "client/gridveil/protocol"
KEYHOLDER = "services/gridveil_services/keyholder"


_SUMS, _COMMITMENTS = "test_sums.py", "test_commitments.py"
_COHORTS, _SETTLEMENT, _PINNING = "test_cohorts.py", "test_settlement.py", "test_pinning.py"
_LANES, _PRECHECKS = "test_lanes.py", "test_prechecks.py"
_PROBING = "test_probing.py"
_LOG = "test_log.py"
_VERIFICATION, _VERIFIER = "test_verification.py", "client/gridveil/verification.py"
_LIE = "a verifier believed a lie"
_BELIEVED = "somebody believed what the log does not say"
_STARTED = "a key-holder started from an old copy"
_COSIGNED = "a witness cosigned two logs"

MUTANTS: dict[str, Mutant] = {
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
            Edit(f"{KEYHOLDER}/policy.py", "if facts.state != UNCLAIMED:", "if False:"),
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
        "            self.refuse(window_start, release.digest, failures)\n",
        "            self.refuse(window_start, release.digest, failures)\n"
        "            raise OpeningFailed(outcome)\n",
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
        MISSED,
    ),
    "a prechecked seal that does not open is taken as it is": mutant(
        f"{KEYHOLDER}/precheck.py",
        "return Found(NOT_OPENED, lane)",
        "commitment = entry.claim.sealed_commitment[:32]",
        _PRECHECKS,
        "sealed_as_it_must_be and unsealed",
    ),
    "refusals are not counted": mutant(
        f"{PROTOCOL}/refusal_lock.py",
        'return record.HasField("refused") and not record.refused.over_budget',
        "return False",
        _PROBING,
        "then_nothing or restarts_between",
        PROBED,
    ),
    "a lock is forgotten with a restart": mutant(
        f"{KEYHOLDER}/ledger.py",
        "        self._apply(record)\n\n    def _check",
        "        self._apply(record)\n"
        "        self._refusals = RefusalLock(self._refusals.budget)\n\n    def _check",
        _PROBING,
        "restarts_between",
        PROBED,
    ),
    "a locked key-holder still claims": Mutant(
        (
            Edit(f"{PROTOCOL}/refusal_lock.py", "return self.locked_at is None", "return True"),
            Edit(f"{KEYHOLDER}/policy.py", "if facts.locked:", "if False:"),
        ),
        Attacks(_PROBING, "then_nothing or hide_none"),
        PROBED,
    ),
    "another budget unlocks": mutant(
        f"{PROTOCOL}/refusal_lock.py",
        "return replace(self, budget=record.policy_stated.refusals_per_day)",
        "return RefusalLock(record.policy_stated.refusals_per_day)",
        _PROBING,
        "larger_budget",
        PROBED,
    ),
    "every role may release": mutant(
        f"{KEYHOLDER}/service.py",
        '"Release": {Role.AGGREGATOR},',
        '"Release": set(Role),',
        _SUMS,
        "only_the_aggregator",
    ),
    "inclusion proofs are not checked": mutant(
        "client/gridveil/settlements.py",
        "        verify_inclusion(leaf, proof.index, head.size, proof.hashes, head.root)\n",
        "        del leaf, head\n",
        _LOG,
        "not_in_the_log",
        _BELIEVED,
    ),
    "an outcome need not be what its record says": mutant(
        "client/gridveil/settlements.py",
        "if recorded != shown:",
        "if False:",
        _LOG,
        "than_the_record_says",
        _BELIEVED,
    ),
    "checkpoints need not go on from each other": mutant(
        "client/gridveil/log_view.py",
        "verify_consistency(old.size, old.root, new.size, new.root, proof)",
        "pass",
        _LOG,
        "forked_log",
        _BELIEVED,
    ),
    "cosignatures are not counted": mutant(
        f"{PROTOCOL}/checkpoint.py",
        "if not policy.is_met(note):",
        "if False:",
        _LOG,
        "did_not_sign",
        _BELIEVED,
    ),
    "the log is not held against its checkpoint at start": mutant(
        "services/gridveil_services/releaselog/writer.py",
        "            self._check_checkpoint()\n",
        "            self._publish_newest()\n",
        _LOG,
        "backup",
        _STARTED,
    ),
    "the log head is signed before the records are read back": mutant(
        "services/gridveil_services/releaselog/writer.py",
        "        os.fsync(self._descriptor)\n",
        "        os.fsync(self._descriptor)\n"
        "        early = Tree([self._tree.leaf(at) for at in range(self._tree.size)])\n"
        "        early.append(leaf_hash(data[36:]))\n"
        "        signed = self._signer.sign(early.size, early.root(early.size))\n"
        "        self._publish(signed, early.size)\n",
        _LOG,
        "disk_lost",
        "a checkpoint was signed over records that are not there",
    ),
    "witnesses are not asked at start": mutant(
        f"{KEYHOLDER}/keyholder.py",
        "            self.witnesses.check_start()\n",
        "",
        _LOG,
        "old_disk",
        _STARTED,
    ),
    "claims are not witnessed before they are opened": mutant(
        f"{KEYHOLDER}/ledger.py",
        "            self._confirm(CONFIRM_S)\n",
        "            pass\n",
        _LOG,
        "two_claims",
        DECRYPTED,
    ),
    "records are published before they are witnessed": mutant(
        "services/gridveil_services/releaselog/writer.py",
        "if not self._witnessed and self._published < self._tree.size:",
        "if self._published < self._tree.size:",
        _LOG,
        "no_witness_has_seen",
        "something was shown that no witness has seen",
    ),
    "a witness checks no consistency": mutant(
        "services/gridveil_services/witness/witness.py",
        "verify_consistency(seen.size, seen.root, head.size, head.root, request.proof)",
        "pass",
        _LOG,
        "two_logs",
        _COSIGNED,
    ),
    "a witness forgets with a restart": mutant(
        "services/gridveil_services/witness/witness.py",
        "            write_durably(self._path(head.origin), request.note.encode())\n",
        "",
        _LOG,
        "two_logs",
        _COSIGNED,
    ),
    "parameters need no signature of the pinned key": mutant(
        f"{PROTOCOL}/city.py",
        "if not is_signed_by(identity_key, _signed_bytes(sha256(data)), signature):",
        "if False:",
        _PINNING,
        "attacker",
        "DID NOT RAISE",
    ),
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
        f"{KEYHOLDER}/publication.py",
        "own.seal(entry, leaf)",
        "entry + bytes(16)",
        _VERIFICATION,
        "names_no_meter",
        "what is published names a meter",
    ),
}
