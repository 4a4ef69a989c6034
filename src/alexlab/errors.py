"""What went wrong, in one sentence for the person at the terminal, and the exit code that a script can test."""


class AlexlabError(Exception):
    """An error that a person can act on: it is printed as one sentence, without a traceback."""

    exit_code = 70


class ConfigError(AlexlabError, ValueError):
    """The configuration asks for something that cannot be had."""

    exit_code = 1


class DataError(AlexlabError, ValueError):
    """The images are not as they must be."""

    exit_code = 3


class NumericError(AlexlabError, ArithmeticError):
    """The training has left the finite numbers."""

    exit_code = 4


class RankError(AlexlabError, RuntimeError):
    """One of several processes of a run was lost."""

    exit_code = 5
