"""What share of a batch each source gets, one file each: a function from (phase, sources, step) to shares."""
