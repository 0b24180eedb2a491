"""Which matrix needs how many bits: measured once, then chosen for any budget.

`sensitivity.py` measures, `frontier.py` chooses, `search.py` makes a recipe of it.
"""
