"""Whatever a logging method raises -> an error that is counted and warned of. Owns the translation; raises nothing."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from mlferry.errors import BadArtifact, BadText, MlferryError, NotStored
from mlferry_spool.errors import SpoolError
from mlferry_spool.records import Kind

__all__ = ["explained", "guarded"]

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})


class Refusing(Protocol):
    """What a guarded method belongs to."""

    def refuse(self, kind: Kind, error: MlferryError, count: int = 1) -> None: ...


P = ParamSpec("P")
Owner = TypeVar("Owner", bound=Refusing)


def guarded(kind: Kind) -> Callable[[Callable[Concatenate[Owner, P], None]], Callable[Concatenate[Owner, P], None]]:
    """Hand what a method raises to its owner's ``refuse``, as something of this kind that was not logged."""

    def decorate(method: Callable[Concatenate[Owner, P], None]) -> Callable[Concatenate[Owner, P], None]:
        def guarded_method(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:  # savefig, to_json, a dataset's own code: training must not fail for any of them
                self.refuse(kind, explained(error))

        functools.update_wrapper(guarded_method, method)
        return guarded_method

    return decorate


def explained(error: Exception, otherwise: type[MlferryError] = BadArtifact) -> MlferryError:
    """The error in this package's words: ours as they are, the disk's as ``NotStored``, the rest as ``otherwise``."""
    if isinstance(error, MlferryError):
        return error
    if isinstance(error, SpoolError):
        return BadText(error.detail)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return NotStored(str(error))
    return otherwise(f"{type(error).__name__}: {error!s:.300}")
