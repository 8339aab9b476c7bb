"""The learner: supervised fine-tuning, practice, and export of model bundles. Free of ROS but for its node."""
