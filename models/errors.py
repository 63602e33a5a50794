"""The one exception for what a user got wrong."""


class UserError(Exception):
    """A mistake in the user's input: one line that says what, where and how to mend it.

    The command line prints the message alone and exits with status 2 (with `--debug`, the traceback too), so the
    message must stand by itself: name the file, field or tensor, and what would be accepted instead.
    """
