"""What an export lost: the package's predictions beside those of the checkpoint.

`reference.py` runs the checkpoint layer by layer from its mapped file, so that it fits where the
model does not; `texts.py` has what both read; `statistics.py` turns their logits into figures.
"""
