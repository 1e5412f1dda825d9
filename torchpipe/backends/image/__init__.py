"""Backends on images in the host's memory: numpy arrays of HxWxC or HxW."""
