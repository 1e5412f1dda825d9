"""Configurations: a dict or a TOML file to nodes whose every key is checked, and what can be said of them."""
