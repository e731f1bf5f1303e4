"""cpt: continual pre-training of language models. Re-warm, replay, and measure what was forgotten."""

__version__ = "0.1.0"
