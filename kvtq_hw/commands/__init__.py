"""What a user calls: one command of `kvtq-hw` in each module of this package.

A module `cycle_model` becomes the command `kvtq-hw cycle-model`. It exposes a click command named
`command`, and its docstring's first line is what `kvtq-hw --help` says about it. The command line
finds modules by itself and imports the one that was asked for: there is no list to add to. Import
what belongs to an extra (torch, transformers, cocotb) inside functions: `--help` stays fast then.

A command reports what the user can mend with `UserError`, and returns its exit status: None or 0
for success.
"""
