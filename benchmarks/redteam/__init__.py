"""The red team's matrix on MNIST; our attacks beside the reference code."""
