"""Help of commands with many options: under headings, in the order in which a person needs them.

click lists options as one. Here is the table of contents; the options themselves are where they
are read.
"""

from collections.abc import Mapping
from types import MappingProxyType

import click

# Heading → names of parameters. What is in none of them comes last.
SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "The answer": (
            "system", "thinking", "thinking_budget", "max_new_tokens", "stop", "tools_file",
            "tool_choice", "num_answers", "resume", "on_overflow",
        ),
        "Form of the answer (one of these)": (
            "json_schema", "json_object", "regex", "choice", "grammar",
        ),
        "How tokens are chosen": (
            "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty",
            "seed", "sampling",
        ),
        "Where and how fast": (
            "backend", "device", "threads", "draft", "speculate", "parallel", "queue",
            "request_timeout", "max_loaded", "unload_after",
        ),
        "Where it listens, and to whom": (
            "host", "port", "api_key_file", "random_key", "allow_origin", "allow_host", "metrics",
        ),
        "Started by another program": ("ready_file", "parent_pid", "stop_with_stdin"),
        "Served by another program": ("emit", "output"),
    }
)  # fmt: skip
_LAST_SECTION = "What is shown"


class SectionedCommand(click.Command):
    """A command whose help lists its options under the headings of `SECTIONS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        records: dict[str, tuple[str, str]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # Arguments are told of in the text above.
            if isinstance(parameter, click.Option) and parameter.name and record is not None:
                records[parameter.name] = record
        for heading, names in SECTIONS.items():
            rows = [records.pop(name) for name in names if name in records]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
        with formatter.section(_LAST_SECTION):
            formatter.write_dl(list(records.values()))
