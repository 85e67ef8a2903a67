"""Who can start a key-holder: the key-encrypting key in a file, or split among officers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from gridveil.files import make_folder, sync_folder, write_durably
from gridveil.protocol.errors import IntegrityLost, MalformedInput, Reason
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest, destroy_file, read_key_file, wipe
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.key_shares import LONGEST_SHARE, Share, Split
from gridveil_services.keyholder.sealed_key import SealedKey
from gridveil_services.keyholder.unsealing import wait_for_key

_log = structlog.get_logger()


def open_at_rest(config: KeyHolderConfig) -> AtRest:
    """The key-encrypting key of its file, or of enough officers' shares, which it waits for.

    Raises:
        GridveilError: as :meth:`AtRest.load`, :meth:`SealedKey.load` and :func:`wait_for_key`.
    """
    plain, sealed = config.key_encrypting_key_file, config.sealed_key_encrypting_key_file
    if sealed is None or not sealed.exists():
        return AtRest.load(plain, config.city_id)
    if plain.exists():
        _log.warning("the key-encrypting key lies in the clear beside the sealed one")
        return AtRest.load(plain, config.city_id)
    loaded = SealedKey.load(sealed, config.city_id)
    return wait_for_key(loaded, config.state, lambda key: _checked(key, config))


def split_kek(
    config: KeyHolderConfig,
    out: Path,
    *,
    count: int,
    threshold: int,
    shares: Sequence[Path] = (),
    replace: bool = False,
    destroy_plain: bool = False,
) -> list[Path]:
    """Seal the key-encrypting key under a key that is split; the paths of the shares' files.

    The key comes from its file or, with ``shares``, from the sealed one. Nothing is replaced or
    destroyed before what was written has been read and opened again.

    Raises:
        MalformedInput: CONFIG_INVALID for numbers or files that do not fit, for files that are in
            the way.
        IntegrityLost: PARTIAL_CORRUPT for a key that does not open this key-holder's state.
    """
    sealed_path = _sealed_path(config)
    split = Split.new(config.city_id, threshold, count)
    if sealed_path.exists() and not replace:
        raise _invalid("there is a sealed key-encrypting key already")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise _invalid(f"{out.name} is there and not empty")
    with _key(config, shares) as key:
        _checked(key, config)
        sealed, made = SealedKey.seal(key, split)
        paths = [out / f"share-{share.index}.json" for share in made]
        try:
            _write_shares(made, paths)
            _check_again(SealedKey.decode(sealed.encode()), paths, key)
            write_durably(sealed_path, sealed.encode())
        except BaseException:
            if not (sealed_path.exists() and sealed_path.read_bytes() == sealed.encode()):
                _take_back(out)
            raise
        _check_again(SealedKey.load(sealed_path, config.city_id), paths, key)
    if destroy_plain:
        destroy_file(config.key_encrypting_key_file)
        sync_folder(config.key_encrypting_key_file.parent)
    return paths


def write_key(config: KeyHolderConfig, shares: Sequence[Share], path: Path) -> None:
    """The key-encrypting key in the clear, for its owner only; CONFIG_INVALID if a file is there.

    Shares are checked ones; raises otherwise what :meth:`SealedKey.open` does.
    """
    if path.exists():
        raise _invalid(f"{path.name} is there already")
    key = SealedKey.load(_sealed_path(config), config.city_id).open(shares)
    try:
        write_durably(path, bytes(key))
    finally:
        wipe(key)


def read_shares(config: KeyHolderConfig, paths: Sequence[Path], stdin: bytes = b"") -> list[Share]:
    """The shares in files, each one checked; ``-`` stands for ``stdin``.

    Raises:
        MalformedInput: CONFIG_INVALID, which names the file that is not a share of this key.
    """
    sealed = SealedKey.load(_sealed_path(config), config.city_id)
    return _read(sealed, paths, stdin)


@contextmanager
def _key(config: KeyHolderConfig, shares: Sequence[Path]) -> Iterator[bytearray]:
    if shares:
        sealed = SealedKey.load(_sealed_path(config), config.city_id)
        key = sealed.open(_read(sealed, shares))
    else:
        key = read_key_file(config.key_encrypting_key_file)
    try:
        yield key
    finally:
        wipe(key)


def _checked(key: bytearray, config: KeyHolderConfig) -> AtRest:
    """A key that opens this key-holder's state; PARTIAL_CORRUPT for any other."""
    at_rest = AtRest(key, config.city_id)
    identity.load(config.state, at_rest)
    return at_rest


def _read(sealed: SealedKey, paths: Sequence[Path], stdin: bytes = b"") -> list[Share]:
    shares = []
    for path in paths:
        given = path == Path("-")
        name = "the share on standard input" if given else path.name
        share = Share.decode(stdin if given else _bytes(path), name)
        sealed.check(share, name)
        shares.append(share)
    return shares


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST_SHARE + 1)
    except OSError:
        raise _invalid(f"{path.name} cannot be read") from None


def _write_shares(shares: Sequence[Share], paths: Sequence[Path]) -> None:
    make_folder(paths[0].parent)
    for share, path in zip(shares, paths, strict=True):
        write_durably(path, share.encode())


def _check_again(sealed: SealedKey, paths: Sequence[Path], key: bytearray) -> None:
    """Each of the written shares takes part in an opening that gives the key."""
    shares = _read(sealed, paths)
    needed = sealed.split.threshold
    for first in range(len(shares)):
        opened = sealed.open((shares + shares)[first : first + needed])
        same = opened == key
        wipe(opened)
        if not same:
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the sealed key does not open as written")


def _take_back(out: Path) -> None:
    """Nothing but shares was ever in there, whole or cut short."""
    with suppress(OSError):
        for path in sorted(out.iterdir()):
            destroy_file(path)
        out.rmdir()


def _sealed_path(config: KeyHolderConfig) -> Path:
    if config.sealed_key_encrypting_key_file is None:
        raise _invalid("the configuration names no sealed_key_encrypting_key_file")
    return config.sealed_key_encrypting_key_file


def _invalid(message: str) -> MalformedInput:
    return MalformedInput(Reason.CONFIG_INVALID, message)
