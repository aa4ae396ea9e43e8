"""Signatures by minisign (https://jedisct1.github.io/minisign): ``NAME.minisig`` beside each file, as its own tool has them.

A bundle is hashed while it streams, so what is signed is its BLAKE2b digest: minisign calls that a prehashed signature, and
makes no other kind today.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlferry_agent.errors import BadBundle, BadKey, NeedsExtra

__all__ = ["MOST_SIGNATURE_BYTES", "SIGNATURE", "Signer", "check_signature", "digesting", "public_keys", "signer"]

#: How the name of a signature ends.
SIGNATURE = ".minisig"

#: A signature has four lines, of which minisign lets a comment be as long as this.
#: Beyond: `BadBundle`; it is no signature, and nothing is imported.
#: Test: tests/unit/carrying/test_signing.py::test_a_signature_longer_than_any_is_none
MOST_SIGNATURE_BYTES = 16 << 10

_PREHASHED, _OF_DIGEST = b"ED", b"Ed"

#: Makes a signature's bytes of a digest and the name of the file.
Signer = Callable[[bytes, str], bytes]


def _library() -> Any:
    """Raises NeedsExtra."""
    try:
        import minisign
    except ImportError:
        raise NeedsExtra("minisign, for signatures, is not installed: pip install 'mlferry[minisign]'") from None
    return minisign


def digesting() -> Any:
    """A hash as signatures are made of."""
    return hashlib.blake2b()


def signer(path: Path, ask: Callable[[str], str]) -> Signer:
    """A secret key. ``ask``: for its password, if it has one. Raises BadKey, NeedsExtra, OSError."""
    minisign = _library()
    try:
        key = minisign.SecretKey.from_bytes(path.read_bytes())
        if key.is_encrypted():
            key.decrypt(ask(f"Password of {path}"))
    except minisign.Error as error:
        raise BadKey(f"{path}: {error}") from None

    def sign(digest: bytes, name: str) -> bytes:
        comment = f"timestamp:{int(time.time())}\tfile:{_plain(name)}\thashed"
        made = bytes(key.sign(digest, prehash=False, trusted_comment=comment))
        return _relabelled(made, _OF_DIGEST, _PREHASHED)

    return sign


def _plain(name: str) -> str:
    return "".join(char if " " <= char < "\x7f" else "?" for char in name)


def public_keys(texts: Sequence[str]) -> tuple[Any, ...]:
    """Public keys: files, or what stands in their second line. Raises BadKey, NeedsExtra, OSError."""
    return tuple(map(_public_key, texts))


def _public_key(text: str) -> Any:
    minisign = _library()
    try:
        if text.startswith("RW") and not Path(text).exists():
            return minisign.PublicKey.from_base64(text)
        return minisign.PublicKey.from_bytes(Path(text).read_bytes())
    except minisign.Error as error:
        raise BadKey(f"{text}: {error}") from None


def check_signature(keys: Sequence[Any], digest: bytes, signature: bytes, where: str) -> None:
    """Raises BadBundle: none of the keys made this signature of this digest."""
    minisign = _library()
    if len(signature) > MOST_SIGNATURE_BYTES:
        raise BadBundle(f"{where}{SIGNATURE} is no signature: it is too long")
    try:
        found = minisign.Signature.from_bytes(_relabelled(signature, _PREHASHED, _OF_DIGEST))
    except ValueError as error:
        raise BadBundle(f"{where}{SIGNATURE} is no signature: {error}") from None
    for key in keys:
        try:
            key.verify(digest, found)
        except minisign.VerifyError:
            continue
        return
    raise BadBundle(f"{where} is not as any of the keys of --signed-by signed it, or was signed by another")


def _relabelled(signature: bytes, old: bytes, new: bytes) -> bytes:
    """A prehashed signature of a file is a plain one of the file's digest under another label. Raises ValueError."""
    lines = signature.splitlines()
    if len(lines) != 4:
        raise ValueError("it has not four lines")
    body = base64.b64decode(lines[1], validate=True)
    if not body.startswith(old):
        raise ValueError("it is of a kind that minisign no longer makes")
    lines[1] = base64.b64encode(new + body[len(old) :])
    return b"\n".join(lines) + b"\n"
