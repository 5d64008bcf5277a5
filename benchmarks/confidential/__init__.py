"""What answering without seeing costs, in accuracy and in time."""
