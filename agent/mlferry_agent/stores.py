"""Which artifact stores the agent may write to with its own credentials, past the tracking server.

The server says where the artifacts of a run lie, but it may only repeat what a record wished: whoever makes an experiment
may name any place for it. So whoever configures the agent says below which places it goes along with that. Pure.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable

from mlferry_agent.requests import DIRECT

__all__ = ["allows", "parse"]


def parse(text: str) -> tuple[str, ...]:
    """Places such as ``s3://bucket`` or ``s3://bucket/below/here``, apart by commas or spaces. Raises ValueError."""
    places = tuple(place.rstrip("/") for place in re.split(r"[,\s]+", text) if place)
    for place in places:
        if not _is_place(place):
            raise ValueError(f"{place} is no place like {', '.join(f'{scheme}://...' for scheme in sorted(DIRECT))}")
    return places


def allows(places: Iterable[str], artifact_uri: str) -> bool:
    """Whether an artifact URI is one of the places, or lies below one."""
    is_below = any(f"{artifact_uri.rstrip('/')}/".startswith(f"{place}/") for place in places)
    return is_below and _is_place(artifact_uri)


def _is_place(uri: str) -> bool:
    parts = urllib.parse.urlsplit(uri)
    named = parts.scheme in DIRECT and parts.netloc and uri.isprintable() and not set("?# ") & set(uri)
    return bool(named) and not {".", ".."} & set(parts.path.split("/"))
