"""The command `easylm`: one file for each subcommand, one line for each in `main.COMMANDS`."""
