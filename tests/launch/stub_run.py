"""Stands in for `python -m cpt.main`: says where it is, and ends as `--ends=CODE,CODE,...` says, launch after launch.

Process p of launch k ends with the k-th code of `--ends` (the last one again and again) if p is `--who`, else it waits
for SIGTERM or SIGINT, "saves" and ends with 75; before launch `--after` all wait so. A code of -9 is a kill. Everyone
writes a line to `--journal`. With `--fragile=1` a process whose peer was killed crashes at once.
"""

import os
import signal
import sys
import time
from pathlib import Path

flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
me, journal = int(flags.get("process", "0")), Path(flags["journal"])


def note(text):
    with journal.open("a") as f:
        f.write(f"{me} {text}\n")


def stop(number, frame):
    note(f"saved after {signal.Signals(number).name}")
    sys.exit(75)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
launches = journal.read_text().split("\n").count(f"{me} started") if journal.exists() else 0
note("started")
print(f"process {me}: {flags.get('coordinator')} {os.environ.get('XLA_FLAGS')}", flush=True)
ends = [int(code) for code in flags["ends"].split(",")]
end = ends[min(launches, len(ends) - 1)]
peers = int(flags.get("processes", "1"))
if flags.get("who", str(me)) == str(me) and launches >= int(flags.get("after", "0")):
    while journal.read_text().count("started") < peers * (launches + 1):  # all are there, as after a first collective
        time.sleep(0.02)
    if end < 0:
        note("killed")
        os.kill(os.getpid(), -end)
    sys.exit(end)
if end == 0 and "after" not in flags:
    sys.exit(0)
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    if "fragile" in flags and journal.read_text().count("killed") > launches:
        sys.exit(1)
    time.sleep(0.02)
note("waited in vain")
