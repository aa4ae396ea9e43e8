"""Options of encryption and signatures, which several verbs share, and the keys that they name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlferry_agent.carrying.parts import Seal
    from mlferry_agent.carrying.reading import Trust

__all__ = ["Identity", "Recipient", "Sign", "SignedBy", "seal_of", "trust_of"]

Recipient = Annotated[
    list[str] | None,
    typer.Option(
        "--recipient",
        metavar="KEY|FILE",
        help="Encrypt for: age1..., ssh-ed25519 ..., or a file of those. Repeatable.",
        show_default=False,
    ),
]
Identity = Annotated[
    list[Path] | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="What opens what is encrypted: of age-keygen or ssh-keygen. Repeatable.",
        exists=True,
        show_default=False,
    ),
]
Sign = Annotated[
    Path | None,
    typer.Option(
        "--sign", metavar="FILE", help="Sign with this secret key of minisign's.", exists=True, show_default=False
    ),
]
SignedBy = Annotated[
    list[str] | None,
    typer.Option(
        "--signed-by",
        metavar="KEY|FILE",
        help="Refuse what none of these public keys of minisign's signed. Repeatable.",
        show_default=False,
    ),
]


def seal_of(recipients: Sequence[str] | None, sign: Path | None) -> Seal:
    """Raises BadKey, NeedsExtra, OSError."""
    from mlferry_agent.carrying.parts import Seal
    from mlferry_agent.carrying.sealing import recipients_of
    from mlferry_agent.carrying.signing import signer

    return Seal(recipients_of(recipients or ()), signer(sign, _password) if sign is not None else None)


def trust_of(identities: Sequence[Path] | None, signed_by: Sequence[str] | None) -> Trust:
    """Raises BadKey, NeedsExtra, OSError."""
    from mlferry_agent.carrying.reading import Trust
    from mlferry_agent.carrying.sealing import identities_of
    from mlferry_agent.carrying.signing import public_keys

    return Trust(identities_of(identities or ()), public_keys(signed_by or ()))


def _password(question: str) -> str:
    from mlferry_agent.errors import BadKey

    if not sys.stdin.isatty():
        raise BadKey("the key has a password, and nobody is there to be asked; make one without: minisign -G -W")
    found: str = typer.prompt(question, hide_input=True, err=True)
    return found
