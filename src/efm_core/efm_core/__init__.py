"""The ROS-free and torch-free middle of EFM, on which every other package stands."""
