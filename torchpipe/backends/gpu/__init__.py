"""Backends on GPUs: streams, JPEG files decoded in batches, one launch for images of any sizes."""
