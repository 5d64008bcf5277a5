"""The service under load, beside other servers; a long soak."""
