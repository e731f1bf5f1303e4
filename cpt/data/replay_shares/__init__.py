"""How the replayed share moves over a phase, one file each: a function from (replay, step) to the share."""
