"""A metadata server on this machine announces maintenance; a loop that stands still ends."""

import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cpt.training.maintenance import MaintenanceWatch
from cpt.training.signals import StopRequest
from cpt.training.watchdog import Watchdog


@pytest.fixture
def server(monkeypatch):
    """Answers what stands in `server.says`; a missing key is a 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            said = web.says.get(self.path) if self.headers["Metadata-Flavor"] == "Google" else None
            self.send_response(200 if said else 404)
            self.end_headers()
            self.wfile.write((said or "").encode())

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    key = "/computeMetadata/v1/instance/"
    web.says = {key + "maintenance-event": "NONE", key + "preempted": "FALSE"}
    web.key = key
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{web.server_address[1]}")
    yield web
    web.shutdown()
    web.server_close()


def until(holds, limit_s=20.0):
    end = time.monotonic() + limit_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


@pytest.mark.parametrize(
    ("key", "value"), [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")]
)
def test_an_announced_event_asks_to_stop(server, key, value):
    stop = StopRequest()
    with MaintenanceWatch(stop.ask, every_s=0.02):
        time.sleep(0.1)
        assert stop.name is None
        server.says[server.key + key] = value
        assert until(lambda: stop.name is not None)
    assert stop.name == f"{key} {value}"


def test_what_was_announced_before_the_start_does_not_stop_it_again(server):
    key = server.key + "maintenance-event"
    server.says[key], told = "TERMINATE_ON_HOST_MAINTENANCE", []
    with MaintenanceWatch(told.append, every_s=0.02):
        time.sleep(0.2)
        assert told == []
        server.says[key] = "NONE"
        time.sleep(0.2)
        server.says[key] = "TERMINATE_ON_HOST_MAINTENANCE"  # another one
        assert until(lambda: told)
    assert told == ["maintenance-event TERMINATE_ON_HOST_MAINTENANCE"]


def test_a_server_that_does_not_answer_says_nothing(server, monkeypatch):
    server.says.clear()
    told = []
    with MaintenanceWatch(told.append, every_s=0.02):
        time.sleep(0.1)
    assert told == []


def test_elsewhere_nobody_is_asked(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    before = threading.active_count()
    with MaintenanceWatch(pytest.fail, every_s=0.01):
        assert threading.active_count() == before


def test_a_loop_that_stands_still_ends_with_a_line_and_the_stacks(tmp_path, capfd):
    left = []
    with Watchdog(0.3, tmp_path, left.append) as watchdog:
        for step in range(6):  # longer than the limit in all, but never between two calls
            watchdog.at(f"step {step}")
            time.sleep(0.1)
        assert left == []
        assert until(lambda: left)
    assert left == [75]
    line = capfd.readouterr().err.strip()
    assert "no progress for" in line and "at step 5" in line and "\n" not in line
    assert "test_a_loop_that_stands_still" in (tmp_path / "stalled-0.txt").read_text()


def test_no_limit_is_no_watchdog(tmp_path):
    before = threading.active_count()
    with Watchdog(0, tmp_path, pytest.fail):
        assert threading.active_count() == before


def test_it_really_ends_a_process(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from cpt.training.watchdog import Watchdog\n"
        "with Watchdog(0.2, pathlib.Path(sys.argv[1])): time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 75 and "start the same command again" in done.stderr
