"""What went wrong, in one sentence for the person at the terminal, and the exit code that a script can test."""

from alexlab.output.escape import shown


class AlexlabError(Exception):
    """An error that a person can act on: it is printed as one sentence, without a traceback.

    A loader process hands its error on as the text of its traceback, whose last line has the sentence.

    Args:
        text: the sentence; names in it are shown on one line.
        lines: further lines below it.
    """

    exit_code = 70
    refused = False  # True where it was raised before any work, so that nothing of the attempt is kept

    def __init__(self, text: str, *lines: str) -> None:
        if text.startswith("Caught ") and "DataLoader worker process" in text:
            text = text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
        super().__init__(*map(shown, (text, *lines)))

    def __str__(self) -> str:
        return "\n".join(self.args)


class ConfigError(AlexlabError, ValueError):
    """The configuration asks for something that cannot be had."""

    exit_code = 1


class DiskError(AlexlabError):
    """A file cannot be written."""

    exit_code = 1


class FindingsError(AlexlabError):
    """A check has found something: no failure of the command, and told by its exit code."""

    exit_code = 1


class DataError(AlexlabError, ValueError):
    """The images are not as they must be."""

    exit_code = 3


class ImageError(DataError):
    """A file that is no readable picture; see `alexlab.data.image_file.REASONS` for the codes.

    Args:
        text: the sentence.
        path: of the file.
        code: of the reason.
        reason: in words.
        detail: the part of them that the decoder said.
    """

    def __init__(self, text: str, *, path: str = "", code: str = "", reason: str = "", detail: str = "") -> None:
        super().__init__(text)
        self.path, self.code, self.reason, self.detail = path, code, shown(reason), shown(detail)


class NumericError(AlexlabError, ArithmeticError):
    """The training has left the finite numbers.

    Args:
        text: the sentence.
        batches: numbers of this rank's batches of the epoch that may be the cause.
    """

    exit_code = 4

    def __init__(self, text: str, *, batches: range = range(0)) -> None:
        super().__init__(text)
        self.batches = batches


class PrunedError(AlexlabError):
    """A search has ended this trial: no failure."""

    exit_code = 0


class RankError(AlexlabError, RuntimeError):
    """One of several processes of a run was lost."""

    exit_code = 5


class LostPeerError(RankError):
    """A rank has lost its connection to another one, whose own end says why."""
