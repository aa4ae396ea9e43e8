"""Names for runs that got none: an adjective, a noun and a number, as MLflow makes them. Owns the words.

The name follows from the run's id, so the ranks of a launch agree on it without talking to each other.
"""

from __future__ import annotations

import hashlib

__all__ = ["name_of"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words(
    """
    able amber ample apt bold brave breezy bright brisk calm candid careful cheerful civil clean clever cosy crisp
    curious daring deft eager early earnest easy even fair famous fancy fine fleet fond frank free fresh gentle
    glad golden good grand handy happy hardy honest humble jolly jovial keen kind large lively loyal lucky lush
    mellow merry mild modest neat nimble noble open patient placid plain polite proud quick quiet rapid rare ready
    robust round sage serene sharp silent silver simple sleek smart smooth snug sober solid sound spry stable
    steady still sunny sure swift tall tidy trim true upbeat vivid warm wise witty worthy young zesty
    """
)

_NOUNS = _words(
    """
    auk barge bass bear bee bird boat brig canoe carp cat cod colt coot crab crane crow cutter deer dhow dinghy
    dog dove duck eel egret elk ferry finch fish foal fox frog galley gnu goat goose grebe gull hare hawk heron
    hog horse ibis jay junk kayak kelp ketch kit kite lark launch liner loon lugger lynx mink mole moose moth
    mouse mule newt otter owl ox packet perch pike pilot plover pram prawn punt quail ram raven ray robin rook
    sail seal shad shark sheep ship shrew shrimp skate skiff sloop smelt snail snipe squid steamer stork swan teal
    tern toad trawler trout tug tuna vole wasp whale wherry wolf wren yacht yak yawl
    """
)


def name_of(run_id: str) -> str:
    """A name such as ``brisk-heron-417``, always the same for one run id."""
    digest = hashlib.sha256(f"name of {run_id}".encode()).digest()
    first, second, third = (int.from_bytes(digest[at : at + 4], "big") for at in (0, 4, 8))
    return f"{_ADJECTIVES[first % len(_ADJECTIVES)]}-{_NOUNS[second % len(_NOUNS)]}-{third % 1001}"
