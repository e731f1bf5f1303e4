"""Where the parameters of a model come from, one file each: from those of another model (grown, shrunk, averaged,
rescaled), or drawn anew.

Each is a function `(source, target, options)` to a `Leaf`, which gives one parameter of the target after the other.
"""
