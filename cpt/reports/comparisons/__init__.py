"""The sections of a page that compares runs, one file each: a function of the file's name from a `Comparison`."""
