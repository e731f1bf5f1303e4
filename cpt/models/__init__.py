"""Decoders authored in Flax NNX behind a pure `apply(params, ...)`; the only package that imports flax."""
