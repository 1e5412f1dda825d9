"""Backends that lead requests: what runs when, with which keys, in which numbers."""
