"""Other trainers, run beside ours in one measurement: each a process of its own that does what it is told in turn."""
