"""How requests run: stages, their instances and batches, and the way of a request through them."""
