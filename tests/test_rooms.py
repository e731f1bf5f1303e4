"""`--list` shows what a room's folder holds; nothing is registered by hand."""

import subprocess
import sys

import pytest
from rich.console import Console

from cpt.data.__main__ import ROOMS
from cpt.registry import available
from cpt.rooms import show_rooms


def test_every_method_of_every_room_is_shown_with_its_first_line():
    console = Console(width=200, record=True)
    show_rooms(ROOMS, console)
    text = console.export_text()
    for field, package in ROOMS.items():
        assert field in text
        for name, line in available(package).items():
            assert name in text and line[:60] in text


@pytest.mark.parametrize(("command", "names"), [("cpt.data", ["jsonl", "byte", "linear"]), ("cpt.schedules", ["wsd"])])
def test_the_commands_list_their_rooms(command, names):
    out = subprocess.run([sys.executable, "-m", command, "--list"], capture_output=True, text=True)
    assert out.returncode == 0 and all(n in out.stdout for n in names)
    wrong = subprocess.run([sys.executable, "-m", command, "--lost"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "lost" in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1
