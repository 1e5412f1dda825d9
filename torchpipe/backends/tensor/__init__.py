"""Backends on tensors: moved, changed, resized, cut, joined, read and written."""
