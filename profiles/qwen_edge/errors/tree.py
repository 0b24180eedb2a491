"""The exception classes. Their order and meaning are drawn in the package docstring."""


class EdgeError(Exception):
    """Base of every deliberate error.

    Args:
        problem: What is wrong, with the value in quotes and the limit or expectation.
        fix: One thing to do, as a command where possible. May span lines.
        **facts: The figures and names behind the text, for programs.

    State:
        Immutable by convention; `str(error)` is the problem followed by the fix.
    """

    exit_code = 1

    def __init__(self, problem: str, fix: str = "", **facts: object) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
        self.facts = facts

    def __str__(self) -> str:
        if not self.fix:
            return self.problem
        indented = self.fix.replace("\n", "\n       ")
        return f"{self.problem}\n  Fix: {indented}"


class UsageError(EdgeError):
    """Something was asked for that cannot be done; nothing was started."""

    exit_code = 2


class UnknownProfileError(UsageError):
    """No profile has this name and no file is at this path."""


class UnknownRecipeError(UsageError):
    """No recipe has this name and no file is at this path."""


class RecipeNotSupportedError(UsageError):
    """The legality table refuses this recipe on the profile's device."""


class UnsupportedArchitectureError(UsageError):
    """The checkpoint's architecture has no native graph here."""


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""


class BudgetError(UsageError):
    """No choice of formats keeps to a budget of size and loss; names the nearest that does."""


class GrammarError(UsageError):
    """An output format cannot be compiled, or an answer left it."""


class OutputFolderError(UsageError):
    """The output folder is not one of ours, is in use, or cannot be written."""


class PackageError(EdgeError):
    """A model package is missing, incomplete, changed, or of a newer format."""

    exit_code = 3


class CheckpointError(EdgeError):
    """A checkpoint folder is not one, or its files contradict each other."""

    exit_code = 4


class SourceError(EdgeError):
    """A model could not be fetched: network, permission, name, or broken transfer."""

    exit_code = 5


class DeviceError(EdgeError):
    """A device is absent, or its driver or compiler refused the model."""

    exit_code = 6


class ContextFullError(EdgeError):
    """The prompt or conversation needs more tokens than the cache may hold."""

    exit_code = 7


class ResourceError(EdgeError):
    """Disk or memory will not suffice, found out before work starts or during it."""

    exit_code = 8


class QueueFullError(ResourceError):
    """More requests are waiting than may; ask again later."""


class ParityError(EdgeError):
    """The exported model gives non-finite or wrong figures."""

    exit_code = 9
