"""From raw text to exact batches: corpora -> tokenizers -> token stores -> mixers -> loader, and the ledger."""
