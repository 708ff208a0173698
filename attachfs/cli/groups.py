"""Groups of commands that tell an unknown word as such, with the nearest one that there is."""

import difflib
from collections.abc import Iterable

import click


def no_such_command(name: str, names: Iterable[str]) -> str:
    """Return the complaint about a word that is no command."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"No such command {name!r}." + (f" Did you mean {close[0]!r}?" if close else "")


class Group(click.Group):
    """A group of commands whose complaint names the nearest one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, as click does, or fail with the nearest one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(no_such_command(name, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)
