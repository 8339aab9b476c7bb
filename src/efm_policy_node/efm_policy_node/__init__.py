"""The policy node: the newest observation and an instruction in, a safe command out."""
