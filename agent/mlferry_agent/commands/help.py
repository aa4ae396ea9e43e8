"""How help looks: examples in lines of their own below it, and no type beside options that take no value."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from typer.core import TyperCommand, TyperGroup

__all__ = ["Group", "Verb"]


class Verb(TyperCommand):
    """A verb with its examples: whole command lines."""

    examples: tuple[str, ...] = ()

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if not self.examples:
            return
        console = Console()
        console.print(" Examples", style="bold")
        for example in self.examples:
            console.print(f"   $ {example}", highlight=False, markup=False, soft_wrap=True)  # to be copied whole
        console.print()


class Group(TyperGroup):
    """The command itself. Help lists its verbs in the order in which a newcomer needs them."""

    ORDER = (
        *("run", "status", "ls", "show", "watch", "ui", "id", "dump", "sync", "agent", "verify", "prepare"),
        *("clean", "retry", "drop", "export", "import", "doctor", "config", "demo"),
    )

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: self.ORDER.index(name) if name in self.ORDER else len(self.ORDER))

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))


def _without_types(params: Any) -> Any:
    """`--json <bool>` says nothing that `--json` does not."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params
