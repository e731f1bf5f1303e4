"""Losses on many sets, and what they say about forgetting; works on rows, never imports the train loop."""
