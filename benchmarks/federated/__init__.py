"""What clients train together is worth, and what malicious ones among them can do to it."""
