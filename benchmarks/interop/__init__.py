"""What models of other worlds cost here: Keras beside PyTorch."""
