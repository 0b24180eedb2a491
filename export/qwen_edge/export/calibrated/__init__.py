"""Compression that looks at what flows through a model: one decoder layer at a time.

`driver.py` goes through the layers; `activations.py` runs one, `moments.py` sums up what its
projections read; `balance.py` chooses AWQ's factors and `rounding.py` the integers, both against
those sums.
"""
