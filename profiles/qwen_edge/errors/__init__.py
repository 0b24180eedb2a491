"""Every error that qwen-edge raises on purpose: one tree, two sentences each.

An error says what is wrong with which value (`problem`), what to do about it (`fix`),
and keeps the figures behind both for programs (`facts`). The command line prints the
two texts and ends with `exit_code`. Any other exception that reaches a person is a bug.

    EdgeError                          exit 1
    ├── UsageError                     exit 2   asked for something that cannot be
    │   ├── UnknownProfileError                 no such profile; names the closest one
    │   ├── UnknownRecipeError                  no such recipe; names the closest one
    │   ├── RecipeNotSupportedError             the legality table says no
    │   ├── UnsupportedArchitectureError        no graph for this kind of model
    │   ├── BudgetError                         no recipe keeps to a budget; names the nearest
    │   ├── MissingExtraError                   an optional dependency is not installed
    │   ├── GrammarError                        an output format that cannot be compiled
    │   └── OutputFolderError                   the output folder is not ours or in use
    ├── PackageError                   exit 3   a model package is missing, broken or too new
    ├── CheckpointError                exit 4   a checkpoint is not what it says it is
    ├── SourceError                    exit 5   a model could not be fetched
    ├── DeviceError                    exit 6   a device is absent or refused the model
    ├── ContextFullError               exit 7   the prompt or conversation outgrew the cache
    ├── ResourceError                  exit 8   disk or memory will not suffice
    │   └── QueueFullError                      too many requests are waiting; ask again later
    └── ParityError                    exit 9   the exported model answers wrongly

This package knows nothing of profiles, models or devices, and imports none of them.
"""

from qwen_edge.errors.tree import (
    BudgetError,
    CheckpointError,
    ContextFullError,
    DeviceError,
    EdgeError,
    GrammarError,
    MissingExtraError,
    OutputFolderError,
    PackageError,
    ParityError,
    QueueFullError,
    RecipeNotSupportedError,
    ResourceError,
    SourceError,
    UnknownProfileError,
    UnknownRecipeError,
    UnsupportedArchitectureError,
    UsageError,
)
from qwen_edge.errors.wording import did_you_mean, format_bytes, join_problems

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ContextFullError",
    "DeviceError",
    "EdgeError",
    "GrammarError",
    "MissingExtraError",
    "OutputFolderError",
    "PackageError",
    "ParityError",
    "QueueFullError",
    "RecipeNotSupportedError",
    "ResourceError",
    "SourceError",
    "UnknownProfileError",
    "UnknownRecipeError",
    "UnsupportedArchitectureError",
    "UsageError",
    "did_you_mean",
    "format_bytes",
    "join_problems",
]
