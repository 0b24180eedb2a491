"""Many answers at once from one loaded model: requests join and leave between steps.

`scheduler.py` decides what each step computes and hands tokens out; `batch_backend.py` is the
seam to what computes it: `paged.py` keeps sequences in blocks of one cache (with
`openvino_paged.py` as its engine), `sequential.py` lets any single-sequence backend take turns.
`generate_batch.py` is the call for a list of prompts. Nothing here knows text.
"""
