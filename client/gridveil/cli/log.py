"""``gridveil log``: the release log as operators, auditors and monitors check it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from gridveil.cli.arguments import (
    JsonOption,
    ProfileOption,
    WindowArgument,
    load_profile,
    parse_window,
)
from gridveil.cli.extensions import ExtensibleGroup
from gridveil.cli.output import EXIT_CODES, one_line, print_json, print_line, utc, window_json
from gridveil.log_audit import CHECKPOINT, Lock, LogAudit, payloads_in
from gridveil.log_view import LogView
from gridveil.operator import NotReleased, Operator
from gridveil.profile import Profile
from gridveil.protocol.checkpoint import Checkpoint, cosignatures, log_key
from gridveil.protocol.errors import (
    Exhausted,
    MalformedInput,
    NotFound,
    Reason,
    Unavailable,
    WrongState,
)
from gridveil.protocol.log_proof import encode_log_proof
from gridveil.protocol.log_records import claimed_noise
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.noise import Noise
from gridveil.protocol.release import Total
from gridveil.protocol.v1.log_pb2 import DestructionCause, LogRecord

app = typer.Typer(
    cls=ExtensibleGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check the release log: every record lawful, signed, and never taken back.",
    epilog=EXIT_CODES,
)


@app.command()
def verify(
    profile: ProfileOption,
    folder: Annotated[
        Path | None,
        typer.Argument(help="A published log's folder; without it, the totals service is asked."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read the whole log and check every record, the signed checkpoint, and what was seen before.

    Ends with 1 if anything does not fit.

    Example: gridveil log verify --profile springfield/auditor
    """
    loaded = load_profile(profile)
    audit = LogAudit(loaded.city_id, loaded.identity_key)
    if folder is None:
        with Operator.open(loaded) as operator:
            checkpoint = _followed(operator)
            for payload in operator.records(checkpoint.head):
                audit.add(payload)
    else:
        checkpoint = _verify_folder(loaded, folder, audit)
    audit.check(checkpoint.head)
    _report(loaded, audit, checkpoint, json)


@app.command()
def monitor(
    profile: ProfileOption,
    first: Annotated[
        int | None, typer.Option("--from", min=0, help="Print from this record on; else new ones.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many records.")] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 10.0,
    give_up_after: Annotated[
        float | None, typer.Option(help="End with 3 after so many seconds without the service.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Follow the log: check each new checkpoint against the last, and print each new record.

    Ends with 1 as soon as the log was forked, put back or changed; both checkpoints are then kept
    beside the profile.

    Example: gridveil log monitor --from 0 --profile springfield/auditor
    """
    loaded = load_profile(profile)
    with Operator.open(loaded) as operator:
        audit = LogAudit(loaded.city_id, loaded.identity_key)
        batches = _follow(operator, audit, interval, give_up_after)
        if first is None:
            first = len(next(batches))
        found = (pair for batch in batches for pair in batch)
        for index, record in islice((pair for pair in found if pair[0] >= first), count):
            locks = index in audit.locks
            if json:
                print_json(record_json(index, record, locks=locks))
            else:
                print_line(record_line(index, record, locks=locks))


@app.command()
def prove(
    window: WindowArgument,
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="Folder for the two files.")] = Path(),
) -> None:
    """Write a released window's record and its proof, for verifiers of other logs.

    WINDOW.record is the record as it stands in the log, WINDOW.tlog-proof a C2SP tlog-proof of it.
    Ends with 1 if the window was not released.

    Example: gridveil log prove 2026-05-04T12:15Z --profile springfield/operator
    """
    with Operator.open(load_profile(profile)) as operator:
        outcome = operator.get(parse_window(window))
        if isinstance(outcome, NotReleased):
            raise WrongState(Reason.NOT_RELEASED, "the window was not released")
        proof = operator.inclusion_proof(outcome)
    name = str(outcome.window_start)
    for suffix, content in (("record", proof.record), ("tlog-proof", encode_log_proof(proof))):
        file = out / f"{name}.{suffix}"
        file.write_bytes(content)
        print_line(str(file))


@app.command()
def key(profile: ProfileOption) -> None:
    """Print the log's key as witnesses and verifiers of notes write it down.

    Example: gridveil log key --profile springfield/operator
    """
    loaded = load_profile(profile)
    print_line(log_key(loaded.city_id, loaded.identity_key).encode())


def _follow(
    operator: Operator, audit: LogAudit, interval_s: float, patience_s: float | None
) -> Iterator[list[tuple[int, LogRecord]]]:
    """The records of the log as it is now, then each time those that were added; endless."""
    failing_since: float | None = None
    while True:
        try:
            yield _next_records(operator, audit)
            failing_since = None
        except (Unavailable, Exhausted) as error:
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            if patience_s is not None and now - failing_since >= patience_s:
                raise
            typer.echo(f"{one_line(error)}; trying again", err=True)
        time.sleep(interval_s)


def _next_records(operator: Operator, audit: LogAudit) -> list[tuple[int, LogRecord]]:
    checkpoint = operator.follow()
    if checkpoint is None:
        return []
    found = []
    for payload in operator.records(checkpoint.head, audit.size):
        found.append((audit.size, audit.add(payload)))
    audit.check(checkpoint.head)
    return found


def _followed(operator: Operator) -> Checkpoint:
    checkpoint = operator.follow()
    if checkpoint is None:
        raise NotFound(Reason.NOT_FOUND, "there is no release log yet")
    return checkpoint


def _verify_folder(profile: Profile, folder: Path, audit: LogAudit) -> Checkpoint:
    view = LogView(profile)
    try:
        note = (folder / CHECKPOINT).read_bytes()
    except OSError:
        raise MalformedInput(Reason.CONFIG_INVALID, "the folder has no release log") from None
    checkpoint, tree = view.open(note), Tree()
    view.check_size(checkpoint.head.size)
    for payload in islice(payloads_in(folder), checkpoint.head.size):
        audit.add(payload)
        tree.append(leaf_hash(payload))
    audit.check(checkpoint.head)
    sizes = view.missing(checkpoint)
    view.accept(checkpoint, tree.consistency_proof(*sizes) if sizes else ())
    return checkpoint


def _report(profile: Profile, audit: LogAudit, checkpoint: Checkpoint, json: bool) -> None:
    head = checkpoint.head
    witnesses = cosignatures(checkpoint.note, profile.log.witnesses.witnesses)
    if json:
        print_json(
            {
                "origin": head.origin,
                "size": head.size,
                "root": head.root.hex(),
                "records": dict(sorted(audit.kinds.items())),
                "locks": [_lock_json(lock) for lock in audit.locks.values()],
                "witnesses": witnesses,
                "checkpoint": checkpoint.note.decode(),
            }
        )
        return
    print_line(f"{head.origin}: {head.size:,} records, root {head.root.hex()}")
    for line in _checked(audit, witnesses):
        print_line(f"  ok  {line}")
    for lock in audit.locks.values():
        print_line(f"  !!  {_lock_line(lock)}")


def _checked(audit: LogAudit, witnesses: list[str]) -> list[str]:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(audit.kinds.items()))
    lines = [
        f"every record may follow those before it ({kinds or 'none'})",
        "every total is signed by the pinned key-holder for its city and window",
        "the records are those under the checkpoint, which the key-holder signed",
        "the log goes on from the one that was seen before",
    ]
    return [*lines, f"cosigned by {', '.join(witnesses)}"] if witnesses else lines


def _lock_json(lock: Lock) -> dict[str, Any]:
    return {
        "record": lock.record,
        "recorded_at": utc(lock.recorded_at_ms // 1000),
        "unlocked_by": lock.unlocked_by,
    }


def _lock_line(lock: Lock) -> str:
    end = "not unlocked" if lock.unlocked_by is None else f"unlocked by record {lock.unlocked_by}"
    at = utc(lock.recorded_at_ms // 1000)
    return f"refusals locked the key-holder: record {lock.record}, {at}; {end}"


def record_json(index: int, record: LogRecord, *, locks: bool = False) -> dict[str, Any]:
    """A record as programs read it; ``locks`` if it is the refusal that locked the key-holder."""
    kind = record.WhichOneof("event") or ""
    shown: dict[str, Any] = {
        "index": index,
        "recorded_at": utc(record.recorded_at_ms // 1000),
        "kind": kind,
    }
    event = getattr(record, kind)
    if hasattr(event, "window_start"):
        shown |= window_json(event.window_start)
    return shown | _details(kind, record) | ({"locks_keyholder": True} if locks else {})


def record_line(index: int, record: LogRecord, *, locks: bool = False) -> str:
    """A record as people read it."""
    shown = record_json(index, record, locks=locks)
    details = (
        key.replace("_", " ") if value is True else f"{key} {value}"
        for key, value in shown.items()
        if key not in {"index", "recorded_at", "kind", "window_start"}
    )
    return f"{index:>6}  {shown['recorded_at']}  {shown['kind']:<18}  {', '.join(details)}"


def _details(kind: str, record: LogRecord) -> dict[str, Any]:
    match kind:
        case "intent":
            shown = {"release_digest": record.intent.release_digest.hex()}
            return shown | _noise(claimed_noise(record.intent).noise)
        case "released":
            total = Total.decode(record.released.total.total)
            sums = {register.name: register.sum for register in total.registers}
            counts = {"meters": total.count, "enrolled": total.enrolled}
            return counts | sums | {"failures": record.released.failures} | _noise(total.noise)
        case "refused":
            over_budget = {"over_budget": True} if record.refused.over_budget else {}
            return {"failures": record.refused.failures} | over_budget
        case "epoch_created":
            created = record.epoch_created
            return {"epoch_id": created.epoch_id.hex(), "windows_from": utc(created.first_window)}
        case "epoch_destroyed":
            gone = record.epoch_destroyed
            cause = DestructionCause.Name(gone.cause).removeprefix("DESTRUCTION_CAUSE_")
            return {"epoch_id": gone.epoch_id.hex(), "cause": cause}
        case "roster_changed":
            roster = record.roster_changed
            return {
                "version": roster.version,
                "meters": roster.count,
                "enrolled": roster.enrolled,
                "withdrawn": roster.withdrawn,
            }
        case "policy_stated":
            return {"refusals_per_day": record.policy_stated.refusals_per_day}
        case "keyholder_unlocked":
            return {"locked_at_index": record.keyholder_unlocked.locked_at_index}
    return {}


def _noise(noise: Noise | None) -> dict[str, Any]:
    if noise is None:
        return {}
    return {"noise": noise.mechanism.name.lower(), noise.loss_name: noise.loss}
