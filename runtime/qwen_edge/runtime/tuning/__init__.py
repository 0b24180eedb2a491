"""Tuning: which settings run a package fastest on this machine without costing it accuracy.

`tune.py` does it all, from a folder to a result; `search.py` decides what is tried and kept,
`race.py` when one setting is faster than another, `divergence.py` how far one moves the model's
answers. `stored.py` keeps results and lays them over a package's settings when it is loaded.
"""
