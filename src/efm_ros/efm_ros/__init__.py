"""The only rclpy code that the nodes share: parameters, QoS profiles, conversion, lifecycle."""
