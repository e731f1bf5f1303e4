"""TFDS data sets as corpora: without TensorFlow, by folder, with splits, as text and as ids."""

import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from cpt.data.corpora._base import Bad, Fields, document_of
from cpt.data.corpora.tfds import tfds
from cpt.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set that another process made, as a user's own script would."""
    root = tmp_path_factory.mktemp("tfds")
    script = root / "make.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import numpy as np
        import tensorflow_datasets as tfds

        class Notes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
                meta = tfds.features.FeaturesDict({"name": tfds.features.Text()})
                text = tfds.features.Text()
                features = tfds.features.FeaturesDict({"text": text, "ids": ids, "meta": meta, "n": np.int64})
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(0, 25), "test": self._generate_examples(100, 103)}
            def _generate_examples(self, first, last):
                for i in range(first, last):
                    ids = np.arange(i % 4, dtype=np.int32)
                    yield i, {"text": f"Grüße {i}", "ids": ids, "meta": {"name": "ab"[i % 2]}, "n": i}

        Notes(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
        """)
    )
    done = subprocess.run([sys.executable, str(script), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "notes" / "1.0.0"


def items(path, text="text", domain=None):
    return [document_of(i) for part in tfds(str(path), Fields(text, domain)) for i in part.open()]


def test_texts_domains_ids_and_splits(folder):
    documents = items(folder, domain="meta.name")
    assert [(d.text, d.domain) for d in documents] == [(f"Grüße {i}", "ab"[i % 2]) for i in range(25)]
    assert [d.text for d in items(f"{folder}#test")] == [f"Grüße {i}" for i in range(100, 103)]
    assert [d.text for d in items(f"{folder}#train[10:12]")] == ["Grüße 10", "Grüße 11"]
    assert [d.ids.tolist() for d in items(folder, "ids")][:4] == [[], [0], [0, 1], [0, 1, 2]]
    assert np.issubdtype(items(folder, "ids")[3].ids.dtype, np.integer)
    assert all(isinstance(d, Bad) and "holds int, not a string" in str(d) for d in items(folder, "n"))


def test_parts_are_ranges_in_order(folder, monkeypatch):
    monkeypatch.setattr(sys.modules[tfds.__module__], "RECORDS", 10)
    parts = tfds(str(folder), Fields())
    assert [sum(1 for _ in p.open()) for p in parts] == [10, 10, 5]
    assert next(iter(parts[2].open())).text == "Grüße 20"


def test_a_damaged_shard_is_a_bad_item_and_ends_its_part(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "d")
    (shard,) = (tmp_path / "d").glob("*train.array_record*")
    content = shard.read_bytes()
    at = content.index("Grüße 17".encode())
    module = sys.modules[tfds.__module__]
    monkeypatch.setattr(module, "RECORDS", 10)
    monkeypatch.setattr(module, "_TOGETHER", 5)
    shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    found = items(tmp_path / "d")
    (bad,) = (d for d in found if isinstance(d, Bad))
    assert bad.ends_part and bad.kind == "damaged file" and f"{tmp_path}/d[15]: damaged file (" in str(bad)
    assert "\n" not in str(bad)
    assert [d.text for d in found if d is not bad] == [f"Grüße {i}" for i in (*range(15), *range(20, 25))]


def test_bytes_that_are_not_utf8_are_counted(monkeypatch):
    class Source:
        """Three records, as TFDS gives them; features that are not asked for may hold anything."""

        def __getitems__(self, at):
            return [{"text": [b"a", b"\xff", b"c"][i], "image": b"\xff\xd8"} for i in at]

    monkeypatch.setattr(sys.modules[tfds.__module__], "_open", lambda name, split: (Source(), 3))
    a, bad, c = items("x")
    assert (a.text, c.text) == ("a", "c") and str(bad).startswith("x[1]: not UTF-8 (byte 0)") and not bad.ends_part


def test_what_is_not_there_is_one_line(folder, tmp_path):
    for path in (tmp_path, f"{folder}#nope", "no_such_data_set_at_all"):
        with pytest.raises(DataError, match="no TFDS data set that can be read here") as e:
            items(path)
        assert "\n" not in str(e.value)
    with pytest.raises(DataError, match="give its name or its folder"):
        tfds(None, Fields())


def test_a_data_set_becomes_a_store_without_tensorflow(folder, tmp_path):
    """The command, in a process of its own, which must not import it."""
    program = (
        "import sys\nfrom cpt.prepare import define_flags, main\nfrom absl import flags\ndefine_flags()\n"
        "flags.FLAGS(sys.argv)\nmain([])\nprint('tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    )
    flags = [f"--input={folder}#train", "--format=tfds", "--tokenizer=byte", f"--out={tmp_path}/s", "--validation=0.2"]
    done = subprocess.run([sys.executable, "-c", program, *flags, "--domain_field=meta.name", "--workers=0"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("False True")
    from cpt.data.store import TokenStore

    stores = [TokenStore.open(tmp_path / "s", split) for split in ("train", "validation")]
    assert sum(s.n_documents for s in stores) == 25 and set(stores[0].domains) == {"a", "b"}


def test_a_store_as_a_data_set_and_back(tmp_path):
    """Ids, order, splits and domains survive; made again from the data set, the store has the same tokens."""
    from cpt.data.corpora._base import Document, Part
    from cpt.data.preparing import SourceSpec, corpus_parts
    from cpt.data.store import TokenStore
    from cpt.data.tfds_export import export
    from cpt.data.tokenizers.byte import byte
    from cpt.data.tokenizing import Options, prepare

    documents = [Document(f"Grüße {i}", ("", "a b")[i % 2]) for i in range(60)]
    prepare([Part("p", lambda: iter(documents))], byte(), tmp_path / "s", Options(validation=0.2), {})
    folder = export(tmp_path / "s")
    stored = {split: list(TokenStore.open(tmp_path / "s", split).documents()) for split in ("train", "validation")}
    for split, expected in stored.items():
        found = items(f"{folder}#{split}", "tokens", domain="domain")
        assert [(d.domain, d.ids.tolist()) for d in found] == [(d, ids.tolist()) for _, d, ids in expected]
    assert export(tmp_path / "s") == folder  # left alone
    source = SourceSpec("tfds", f"{folder}#train", text_field="tokens", domain_field="domain", validation=0.0)
    prepare(corpus_parts(source, "x"), byte(), tmp_path / "again", Options(), {})
    again = TokenStore.open(tmp_path / "again")
    assert again.fingerprint == TokenStore.open(tmp_path / "s").fingerprint
    prepare([Part("p", lambda: iter(documents[:30]))], byte(), tmp_path / "t", Options(validation=0.2), {})
    with pytest.raises(DataError, match="holds a data set of another store"):
        export(tmp_path / "t", tmp_path / "s" / "tfds")
