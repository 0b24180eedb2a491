"""Answers in a given form: JSON by a schema, a regular expression, one of several texts, a grammar.

`output_format.py` says what can be asked for. `grammar.py` compiles it, after `schema_limits.py`
and `pattern_limits.py` have looked at it, and `grammar_constraint.py` keeps one answer to it,
token by token, to a whole end where the limit is short. Masks come from llguidance, which only
`matcher.py` touches. Nothing here knows of backends, chats or sessions.
"""

from qwen_edge.runtime.structured.grammar import Grammar, GrammarCompiler
from qwen_edge.runtime.structured.grammar_constraint import GrammarConstraint
from qwen_edge.runtime.structured.output_format import OutputFormat

__all__ = ["Grammar", "GrammarCompiler", "GrammarConstraint", "OutputFormat"]
