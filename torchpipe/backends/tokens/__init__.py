"""Backends that stand before a language model."""
