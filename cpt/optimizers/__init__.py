"""Optax chains without a schedule, and what happens to their state at a phase boundary."""
