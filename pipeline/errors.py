"""The errors a user can cause and mend."""


class InputError(Exception):
    """Bad recipe, data, checkpoint or argument; the command line ends with exit code 2.

    The message names the value, what is allowed, and the fix.
    """
