"""A vault's files at rest: encrypted under keys that a custodian holds; knows no torch."""
