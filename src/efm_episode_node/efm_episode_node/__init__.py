"""The episode node: resets, runs, records and hands over episodes."""
