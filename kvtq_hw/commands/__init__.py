"""Commands of `kvtq-hw`, one per module of this package.

A module `cycle_model` becomes the command `kvtq-hw cycle-model`. The module exposes a click command
named `command`; the first line of the module's docstring appears in `kvtq-hw --help`. The command
line finds the modules itself, without a list, and imports only the module of the called command.
Modules of an extra (torch, transformers, cocotb) are imported inside functions, so that `--help`
stays fast.

A command raises `UserError` for errors that the user can correct, and returns its exit status: None
or 0 for success.
"""
