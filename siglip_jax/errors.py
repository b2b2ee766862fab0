"""The exceptions meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input: the message says what was given, what was expected and what to do.

    Programs print the message as one line and exit with code 2; a traceback is only shown for
    faults of the library itself.
    """


class Stopped(Exception):
    """Work that was asked to stop has saved what it did; the message says how to go on.

    Attributes:
      code: programs exit with it after printing the message.
    """

    def __init__(self, message: str, *, code: int):
        super().__init__(message)
        self.code = code
