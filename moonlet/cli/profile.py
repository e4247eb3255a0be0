"""What `moonlet train --profile` prints."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from moonlet.train.profile_page import Profile, header, tables


def print_profile(profile: Profile, console: Console) -> None:
    """The header and both tables, as RUN/profile/profile.md has them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=9)
    grid.add_column()
    for line in header(profile):
        grid.add_row(*line)
    console.print(grid, highlight=False)
    for found in tables(profile):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for i, name in enumerate(found.columns):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in found.rows[:-1]:
            table.add_row(*row)
        table.add_section()
        table.add_row(*found.rows[-1], style="bold")
        console.print()
        console.print(table, highlight=False)
        console.print(found.note, style="dim", highlight=False)
    console.print(
        f"\nprofile    {profile.folder / 'profile.md'} and trace.json (open it in https://ui.perfetto.dev)",
        highlight=False,
        soft_wrap=True,
    )
