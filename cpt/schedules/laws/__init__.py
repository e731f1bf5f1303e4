"""Loss laws: the final loss of a learning-rate schedule from a few short runs, before it is trained."""
