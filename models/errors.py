"""The exception for mistakes in the input of a user."""


class UserError(Exception):
    """A mistake in the user's input. The message is one line: what is wrong, where, and how to fix it.

    The command line prints the message alone (with `--debug`, also the traceback) and exits with status 2. The message
    must therefore name the file, field or tensor, and what would be accepted instead.
    """
