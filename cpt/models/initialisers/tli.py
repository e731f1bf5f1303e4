"""Deeper by one block after every K: transformer layer injection (2410.11654)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt.errors import ConfigError
from cpt.models.initialisers._base import OPTIONS, Leaf, Source, check_same, read
from cpt.models.initialisers._depth import Block, stacked
from cpt.models.spec import DecoderSpec, check_name

INITS = ("copy_previous", "copy_previous_zero_output", "mean_of_neighbours")


def tli(source: Source, target: DecoderSpec, options: Mapping[str, Any]) -> Leaf:
    """Transformer layer injection (arXiv 2410.11654): one new block after every K blocks of the source.

    K follows from the layers of the two models, `L' = L + L / K`. The abstract does not say what the new block is, so
    there is a choice. Kept exactly with `copy_previous_zero_output`: the logits of every input, bit for bit; with the
    others every block of the source, but not the function.

    Options: `init` ("copy_previous"): the block before; the same, ending in zeros (`copy_previous_zero_output`);
    the mean of the block before and the one after (`mean_of_neighbours`; after the last block, that block).

    Raises:
      ConfigError: the layers do not make sets of equal size, another field differs, an option is wrong.
    """
    given = read(options, "tli", init=INITS[0])
    check_name(f"{OPTIONS}.init", given["init"], INITS)
    check_same(source.spec, target, "tli", "layers")
    layers, more = source.spec.layers, target.layers - source.spec.layers
    if more <= 0 or layers % more:
        raise ConfigError(
            f"model.layers: {target.layers} are not the source's {layers} with one more after every K; {layers} + n "
            f"works for an n that divides {layers}"
        )
    every = layers // more
    blocks = []
    for i in range(layers):
        blocks.append(Block((i,)))
        if (i + 1) % every == 0:
            neighbours = (i, min(i + 1, layers - 1)) if given["init"] == "mean_of_neighbours" else (i,)
            blocks.append(Block(neighbours, "zero" if given["init"] == "copy_previous_zero_output" else "kept"))
    return stacked(source, source.axes, target, blocks)
