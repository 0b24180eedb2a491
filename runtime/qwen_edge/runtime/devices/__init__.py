"""Which engine and device runs a package: looking, trying, opening, and going on elsewhere.

`probing.py` and `drivers.py` tell what is here, `opening.py` opens one of a package's models
(`openvino_opening.py`, `onnx_opening.py`), `compile_trial.py` tries a device in a process of its
own first, and `routing.py` gives each prompt the device that takes it.
"""
