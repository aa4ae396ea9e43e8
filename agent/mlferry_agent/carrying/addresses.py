"""Which place a word of the command line means: a path of this machine, or a URL."""

from __future__ import annotations

from pathlib import Path

from mlferry_agent.carrying.local import LocalPlace
from mlferry_agent.carrying.places import Place

__all__ = ["is_url", "place_of"]


def is_url(text: str) -> bool:
    return "://" in text


def place_of(text: str | Path) -> Place:
    """A path of this machine, or a URL. Raises NeedsExtra: what reaches the URL is not installed."""
    if isinstance(text, Path) or not is_url(text):
        return LocalPlace(Path(text))
    if text.startswith("file://"):
        return LocalPlace(Path(text.removeprefix("file://")))
    from mlferry_agent.carrying.remote import RemotePlace

    return RemotePlace(text)
