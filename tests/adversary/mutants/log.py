"""Key-holders, readers and witnesses whose log is broken on purpose."""

from __future__ import annotations

from tests.adversary.city import DECRYPTED, PROBED
from tests.adversary.mutant import KEYHOLDER, PROTOCOL, Attacks, Edit, Mutant, mutant

_LOG, _PROBING = "test_log.py", "test_probing.py"
_BELIEVED = "somebody believed what the log does not say"
_STARTED = "a key-holder started from an old copy"
_COSIGNED = "a witness cosigned two logs"

LOG_MUTANTS: dict[str, Mutant] = {
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
            Edit(
                f"{KEYHOLDER}/policy.py",
                "if facts.locked:\n        raise locked()\n    # ",
                "if False:\n        raise locked()\n    # ",
            ),
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
}
