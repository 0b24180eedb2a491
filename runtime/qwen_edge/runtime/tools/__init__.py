"""Tools: what a model may call, how its calls are limited, read, run and answered.

`tool.py` reads what a caller offers: function schemas or typed Python functions. While an answer
is made, `call_constraint.py` keeps each call to the schema of its function, and `call_parser.py`
turns its text into calls as it comes. `running.py` runs calls and `messages.py` feeds both back.
The format is Qwen3's: `<tool_call>`, a line with a JSON object, `</tool_call>`. Nothing here
knows of backends or sessions.
"""
