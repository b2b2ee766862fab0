"""The one exception meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input: the message says what was given, what was expected and what to do.

    Programs print the message as one line and exit with code 2; a traceback is only shown for
    faults of the library itself.
    """
