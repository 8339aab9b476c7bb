"""The reward node: images in, steps-to-go, reward and success out."""
