"""The two files of the graph: settings for other programs, and a full disk told apart."""

from pathlib import Path
from xml.etree import ElementTree

from qwen_edge.export.openvino_files import runtime_options
from qwen_edge.export.package_facts import device_settings
from qwen_edge.profiles.profile import load_profile


def options(profile: str) -> dict[str, str]:
    return runtime_options(device_settings(load_profile(profile), 4_096, 36))


def test_a_package_for_the_cpu_alone_carries_its_cache_settings() -> None:
    assert options("generic-x86") == {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        "KV_CACHE_PRECISION": "u8",
    }


def test_what_was_tested_on_the_cpu_is_not_told_to_a_gpu() -> None:
    assert options("core-ultra") == {}
    assert options("core-ultra-gpu") == {}
    assert options("core-ultra-npu") == {}


def test_a_gpu_is_not_told_to_scale_its_activations() -> None:
    """optimum-intel writes a factor; the plugin passes over it for language models.

    The profile gave it at compilation, where nothing passes over it: less exact and, says the
    plugin's author, half as fast.
    """
    for entry in device_settings(load_profile("core-ultra"), 4_096, 36):
        assert "ACTIVATIONS_SCALE_FACTOR" not in entry.properties


def test_the_settings_stand_in_the_xml(demo_package: Path) -> None:
    tree = ElementTree.parse(demo_package / "openvino_model.xml")
    found = {e.tag: e.get("value") for e in tree.getroot().findall("rt_info/runtime_options/*")}
    assert found == options("core-ultra") == {}
