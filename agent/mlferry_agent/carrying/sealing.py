"""Encryption by age (https://age-encryption.org), as its own library does it: for recipients, opened by identities.

The library takes a file to read and one to write, and is done when it is done. So it works in a thread of its own, at the
other end of a pipe: bundles stream through it, however large they are.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mlferry_agent.errors import BadBundle, BadKey, Locked, NeedsExtra

__all__ = ["AGE", "Encrypting", "age_overhead", "decrypting", "identities_of", "recipients_of"]

#: How a file of age's begins.
AGE = b"age-encryption.org/v1\n"

_ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
_CHUNK, _TAG = 64 << 10, 16

#: Bytes of a header at most: what age writes for one recipient (RSA and post-quantum keys have the most), and the nonsense
#: of any length that it adds so that nobody relies on there being none. The same for every export to so many recipients.
_RECIPIENT, _REST = 2048, 1024


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: bytes, /) -> Any: ...


def _library() -> Any:
    """Raises NeedsExtra."""
    try:
        import pyrage
    except ImportError:
        raise NeedsExtra("age, for encryption, is not installed: pip install 'mlferry[age]'") from None
    return pyrage


# -- keys -----------------------------------------------------------------------------------------------------------------


def recipients_of(texts: Sequence[str]) -> tuple[Any, ...]:
    """``age1...``, ``ssh-ed25519 ...``, ``ssh-rsa ...``, or files with such lines. Raises BadKey, NeedsExtra, OSError."""
    return tuple(found for text in texts for found in _recipients(text))


def _recipients(text: str) -> list[Any]:
    if text.startswith(("age1", "ssh-")):
        return [_recipient(text)]
    lines = [line.strip() for line in _text_of(Path(text)).splitlines()]
    found = [_recipient(line) for line in lines if line and not line.startswith("#")]
    if not found:
        raise BadKey(f"{text} names no recipient")
    return found


def _recipient(text: str) -> Any:
    age = _library()
    try:
        return (age.ssh if text.startswith("ssh-") else age.x25519).Recipient.from_str(text)
    except age.RecipientError as error:
        hint = ": that is an identity, which must stay secret" if text.startswith("AGE-SECRET-KEY-") else ""
        raise BadKey(f"{text[:20]}... is no recipient ({error}){hint}") from None


def identities_of(paths: Sequence[Path]) -> tuple[Any, ...]:
    """Identities of age's, and private keys of OpenSSH's. Raises BadKey, NeedsExtra, OSError."""
    return tuple(found for path in paths for found in _identities(path))


def _identities(path: Path) -> list[Any]:
    age, text = _library(), _text_of(path)
    try:
        if text.lstrip().startswith("-----BEGIN"):
            return [age.ssh.Identity.from_buffer(text.encode())]
        lines = [line.strip() for line in text.splitlines()]
        found = [age.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except age.IdentityError:
        raise BadKey(f"{path} is no identity, or a password protects it; mlferry takes those without one") from None
    if not found:
        raise BadKey(f"{path} holds no identity")
    return found


def _text_of(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((AGE, _ARMOR)):
        raise BadKey(f"{path} is encrypted itself; mlferry takes keys without a password")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadKey(f"{path} holds no keys") from None


# -- streams --------------------------------------------------------------------------------------------------------------


def age_overhead(recipients: Sequence[Any], limit: int) -> int:
    """How many bytes less a file of ``limit`` bytes holds once it is encrypted, at most."""
    return _REST + _RECIPIENT * len(recipients) + _TAG * (limit // _CHUNK + 1)


class _Guard:
    """A file as the library sees it; what it raises is kept, since the library makes a text of it."""

    def __init__(self, verb: Callable[[Any], Any], name: str) -> None:
        self.error: BaseException | None = None
        self._verb = verb
        setattr(self, name, self._guarded)

    def _guarded(self, argument: Any) -> Any:
        try:
            return self._verb(argument)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """The library asks for it."""


class Encrypting:
    """What is written arrives in ``sink`` encrypted, all of it when this is closed. Raises what ``sink`` raises."""

    def __init__(self, sink: Sink, recipients: Sequence[Any]) -> None:
        self._age, self._recipients = _library(), list(recipients)
        self._sink = _Guard(sink.write, "write")
        reading, writing = os.pipe()
        self._reading, self._writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="age", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._age.encrypt_io(self._reading, self._sink, self._recipients)
        except BaseException as error:
            self._error = self._sink.error or error
        finally:
            self._reading.close()

    def write(self, data: bytes, /) -> int:
        view = memoryview(data)
        try:
            while view:
                view = view[self._writing.write(view) :]
        except BrokenPipeError:
            self.close()
            raise
        return len(data)

    def close(self) -> None:
        self.abandon()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End without a word about how it went."""
        self._writing.close()
        self._thread.join()


def decrypting(source: BinaryIO, identities: Sequence[Any], where: str) -> BinaryIO:
    """A file of age's, to be read as what is in it. Its last byte is given out only once all of it was found to be whole.

    Raises, when it is read:
        Locked: none of the identities opens it. BadBundle: it is damaged. What ``source`` raises.
    """
    return _Decrypting(source, identities, where)  # type: ignore[return-value]


class _Decrypting(RawIOBase):
    def __init__(self, source: BinaryIO, identities: Sequence[Any], where: str) -> None:
        self._age, self._identities, self._where = _library(), list(identities), where
        self._source = _Guard(source.read, "read")
        reading, writing = os.pipe()
        self._reading, self._writing = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb")
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="age", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._age.decrypt_io(self._source, self._writing, self._identities)
            self._writing.close()
        except BaseException as error:
            self._error = self._source.error or error
        finally:
            with contextlib.suppress(OSError):  # nobody reads any more
                self._writing.close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._reading.readinto(buffer) or 0
        if not count:
            self._thread.join()
            if self._error is not None:
                raise self._told(self._error)
        return count

    def _told(self, error: BaseException) -> BaseException:
        if error is self._source.error:
            return error
        if "No matching keys" in str(error):
            return Locked(f"{self._where}: it is encrypted for others; none of the identities opens it")
        return BadBundle(f"{self._where}: it is damaged, or was cut ({error})")

    def close(self) -> None:
        if not self.closed:
            self._reading.close()
            self._thread.join()
        super().close()
