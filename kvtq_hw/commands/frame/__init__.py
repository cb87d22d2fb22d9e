"""What all commands share: the command line itself, options, sessions and crash files."""
