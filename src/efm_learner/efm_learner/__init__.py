"""The learner: supervised fine-tuning, practice, export of model bundles. Free of ROS but for its node."""
