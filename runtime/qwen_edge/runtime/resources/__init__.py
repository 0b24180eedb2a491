"""What a package takes here: memory, disk, time, and the largest context that fits.

`memory.py` has the formulas, `run_time.py` those of time, and `plan.py` what this machine makes of
them. docs/resources.md says the same in words.
"""
