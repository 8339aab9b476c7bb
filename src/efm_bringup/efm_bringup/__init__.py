"""Brings EFM up: the one description of each stack, and the `efm` command."""
