"""Poisoning: the threat, its judge, poisoned data and a poisoned member."""
