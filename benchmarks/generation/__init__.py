"""Making the next parameters, on MNIST; DeepWeightFlow's rig; scale."""
