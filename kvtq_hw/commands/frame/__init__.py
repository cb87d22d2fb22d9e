"""Shared parts of all commands: the command line, options, sessions, evaluations, crash files."""
