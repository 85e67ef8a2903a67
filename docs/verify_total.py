"""Verifies an exported total: python verify_total.py EXPORT IDENTITY_KEY [--without-roster].

EXPORT comes from `gridveil totals verify WINDOW --export EXPORT`; IDENTITY_KEY is the pinned key
of the city's key-holder, in hexadecimal. Needs PyNaCl and rbcl; all layouts are in protocol.md.
That cohort and bounds are those of the city's policy is left to `gridveil totals verify`.
"""

import struct
import sys
from base64 import b64encode
from hashlib import sha256, sha512
from io import BytesIO

import rbcl
from nacl.signing import VerifyKey

ORDER = 2**252 + 27742317777372353535851937790883648493
ZERO, OPENED = bytes(32), struct.Struct("<16s4s32s48s32s64s32s")
add, is_point = rbcl.crypto_core_ristretto255_add, rbcl.crypto_core_ristretto255_is_valid_point
text = lambda value: bytes([len(value)]) + value.encode()
sha = lambda *parts: sha256(b"".join(parts)).digest()


def require(holds, what):
    if not holds:
        sys.exit(f"NOT VERIFIED: {what}")


def term(scalar, label):
    point = rbcl.crypto_core_ristretto255_from_hash(sha512(label).digest())
    scalar = scalar.to_bytes(32, "little")
    return ZERO if scalar == ZERO else rbcl.crypto_scalarmult_ristretto255(scalar, point)


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):  # of protobuf: an integer or bytes
    if isinstance(value, int):
        return varint(8 * number) + varint(value) if value else b""
    return varint(8 * number + 2) + varint(len(value)) + value


def root_above(leaf, index, size, path):  # RFC 9162, section 2.1.3.2
    last = size - 1
    while last > 0:
        if index & 1 or index < last:
            require(path, "an inclusion proof is too short")
            leaf = sha(b"\1", *((path.pop(0), leaf) if index & 1 else (leaf, path.pop(0))))
        index, last = index >> 1, last >> 1
    require(index == last == 0 and not path, "an inclusion proof of another leaf")
    return leaf


def verify(data, identity, with_roster=True):
    read, uint = BytesIO(data).read, lambda size: int.from_bytes(read(size), "little")
    require(read(19) == text("gridveil/v1/export"), "not an export")
    blobs = [read(uint(4)) for _ in range(7)]
    signed, signature, head, head_signature, roster, entries, path = blobs
    recorded_at, failures, index, size, log_signature = uint(8), uint(4), uint(8), uint(8), read()
    # The key-holder signed the total, and the roster that it names.
    identity.verify(signed, signature)
    read = BytesIO(signed).read
    require(read(18) == text("gridveil/v1/total"), "not a total")
    city, epoch, parameters, window, _, version = (read(n) for n in (16, 16, 32, 8, 4, 8))
    enrolled, count, lanes, left_out = read(8), uint(8), uint(4), [uint(4) for _ in range(uint(4))]
    _, root = read(32), read(32)
    sums = [(read(uint(1)).decode(), read(uint(1)), uint(8)) for _ in range(uint(1))]
    sums = [(name, value - (value >> 63 << 64)) for name, _, value in sums]  # signed
    blinding, noisy = uint(32), uint(1)
    loss, noise = (uint(4), read(32)) if noisy else (0, ZERO)  # millionths; N
    require(noisy < 3 and bool(noisy) == (loss > 0) == (noise != ZERO), "noise that is none")
    require(with_roster == bool(head + head_signature + roster), "with or without a roster")
    if with_roster:
        identity.verify(head, head_signature)
        named = text("gridveil/v1/roster-version") + city + version + head[51:59] + enrolled
        require(head == named + sha(text("gridveil/v1/roster-entries"), roster), "another roster")
    keys = {roster[at : at + 16]: roster[at + 16 : at + 48] for at in range(0, len(roster), 80)}
    # Its entries are of distinct meters in their lanes, signed, with the commitments reported.
    scope, leaves, added, before = city + epoch + window, [], ZERO, (-1, b"")
    require(len(entries) == OPENED.size * count, "not as many entries as were counted")
    for meter, flags, h, sealed, ciphertext, signed_by, point in OPENED.iter_unpack(entries):
        lane = sha(text("gridveil/v1/lane"), epoch, window, meter)[:8]
        place = int.from_bytes(lane, "little") % lanes, meter
        require(place > before and place[0] not in left_out, "an entry out of its place")
        require(sha(text("gridveil/v1/commitment"), scope, meter, point) == h, "a commitment")
        require(point != ZERO and is_point(point), "a commitment that is none")
        if with_roster:
            require(meter in keys, "a meter that is not enrolled")
            said = parameters + window + meter + flags + h + sha(sealed) + ciphertext
            VerifyKey(keys[meter]).verify(text("gridveil/v1/report") + said, signed_by)
        leaves.append(sha(b"\0", meter, flags, h, sealed, ciphertext, signed_by, point))
        added, before = add(added, point), place
    while len(leaves) > 1:
        pairs = [sha(b"\1", *leaves[at : at + 2]) for at in range(0, len(leaves) - 1, 2)]
        leaves = pairs + leaves[2 * len(pairs) :]
    require(leaves == [root], "not the entries that the total names")
    # The total opens the sum of their commitments, and of the one to the noise if there is any.
    opened = term(blinding, text("gridveil/v1/blinding-generator") + scope)
    for group in (sums[at : at + 4] for at in range(0, len(sums), 4)):
        packed = sum(value << 60 * digit for digit, (_, value) in enumerate(group)) % ORDER
        names = b"".join(text(name) for name, _ in group)
        opened = add(opened, term(packed, text("gridveil/v1/generator") + scope + names))
    least = 1 - 2**52 if noisy else 0
    in_range = all(least <= value < 2**52 for _, value in sums) and is_point(noise)
    require(in_range and opened == add(added, noise), "the opening equation")
    # The release log says so, under a checkpoint that the key-holder signed.
    start = int.from_bytes(window, "little")
    signed_total = field(1, signed) + field(2, signature)
    released = field(1, start) + field(2, signed_total) + field(3, failures)
    record = field(1, recorded_at) + field(3, released)
    proof = [path[at : at + 32] for at in range(0, len(path), 32)]
    log_root = b64encode(root_above(sha(b"\0", record), index, size, proof)).decode()
    identity.verify(f"gridveil/{city.hex()}\n{size}\n{log_root}\n".encode(), log_signature)
    return start, sums, count, size, ("exact", "with Laplace noise", "with Gaussian noise")[noisy]


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        found = verify(file.read(), VerifyKey(bytes.fromhex(sys.argv[2])), len(sys.argv) < 4)
    print("VERIFIED: window {}, {}, {} meters, in a log of {} records, {}".format(*found))
