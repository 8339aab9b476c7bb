"""LeRobot data sets v3.0: from episodes, and to episodes."""
