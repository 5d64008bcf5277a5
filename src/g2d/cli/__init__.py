"""The command line: commands only; no decision about a defence is made here."""
