"""Backends that make answers of a network's output: scores, classes, boxes."""
