"""What a device allows and what is best on it: data with a reason for every value.

Profiles (`catalog/*.toml`) say how a kind of machine runs a model, recipes (`recipes/*.toml`)
what is done to the weights, and the legality table which of the two go together. This package
imports only the errors; it knows nothing of OpenVINO. Read `profile.py`, then a TOML file.
"""

from qwen_edge.profiles.choose import choose_device, choose_profile
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.legality import check_recipe
from qwen_edge.profiles.profile import load_profile, profile_names
from qwen_edge.profiles.recipe import load_recipe, recipe_names

__all__ = [
    "check_recipe",
    "choose_device",
    "choose_profile",
    "load_profile",
    "load_recipe",
    "probe_hardware",
    "profile_names",
    "recipe_names",
]
