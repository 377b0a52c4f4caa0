"""The commands of `online`: one folder per group, one module per command or subcommand group."""
