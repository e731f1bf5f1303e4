"""State, step, loop, checkpoints, sharding: the part that touches the accelerator."""
