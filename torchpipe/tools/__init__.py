"""Tools around a pipe, for the command line; nothing that runs requests imports them."""
