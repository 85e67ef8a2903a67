"""A client follows one log that only grows, and remembers it from run to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.log_view import LogView
from gridveil.profile import LogTrust, Profile, Tls
from gridveil.protocol.checkpoint import (
    Checkpoint,
    TreeHead,
    WitnessPolicy,
    log_origin,
)
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.note import NoteKey, SignatureType, cosign

CITY = bytes(range(16))
KEY = SigningKey(b"k" * 32)
WITNESS = SigningKey(b"w" * 32)
WITNESSES = WitnessPolicy(
    1, (NoteKey("witness.example", SignatureType.COSIGNATURE, bytes(WITNESS.verify_key)),)
)


class Log:
    """A log whose records are made from a label."""

    def __init__(self, label: str, *, common: int = 0) -> None:
        self.tree = Tree(
            leaf_hash(f"{'honest' if at < common else label} {at}".encode()) for at in range(30)
        )

    def note(self, size: int) -> bytes:
        return TreeHead(log_origin(CITY), size, self.tree.root(size)).sign(KEY).encode()


LOG, FORK = Log("honest"), Log("forked", common=7)


def profile(folder: Path, policy: WitnessPolicy | None = None) -> Profile:
    trust = LogTrust(folder / "checkpoint", policy or WitnessPolicy())
    tls = Tls(folder / "ca", folder / "cert", folder / "key")
    return Profile(CITY, bytes(KEY.verify_key), True, {}, tls, trust)


def show(view: LogView, size: int, log: Log = LOG) -> Checkpoint:
    """What happens when a service offers a checkpoint, and any proof of its tree."""
    checkpoint = view.open(log.note(size))
    sizes = view.missing(checkpoint)
    view.accept(checkpoint, log.tree.consistency_proof(*sizes) if sizes else ())
    return checkpoint


def refusal(view: LogView, size: int, log: Log) -> Reason:
    with pytest.raises(IntegrityLost) as refused:
        show(view, size, log)
    return refused.value.reason


def size_of(view: LogView) -> int:
    assert view.newest is not None
    return view.newest.size


def test_a_log_may_grow_and_older_checkpoints_may_arrive_late(tmp_path: Path) -> None:
    view = LogView(profile(tmp_path))
    assert view.newest is None
    for size in (0, 5, 9, 7, 9, 0, 20, 3, 30):
        show(view, size)
    assert size_of(view) == 30
    assert size_of(LogView(profile(tmp_path))) == 30


@pytest.mark.parametrize("size", [9, 10, 12, 30])
def test_a_fork_is_noticed_by_this_run_and_by_the_next(tmp_path: Path, size: int) -> None:
    view = LogView(profile(tmp_path))
    show(view, 10)
    assert refusal(view, size, FORK) is Reason.LOG_FORKED
    later = LogView(profile(tmp_path))
    assert refusal(later, size, FORK) is Reason.LOG_FORKED
    assert size_of(later) == 10
    show(later, 11)


def test_a_fork_leaves_both_signed_checkpoints_as_evidence(tmp_path: Path) -> None:
    view = LogView(profile(tmp_path))
    show(view, 10)
    refusal(view, 12, FORK)
    evidence = (tmp_path / "checkpoint.fork").read_bytes()
    assert evidence == LOG.note(10) + b"\n" + FORK.note(12)


def test_what_is_common_to_both_logs_does_not_tell_them_apart(tmp_path: Path) -> None:
    view = LogView(profile(tmp_path))
    show(view, 7)
    show(view, 12, FORK)
    assert refusal(view, 12, LOG) is Reason.LOG_FORKED


def test_a_log_that_was_put_back_is_noticed_by_its_size(tmp_path: Path) -> None:
    show(LogView(profile(tmp_path)), 10)
    with pytest.raises(IntegrityLost) as refused:
        LogView(profile(tmp_path)).check_size(9)
    assert refused.value.reason is Reason.LOG_ROLLED_BACK


def test_no_proof_is_asked_for_twice(tmp_path: Path) -> None:
    view = LogView(profile(tmp_path))
    show(view, 10)
    late = show(view, 5)
    assert view.missing(late) is None


def test_the_file_never_goes_back_whoever_writes_it(tmp_path: Path) -> None:
    one, other = LogView(profile(tmp_path)), LogView(profile(tmp_path))
    show(one, 20)
    show(other, 10)
    assert size_of(LogView(profile(tmp_path))) == 20


@pytest.mark.parametrize("content", [b"", b"gridveil", Log("x").note(3)[:-5]])
def test_a_file_that_is_no_checkpoint_is_not_forgotten_silently(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(MalformedInput) as refused:
        LogView(profile(tmp_path))
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_what_cannot_be_remembered_is_not_believed(tmp_path: Path) -> None:
    view = LogView(profile(tmp_path / "no such folder"))
    with pytest.raises(MalformedInput) as refused:
        show(view, 3)
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_another_citys_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GridveilError) as refused:
        LogView(replace(profile(tmp_path), city_id=bytes(16))).open(LOG.note(3))
    assert refused.value.reason is Reason.KEY_NOT_PINNED


def test_nothing_is_believed_that_the_witnesses_have_not_cosigned(tmp_path: Path) -> None:
    view = LogView(profile(tmp_path, WITNESSES))
    with pytest.raises(GridveilError) as refused:
        view.open(LOG.note(3))
    assert refused.value.reason is Reason.NOT_WITNESSED
    head = TreeHead(log_origin(CITY), 3, LOG.tree.root(3))
    line = cosign(head.encode(), "witness.example", WITNESS, 1_700_000_000)
    note = head.sign(KEY).with_signatures([line]).encode()
    assert view.open(note).head == head
