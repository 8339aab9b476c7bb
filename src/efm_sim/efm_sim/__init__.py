"""Worlds to practise in, and the node that puts one behind a robot's topics."""
