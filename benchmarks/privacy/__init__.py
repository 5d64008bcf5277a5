"""What private members promise, what that costs, and whether an audit can refute it."""
