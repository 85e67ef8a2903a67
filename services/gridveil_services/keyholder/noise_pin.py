"""Noise that was drawn once for a claimed window, and stays the same through every crash.

It is durable before anything is decrypted, so that no retry adds other noise to the same sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gridveil.files import write_durably
from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil.protocol.layout import DIGEST_BYTES, Reader, i64, text, u8, u32, u64
from gridveil.protocol.noise import Noise, read_mechanism
from gridveil.protocol.slots import GROUP_ORDER
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.noise import DrawnNoise, draw
from gridveil_services.keyholder.spool import SpooledRelease

_DOMAIN = "gridveil/v1/pinned-noise"
_PURPOSE = "pinned noise"


class NoisePins:
    """The noise of claimed windows, each beside its release, sealed under its epoch's own key.

    A copy of it opens nothing once the epoch was destroyed.
    """

    def __init__(self, at_rest: Callable[[bytes], AtRest]) -> None:
        """``at_rest``: what is sealed for an epoch, by the epoch's id."""
        self._at_rest = at_rest

    def take(
        self, release: SpooledRelease, noise: Noise, epoch_id: bytes, bounds: Sequence[int]
    ) -> DrawnNoise:
        """The noise of a claimed release: drawn and made durable, or what was before a crash.

        Raises:
            IntegrityLost: PARTIAL_CORRUPT if what lies there is not this release's.
            InternalFault: no sound noise could be drawn.
            OSError: the machine failed.
        """
        path = release.noise_file
        if path.exists():
            return self._read(release, noise, epoch_id, len(bounds))
        drawn = draw(noise, bounds)
        sealed = self._at_rest(epoch_id).seal(_PURPOSE, epoch_id, _encode(release, drawn))
        write_durably(path, sealed)
        return drawn

    def _read(
        self, release: SpooledRelease, noise: Noise, epoch_id: bytes, registers: int
    ) -> DrawnNoise:
        opened = self._at_rest(epoch_id).open(_PURPOSE, epoch_id, release.noise_file.read_bytes())
        try:
            drawn = _decode(opened, release, registers)
        except GridveilError:
            raise _damaged() from None
        if drawn.noise != noise:
            raise _damaged()
        return drawn


def _encode(release: SpooledRelease, drawn: DrawnNoise) -> bytes:
    return b"".join(
        (
            text(_DOMAIN),
            u64(release.header.window_start),
            release.digest,
            u8(drawn.noise.mechanism),
            u32(drawn.noise.loss_ppm),
            *map(i64, drawn.values),
            drawn.blinding.to_bytes(32, "little"),
        )
    )


def _decode(data: bytes, release: SpooledRelease, registers: int) -> DrawnNoise:
    reader = Reader(data, "pinned noise")
    reader.domain(_DOMAIN)
    place = reader.uint(8), reader.take(DIGEST_BYTES)
    drawn = DrawnNoise(
        Noise(read_mechanism(reader), reader.uint(4)),
        tuple(reader.int64() for _ in range(registers)),
        reader.uint(32),
    )
    reader.end()
    if place != (release.header.window_start, release.digest) or drawn.blinding >= GROUP_ORDER:
        raise MalformedInput(Reason.MALFORMED_MESSAGE, "pinned noise is of another release")
    return drawn


def _damaged() -> IntegrityLost:
    return IntegrityLost(Reason.PARTIAL_CORRUPT, "the pinned noise is not what was written")
