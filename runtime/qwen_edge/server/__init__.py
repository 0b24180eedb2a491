"""The OpenAI-compatible server: `qwen-edge serve`, an optional extra.

A request passes `listening.py` (the only socket), `connection.py` (time and bytes of a
connection), `http_guard.py` (who may ask), `request_body.py` (JSON that means one thing) and
then the handlers. What refuses a request is an `HttpRefusal`; every limit is in `limits.py`.
Importing this package imports nothing; it knows nothing of the command line.
"""
