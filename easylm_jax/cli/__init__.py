"""The command `easylm`: one file per subcommand, one entry each in `main.COMMANDS`."""
