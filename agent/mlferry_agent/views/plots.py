"""Curves in a terminal: a line of blocks, or a plot."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plot", "sparkline"]

_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-=*#"

Points = Sequence[tuple[float, float]]


def sparkline(points: Points, width: int, *, ascii_only: bool = False) -> str:
    """A curve in one line of at most ``width`` characters: means of equal stretches of x. Empty if there are no points."""
    levels = _ASCII if ascii_only else _BLOCKS
    values = _means(points, width)
    if not values:
        return ""
    low, high = min(values) / 2, max(values) / 2  # halves, since the difference of two doubles may be none
    span = high - low
    return "".join(levels[round((value / 2 - low) / span * (len(levels) - 1)) if span else 0] for value in values)


def _means(points: Points, width: int) -> list[float]:
    """The mean of each stretch; one that is empty goes on as the one before."""
    if len(points) <= width:
        return [value for _, value in points]
    first, last = points[0][0], points[-1][0]
    sums: list[list[float]] = [[] for _ in range(width)]
    for x, value in points:
        place = int((x - first) / (last - first) * (width - 1)) if last > first else 0
        sums[place].append(value)
    means: list[float] = []
    for stretch in sums:
        means.append(sum(value / len(stretch) for value in stretch) if stretch else means[-1])
    return means


def plot(points: Points, title: str, xlabel: str, width: int, height: int, *, ascii_only: bool = False) -> str:
    """A plot of ``width`` by ``height`` characters, without colours."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot([x for x, _ in points], [y for _, y in points], marker="*" if ascii_only else "braille")
    plotext.title(title)
    plotext.xlabel(xlabel)
    plotext.plot_size(width, height)
    drawn: str = plotext.uncolorize(plotext.build())
    return _in_ascii(drawn) if ascii_only else drawn


def _in_ascii(drawn: str) -> str:
    """The frame in characters that every terminal has."""
    return drawn.translate(str.maketrans("─│┌┐└┘┬┴├┤┼", "-|+++++++++"[:11]))
