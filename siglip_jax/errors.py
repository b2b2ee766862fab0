"""The exceptions meant for the person at the keyboard."""

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    Programs print the message as one line and exit with code 2; a traceback is only shown for
    faults of the library itself.
    """


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises a UserError where `value` is not one of `choices`.

    Example:
      >>> check_choice("--ties", "random", ("expected", "docid"))
      Traceback (most recent call last):
      siglip_jax.errors.UserError: --ties='random'; expected one of expected, docid
    """
    known = list(choices)
    if value not in known:
        raise UserError(f"{name}={value!r}; expected one of {', '.join(map(str, known))}")


ON_ERROR = ("error", "skip")  # what bad input does: stop the work, or be left out and counted
_EARLIER_WORDS = {"refuse": "error", "raise": "error", "drop": "skip"}


def checked_on_error(name: str, value: str) -> str:
    """ "error" or "skip"; the words that versions before this one had for them are understood.

    Raises:
      UserError: any other word.
    """
    word = _EARLIER_WORDS.get(value, value)
    check_choice(name, word, ON_ERROR)
    return word


class Stopped(Exception):
    """Work that was asked to stop has saved what it did; the message says how to go on.

    Attributes:
      code: programs exit with it after printing the message.
    """

    def __init__(self, message: str, *, code: int):
        super().__init__(message)
        self.code = code
