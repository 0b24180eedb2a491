"""Files: the one door for what is written, and for names that a file gives of other files.

`disk.py` holds the operating system's calls that change a disk, `writing.py` what is built of them,
`publishing.py` puts a finished folder in its place, `replacing.py` a single file. `opening.py`
turns a name that stands in a file into a path, `plain_name.py` says which names packages may
use, and `output_lock.py` keeps two writers apart. A test sees to it that nothing goes round them.
"""
