"""A package and all that runs it, as one folder for a machine without Python: `qwen-edge bundle`.

Read `pipeline.py` for the steps. `distributions.py`, `interpreter.py`, `systems.py` and
`shared_libraries.py` say what goes in; `licences.py`, `sbom.py` and `sums.py` what is told about
it. It knows no command line; the launcher in a bundle starts `qwen_edge.cli.bundled`.
"""
