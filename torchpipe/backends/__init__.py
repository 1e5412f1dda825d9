"""What runs: one family of backends a file; each brings its own libraries and none of another's."""
