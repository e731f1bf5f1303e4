"""`convert export --push`: nothing is asked of the network here but of loopback."""

import http.server
import json
import socket
import sys
import threading
from types import SimpleNamespace

import llama_cases as cases
import pytest

from cpt import convert as command
from cpt import hub
from cpt.errors import ConfigError, RunError
from cpt.training.exchange import import_model

library = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What `import` makes of a small model."""
    root = tmp_path_factory.mktemp("hub")
    import_model(cases.write_folder(root / "hf", "qwen2", cases.golden()["qwen2"]["shapes"]), root / "run", print)
    return root / "run"


@pytest.fixture
def given(run, tmp_path, monkeypatch):
    """The flags of an export that is pushed, with a token."""
    monkeypatch.setattr(library, "get_token", lambda: "hf_stand_in")
    return SimpleNamespace(
        workdir=str(run), step=None, out=str(tmp_path / "out"), dtype="float32", shard_bytes=10**9, tokenizer="none",
        overwrite=False, push="someone/a-model", private=True,
    )  # fmt: skip


def test_what_is_exported_is_pushed_as_one_commit(given, monkeypatch, capsys):
    asked = []

    class Api:
        def __init__(self, **kwargs):
            asked.append(("token", kwargs["token"]))

        def create_repo(self, repo_id, *, private, exist_ok):
            asked.append(("create", repo_id, private, exist_ok))
            return "https://hub.invalid/someone/a-model"

        def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
            # Here, since a folder that is filled later would be pushed half.
            files = {p.name for p in command.Path(folder_path).iterdir()}
            asked.append(("upload", repo_id, folder_path, commit_message, delete_patterns))
            assert {"config.json", "model.safetensors", "README.md"} <= files

    monkeypatch.setattr(library, "HfApi", Api)
    assert command.export(given) == 0
    assert asked == [
        ("token", "hf_stand_in"),
        ("create", "someone/a-model", True, True),
        ("upload", "someone/a-model", given.out, "Checkpoint grid/0 of run", hub.REPLACED),
    ]
    out = capsys.readouterr().out
    assert "pushed to https://hub.invalid/someone/a-model" in out and "hf_stand_in" not in out


def test_what_is_missing_is_said_before_anything_is_written(given, tmp_path, monkeypatch):
    def fails(line, **change):
        with pytest.raises(ConfigError, match=line) as raised:
            command.export(SimpleNamespace(**(vars(given) | change)))
        assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()

    fails(r"--push=a-model: name a repository as owner/name", push="a-model")
    fails(r"--push=a/b/c: name a repository as owner/name", push="a/b/c")
    fails(r"--push=some one/a: .*", push="some one/a")
    fails(r"--private: is about a repository of the Hub", push=None)
    monkeypatch.setattr(library, "get_token", lambda: None)
    fails(r"--push=someone/a-model: no token of the Hub; set HF_TOKEN .*, or log in with `hf auth login`")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails(r"--push: needs the package huggingface_hub: pip install 'cpt\[hub\]'")


class Refusing(http.server.BaseHTTPRequestHandler):
    """A Hub whose tokens may only read."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"error": "You don't have the rights to create a model"}).encode()
        self.send_response(403)
        self.send_header("X-Error-Message", "You don't have the rights to create a model")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("kind", ["unreachable", "refusing"])
def test_what_the_hub_says_is_one_line_and_the_export_stays(kind, given, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens there
    server = None
    if kind == "refusing":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
    own = library.HfApi
    monkeypatch.setattr(library, "HfApi", lambda **kwargs: own(endpoint=f"http://127.0.0.1:{port}", **kwargs))
    try:
        with pytest.raises(RunError, match=r"--push=someone/a-model: not pushed \(.+\); the model is in") as raised:
            command.export(given)
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
    line = str(raised.value)
    assert "\n" not in line and "hf_stand_in" not in line and "with --overwrite tries again" in line
    assert "403" in line if kind == "refusing" else "refused" in line.lower()
    assert (tmp_path / "out" / "model.safetensors").is_file()
