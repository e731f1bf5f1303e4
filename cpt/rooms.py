"""What a room offers, for `--list`: the methods that are files of it, each with its first line."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from cpt.registry import available


def show_rooms(rooms: Mapping[str, str], console: Console | None = None) -> None:
    """Print the methods of some rooms.

    Args:
      rooms: the config field that names a method, with the dotted package it is looked up in.
    """
    console = console or Console(width=None)
    for field, package in rooms.items():
        folder = package.replace(".", "/")
        console.print(f"[bold]{field}[/]  (one file each in {folder}/, or your own as package.module:name)")
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        for name, line in available(package).items():
            table.add_row(name, line)
        console.print(table)
