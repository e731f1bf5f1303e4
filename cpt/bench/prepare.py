"""What preparing costs beside the tokenizer: its speed against `encode_batch` alone, its memory, its bytes after kills.

The corpus is made here, in the format of The Pile: passages of the standard library's prose and code, in random order,
under the names of its sets, as JSON lines in one `.zst`. Both sides see the same text with the same tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.corpora._base import Fields, document_of
from cpt.data.corpora.jsonl import jsonl
from cpt.data.corpora.stdlib_code import stdlib_code
from cpt.data.corpora.stdlib_prose import stdlib_prose
from cpt.data.tokenizers._base import TokenizerSpec, load
from cpt.data.tokenizers.bpe import bpe

SETS = ("Pile-CC", "PubMed Central", "Github", "StackExchange", "Wikipedia (en)", "FreeLaw")
BATCH_CHARACTERS = 1 << 20
VOCABULARY = 16_384


def bench_prepare(megabytes: int, kills: int, workers: list[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Prepare a generated corpus with each number of workers, and once more with kills on the way.

    Args:
      megabytes: text in the corpus.
      kills: SIGKILLs, evenly over the time that the work takes.
      workers: numbers of processes; the first is the one whose speed and memory are given.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus, tokenizer = root / "pile.jsonl.zst", root / "tokenizer.json"
        say(f"writing {megabytes:,} MB of text in the format of The Pile")
        text_bytes = _generate(corpus, tokenizer, megabytes * 1_000_000)
        runs = []
        for n in workers:
            say(f"preparing with {n} workers")
            runs.append({"workers": n, **_prepare(root / f"w{n}", corpus, tokenizer, n)})
            if len(runs) == 1:  # beside what it is compared with: machines are noisy
                say("tokenizers.encode_batch alone, on all cores")
                alone = _encode_batch(corpus, tokenizer)
        say(f"preparing with {workers[0]} workers and {kills} kills")
        killed = _killed(root / "killed", corpus, tokenizer, workers[0], kills, runs[0]["seconds"])
        same = {r["digest"] for r in runs} | {killed["digest"]}
    return {
        "text_bytes": text_bytes,
        "encode_batch_s": alone,
        "encode_batch_mb_per_s": text_bytes / alone / 1e6,
        "ratio": alone / runs[0]["seconds"],
        "runs": runs,
        "killed": killed,
        "identical": len(same) == 1,
    }


def _generate(corpus: Path, tokenizer: Path, text_bytes: int) -> int:
    import pyarrow

    documents = [*stdlib_prose(), *stdlib_code()]
    bpe(TokenizerSpec(vocab_size=VOCABULARY, max_bytes=20_000_000), lambda: iter(documents)).save(tokenizer)
    rng, written = np.random.default_rng(0), 0
    with pyarrow.OSFile(str(corpus), "wb") as raw, pyarrow.CompressedOutputStream(raw, "zstd") as out:
        while written < text_bytes:
            document = documents[rng.integers(len(documents))]
            length = min(len(document), int(rng.lognormal(8.0, 1.0)) + 1)  # a median of 3,000 characters
            start = int(rng.integers(len(document) - length + 1))
            text = document[start : start + length]
            row = {"text": text, "meta": {"pile_set_name": SETS[rng.integers(len(SETS))]}}
            out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += len(text.encode())
    return written


def _command(out: Path, corpus: Path, tokenizer: Path, workers: int) -> list[str]:
    flags = [f"--input={corpus}", f"--tokenizer={tokenizer}", f"--out={out}", f"--workers={workers}"]
    return [sys.executable, "-m", "cpt.prepare", *flags, "--domain_field=meta.pile_set_name", "--dedup"]


def _prepare(out: Path, corpus: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(_command(out, corpus, tokenizer, workers), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"cpt.prepare ended with {process.returncode}")
    return {"seconds": time.perf_counter() - begin, "peak_memory_mb": peak / 1e6, "digest": _digest(out)}


def _killed(out: Path, corpus: Path, tokenizer: Path, workers: int, kills: int, seconds: float) -> dict[str, Any]:
    begin, at = time.perf_counter(), []
    for _ in range(kills):
        command = _command(out, corpus, tokenizer, workers)
        # What Python's own helper process says of its killed parent is no news.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds / (kills + 1))
        at.append(round(time.perf_counter() - begin, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(_command(out, corpus, tokenizer, workers), stdout=subprocess.DEVNULL, check=True)
    return {"kills_at_s": at, "seconds": time.perf_counter() - begin, "digest": _digest(out)}


def _encode_batch(corpus: Path, tokenizer: Path) -> float:
    """Seconds inside `encode_batch` with all cores, the text read and put into batches outside of the clock."""
    encoder, seconds = load(tokenizer)._tokenizer, 0.0
    for texts in _batches(corpus):
        begin = time.perf_counter()
        encoder.encode_batch(texts, add_special_tokens=False)
        seconds += time.perf_counter() - begin
    return seconds


def _batches(corpus: Path) -> Iterator[list[str]]:
    texts, characters = [], 0
    for part in jsonl(str(corpus), Fields()):
        for item in part.open():
            texts.append(document_of(item).text)
            characters += len(texts[-1])
            if characters >= BATCH_CHARACTERS:
                yield texts
                texts, characters = [], 0
    yield texts


def _memory(pid: int) -> int:
    """Bytes that a process and its children hold, what they share counted once."""
    total = 0
    for process in (pid, *_children(pid)):
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(c) for c in found]


def _digest(folder: Path) -> str:
    """Over names and bytes of everything in a store, but for the command in its manifest, which names its folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        content = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(content)
            content = json.dumps({k: v for k, v in manifest.items() if k not in ("command", "digest")}).encode()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()
