"""What a package does on this machine: `qwen-edge bench`.

Read `measure.py` for what is measured and how, `cold_start.py` for a start from nothing, `work.py`
for what a token costs by the model's shape, and `report.py` for how it is told.
"""
