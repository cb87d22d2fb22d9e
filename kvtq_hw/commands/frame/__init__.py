"""What all commands share: the command line, options, sessions, evaluations and crash files."""
