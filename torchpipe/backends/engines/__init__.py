"""Engines: backends that run a network on tensors, a batch in one call."""
