"""A token store as a TFDS data set of ArrayRecord files, for those who read data that way; TensorFlow is not needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpt.data.manifest import read_manifest
from cpt.data.store import TokenStore
from cpt.errors import DataError


def export(store: str | Path, out: str | Path | None = None) -> Path:
    """Write the documents of every split of a store as `{"tokens": int32 [None], "domain": text}`, in its order.

    Args:
      store: a folder made by `python -m cpt.prepare`.
      out: folder for data sets, `<store>/tfds` by default; the data set lies in `token_store/1.0.0` under it. A
        finished one of the same store is left alone.

    Returns:
      The folder of the data set, which `tfds.builder_from_directory` opens.

    Raises:
      DataError: no finished store, or another data set in its place.
    """
    store = Path(store)
    manifest = read_manifest(store)
    if not manifest:
        raise DataError(f"{store}: holds no finished store; make it with `python -m cpt.prepare`")
    builder = _builder(store, manifest, store / "tfds" if out is None else Path(out))
    folder = Path(builder.data_dir)
    mark = folder / "store_digest.txt"
    if folder.is_dir():
        if mark.is_file() and mark.read_text() == manifest["digest"]:
            return folder
        raise DataError(
            f"{folder}: holds a data set of another store, or half of one; remove it and run the same again"
        )
    builder.download_and_prepare()  # into a folder of another name, renamed when it is whole
    mark.write_text(manifest["digest"])
    return folder


def _builder(store: Path, manifest: dict[str, Any], data_dir: Path) -> Any:
    os.environ.setdefault("TFDS_DISABLE_TENSORFLOW_WARNING", "1")
    import numpy as np
    import tensorflow_datasets as tfds

    class TokenStoreBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Documents of a token store."""

        name = "token_store"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            # `Sequence` of integers is ten times slower to write and to read.
            tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
            features = tfds.features.FeaturesDict({"tokens": tokens, "domain": tfds.features.Text()})
            said = f"Token ids of the {manifest['tokenizer']['kind']} tokenizer {manifest['tokenizer']['hash'][:8]}."
            return tfds.core.DatasetInfo(builder=self, description=said, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in manifest["splits"]}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, domain, ids in TokenStore.open(store, split).documents():
                yield number, {"tokens": ids, "domain": domain}

    return TokenStoreBuilder(data_dir=data_dir, file_format="array_record")
