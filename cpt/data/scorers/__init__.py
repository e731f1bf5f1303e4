"""How good a document is, one file each: a function from a `ScorerSpec` to one from documents to nats per token."""
