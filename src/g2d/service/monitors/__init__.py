"""What watches the live service."""
