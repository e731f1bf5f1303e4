"""Readers of raw text, one file each: an iterator of documents."""
