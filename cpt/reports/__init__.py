"""Tables, figures and the one self-contained page of a run."""
