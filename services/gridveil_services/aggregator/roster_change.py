"""Rosters member by member: what a change leads to, checked against the signed head."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.roster import Member, roster_digest
from gridveil_services.aggregator.upstream import RosterChange

_by_meter = attrgetter("meter_id")


def checked_change(
    change: RosterChange,
    members: Callable[[], Iterable[Member]],
    fetch_whole: Callable[[], RosterChange],
) -> RosterChange:
    """A change that leads from the members held to the signed version.

    If the given one does not, the whole version is fetched and compared.

    Args:
        change: as the key-holder gave it.
        members: the members held, ascending by meter id.
        fetch_whole: all members of the version in force, as a change from nobody.

    Raises:
        MalformedInput: DIGEST_MISMATCH if the whole version does not match its head either.
    """
    if _leads_to_head(change, members()):
        return change
    whole = fetch_whole()
    if whole.head != change.head or not _leads_to_head(whole, ()):
        raise MalformedInput(Reason.DIGEST_MISMATCH, "the roster is not what its head says")
    target = {member.meter_id: member for member in whole.added}
    held = {member.meter_id: member for member in members()}
    removed = [meter for meter, member in held.items() if target.get(meter) != member]
    added = [member for meter, member in target.items() if held.get(meter) != member]
    return RosterChange(whole.head, whole.signature, removed, added)


def members_after(
    members: Iterable[Member], removed: Sequence[bytes], added: Sequence[Member]
) -> Iterator[Member]:
    """The members ascending by meter id: without the removed, then with the added."""
    gone = set(removed)
    staying = (member for member in members if member.meter_id not in gone)
    return heapq.merge(staying, sorted(added, key=_by_meter), key=_by_meter)


def _leads_to_head(change: RosterChange, members: Iterable[Member]) -> bool:
    """Whether the change's result has the digest of its head, which counts every member too."""
    count = 0

    def counted() -> Iterator[Member]:
        nonlocal count
        for member in members_after(members, change.removed, change.added):
            count += 1
            yield member

    return roster_digest(counted()) == change.head.digest and count == change.head.count
