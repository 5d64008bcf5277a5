"""What monitors see of attacks and of drift, and what they cost benign clients."""
