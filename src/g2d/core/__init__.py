"""What every layer may use: files, imports, engines, seeds, types."""
