"""LoRA adapters in PEFT's format, merged into a checkpoint while its tensors are read.

`opening.py` reads the folders, `settings.py` their configuration, `targets.py` knows which modules
it means, `matching.py` fits the tensors to a model, and `merging.py` has the arithmetic. Nobody
behind a `MergedCheckpoint` need know that there are adapters.
"""
