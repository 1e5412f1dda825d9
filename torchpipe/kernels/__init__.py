"""GPU kernels, compiled by Triton when they are first used."""
