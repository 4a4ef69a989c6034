"""User errors: messages of one sentence, and an exit code for each class of error."""

from alexlab.output.escape import shown

BUG = 70  # exit code of an error that is not a user error: EX_SOFTWARE of <sysexits.h>


class AlexlabError(Exception):
    """Error that the user can act on, printed as one sentence without a traceback.

    A DataLoader worker passes its error on as the text of a traceback, whose last line contains the sentence.

    Args:
        text: the sentence; line breaks and control characters in it are escaped.
        lines: further lines to print below it.
    """

    exit_code = 1
    refused = False  # True if raised before any work, so that the new run folder is removed

    def __init__(self, text: str, *lines: str) -> None:
        if text.startswith("Caught ") and "DataLoader worker process" in text:
            text = text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
        super().__init__(*map(shown, (text, *lines)))

    def __str__(self) -> str:
        return "\n".join(self.args)


class ConfigError(AlexlabError, ValueError):
    """Invalid configuration."""


class DiskError(AlexlabError):
    """File that cannot be written."""


class FindingsError(AlexlabError):
    """Findings of a check, reported by its exit code. The command itself did not fail."""


class DataError(AlexlabError, ValueError):
    """Invalid dataset."""

    exit_code = 3


class ImageError(DataError):
    """Unreadable image file.

    Args:
        text: the sentence.
        path: path of the file.
        code: key of `alexlab.data.image_file.REASONS`.
        reason: the reason as text.
        detail: the part of the reason that comes from the decoder.
    """

    def __init__(self, text: str, *, path: str = "", code: str = "", reason: str = "", detail: str = "") -> None:
        super().__init__(text)
        self.path, self.code, self.reason, self.detail = path, code, shown(reason), shown(detail)

    def with_hint(self, hint: str) -> "ImageError":
        """Return the error with a hint after its sentence."""
        return ImageError(f"{self}; {hint}", path=self.path, code=self.code, reason=self.reason, detail=self.detail)


class NumericError(AlexlabError, ArithmeticError):
    """Loss, gradient or weight that is not finite.

    Args:
        text: the sentence.
        lines: further lines to print below it.
        batches: indices of the batches of this rank and epoch that may be the cause.
    """

    exit_code = 4

    def __init__(self, text: str, *lines: str, batches: range = range(0)) -> None:
        super().__init__(text, *lines)
        self.batches = batches


class PrunedError(AlexlabError):
    """Trial that a search stopped early. Not a failure."""

    exit_code = 0


class RankError(AlexlabError, RuntimeError):
    """Lost rank of a distributed run."""

    exit_code = 5


class LostPeerError(RankError):
    """Lost connection to another rank, whose own error has the cause."""


def install_hint(extra: str) -> str:
    """Return how to install the packages of an extra, as the end of a message."""
    return f"run pip install -e '.[{extra}]' in the repository"


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for an error that stops a command."""
    return error.exit_code if isinstance(error, AlexlabError) else BUG
