"""The one exception that stands for "the input is wrong", as opposed to "the code is wrong"."""


class BadInput(ValueError):
    """Something the user gave can't be used: the text says what was found, expected, to do.

    The command line prints the text on one line and exits with status 2. Any other exception is a
    defect of this package and keeps its traceback.
    """
