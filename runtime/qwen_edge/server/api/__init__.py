"""The OpenAI-compatible interface: what requests may hold, and what answers look like.

`fields.py` has what all requests share; then each interface has a module that reads requests and
one that writes answers: `chat_*`, `completion_*`, `responses_*`. Nothing here knows HTTP.
"""
