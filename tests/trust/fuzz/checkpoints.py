"""Targets that read what checkpoints, adapters and people bring to an export."""

import json
from pathlib import Path
from random import Random
from typing import Any

from lab import DEMO, Lab, Reader, Target, demo_file, make_safetensors
from mutate import (
    add_key,
    change_bytes,
    change_json,
    change_lines,
    change_safetensors,
    make_text,
    put_in,
)

from qwen_edge.export import package_facts
from qwen_edge.export.adapters.matching import match_adapters
from qwen_edge.export.adapters.opening import open_adapters
from qwen_edge.export.calibrated.layer_record import read_record
from qwen_edge.export.calibration_files import read_documents
from qwen_edge.export.checkpoint import check_tensors, open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.recipe_search.search import _read_costs
from qwen_edge.export.source_card import read_card
from qwen_edge.export.tensor_files import list_tensors
from qwen_edge.export.tokenizer_files import write_tokenizer_files
from qwen_edge.profiles.profile import load_profile
from qwen_edge.profiles.recipe import load_recipe
from qwen_edge.runtime.text_tokenizer import TextTokenizer

_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": True, "hidden_act": "silu",
    "eos_token_id": 3, "attention_bias": False, "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}  # fmt: skip


def _spec(scaled: bool = False) -> DecoderSpec:
    content: dict[str, Any] = dict(_CONFIG)
    if not scaled:
        del content["rope_scaling"]
    return read_spec(content)


def _checkpoint_seed(lab: Lab) -> list[bytes]:
    return [make_safetensors(_spec().tensor_shapes(), "BF16")]


def _read_tensors(lab: Lab) -> Reader:
    spec = _spec()

    def read(data: bytes) -> None:
        lab.write("checkpoint/model.safetensors", data)
        checkpoint = open_checkpoint(lab.work / "checkpoint")
        try:
            check_tensors(checkpoint, spec.tensor_shapes(), is_tied=spec.is_tied)
            for name in spec.tensor_shapes():
                checkpoint.check_finite(name)
                checkpoint.float32(name)
        finally:
            checkpoint.close()

    return read


def _index_seed(lab: Lab) -> list[bytes]:
    names = list(_spec().tensor_shapes())
    weight_map = {name: _SHARDS[number % 2] for number, name in enumerate(names)}
    return [json.dumps({"metadata": {"total_size": 9}, "weight_map": weight_map}).encode()]


def _read_index(lab: Lab) -> Reader:
    shapes = list(_spec().tensor_shapes().items())
    for number, name in enumerate(_SHARDS):
        lab.write(f"sharded/{name}", make_safetensors(dict(shapes[number::2]), "BF16"))

    def read(data: bytes) -> None:
        lab.write("sharded/model.safetensors.index.json", data)
        list_tensors(lab.work / "sharded")

    return read


def _config_seeds(lab: Lab) -> list[bytes]:
    plain = {key: value for key, value in _CONFIG.items() if key != "rope_scaling"}
    other = plain | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return [json.dumps(content).encode() for content in (_CONFIG, plain, other)]


def _read_config(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        path = lab.write("config/config.json", data)
        content = package_facts.read_json_object(path)
        spec = read_spec(content)
        list(zip(range(1_000), spec.tensor_shapes(), strict=False))
        package_facts.model_facts(spec, 512)
        package_facts.generation_facts(path.parent, content, spec.vocab_size)

    return read


def _read_generation(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        path = lab.write("generation/generation_config.json", data)
        package_facts.generation_facts(path.parent, _CONFIG, 1_024)

    return read


def _read_tokenizer(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        tokenizer = TextTokenizer.load(lab.write("tokenizer/tokenizer.json", data))
        for text in ("Hello, wörld! 你好 <|im_start|>user\n" + "ab " * 20, "", "aaaaaaaaaaaaaaaa!"):
            ids = tokenizer.encode(text, allow_special=True)
            tokenizer.decode(ids)
            tokenizer.encode(text)
            tokenizer.count_at_least(text)
            tokenizer.split_added(text)
            for token_id in ids[:8]:
                tokenizer.token_bytes(token_id)
        tokenizer.tokens_with("a")

    return read


def _tokenizer_seeds(lab: Lab) -> list[bytes]:
    """Return the demo's, and one with fewer words, in which a change hits more often."""
    content = json.loads((DEMO / "tokenizer.json").read_bytes())
    small = dict(content)
    vocab = {key: value for key, value in content["model"]["vocab"].items() if len(key) == 1}
    small["model"] = {**content["model"], "vocab": vocab, "merges": []}
    return [json.dumps(found).encode() for found in (content, small, small, small)]


_TOKENIZER_PIECES = (
    '{"type": "Regex", "pattern": {"Regex": "(a+)+$"}}', '{"type":"Sequence","normalizers":[]}',
    '{"type": "Replace", "pattern": {"Regex": "(a|a)*!"}, "content": "b"}', '{"type":"NFC"}',
    '{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}',
    '"normalizer": {"type": "Prepend", "prepend": "_"},', '"truncation": {"max_length": 0},',
    '{"type": "BertNormalizer"}', '"padding": {"strategy": {"Fixed": 99999999}},', '"id": -1,',
    '"id": 4294967295,', '"special": 1,', '"lstrip": true,', '{"type": "Unigram", "vocab": []}',
)  # fmt: skip


def _read_tokenizer_config(lab: Lab) -> Reader:
    source, output = lab.work / "texts", lab.work / "written"
    output.mkdir()
    small = _tokenizer_seeds(lab)[1]
    lab.write("texts/tokenizer.json", small)

    def read(data: bytes) -> None:
        (source / "tokenizer_config.json").write_bytes(data)
        write_tokenizer_files(source, output, vocab_size=2_048, for_openvino=False)

    return read


_CONFIG_PIECES = (
    '"chat_template": "\\ud800",', '"chat_template": [{"name": "default", "template": "\\udfff"}],',
    '"tokenizer_class": "LlamaTokenizer",', '"auto_map": {"AutoTokenizer": ["x.Y", null]},',
    '"added_tokens_decoder": {"-1": {"content": "x"}},', '"extra_special_tokens": {"a": {}},',
    '"eos_token": {"content": 5, "__type": "AddedToken"},', '"model_max_length": 1e30,',
    '"tokenizer_class": "../x",', '"additional_special_tokens": [[]],', '"chat_template": {},',
)  # fmt: skip


def _adapter_config(**changes: object) -> bytes:
    content: dict[str, object] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "x/y",
        "use_rslora": True,
        "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None,
        "rank_pattern": {"layers.0.self_attn.q_proj": 1}, "alpha_pattern": {},
        "layers_pattern": None,
        "init_lora_weights": True, "use_dora": False, "exclude_modules": None,
    }  # fmt: skip
    return json.dumps(content | changes).encode()


def _adapter_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        for module, rows in (("q_proj", 32), ("v_proj", 16)):
            rank = 1 if (layer, module) == (0, "q_proj") else 2
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes[f"{name}.lora_A.weight"] = (rank, 32)
            shapes[f"{name}.lora_B.weight"] = (rows, rank)
    return shapes


def _open_adapter(folder: Path, spec: DecoderSpec) -> None:
    adapters = open_adapters([str(folder)])
    try:
        match_adapters(spec, adapters)
    finally:
        for adapter in adapters:
            adapter.tensors.close()


def _read_adapter_config(lab: Lab) -> Reader:
    spec = _spec()
    lab.write("adapter/adapter_model.safetensors", make_safetensors(_adapter_shapes()))

    def read(data: bytes) -> None:
        path = lab.write("adapter/adapter_config.json", data)
        _open_adapter(path.parent, spec)

    return read


def _read_adapter_weights(lab: Lab) -> Reader:
    spec = _spec()
    lab.write("adapter/adapter_config.json", _adapter_config())

    def read(data: bytes) -> None:
        path = lab.write("adapter/adapter_model.safetensors", data)
        _open_adapter(path.parent, spec)

    return read


_ADAPTER_PIECES = (
    '"target_modules": "all-linear",', '"target_modules": ".*(q|v)_proj",', '"r": 0,',
    '"target_modules": "((.*)*)*x$",', '"target_modules": "(a|a)+$",', '"layers_pattern": "(.+)+",',
    '"rank_pattern": {"(.*)*x": 1},', '"lora_alpha": 1e308,', '"target_modules": "(?P<n>.)(?P=n)",',
    '"target_modules": ".{1,65535}.{1,65535}",', '"bias": "all",', '"layers_to_transform": [-1],',
)  # fmt: skip


def _calibration_seeds(lab: Lab) -> list[bytes]:
    lines = [
        {"text": "A sentence."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]},
    ]
    return ["\n".join(map(json.dumps, lines)).encode(), json.dumps(lines).encode()]


def _read_calibration(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        suffix = ".json" if data.lstrip()[:1] == b"[" else ".jsonl"
        read_documents(lab.write(f"calibration{suffix}", data))

    return read


def _read_recipe(lab: Lab) -> Reader:
    return lambda data: load_recipe(lab.write("own.toml", data)) and None


def _read_profile(lab: Lab) -> Reader:
    return lambda data: load_profile(lab.write("own.toml", data)) and None


def _catalog(name: str) -> Any:
    import qwen_edge.profiles

    folder = Path(qwen_edge.profiles.__file__).parent / name
    return lambda lab: [path.read_bytes() for path in sorted(folder.glob("*.toml"))]


_TOML_PIECES = (
    "[", "]]", "[[a]]\n", "a.b.c = 1\n", '"""', "'''", "inf", "nan", "0x", "= {", "1979-05-27\n",
    "extends = 'own'\n", 'extends = "own.toml"\n', "extends = './own.toml'\n", "recipe = 7\n",
    "\n[matrices]\n", "group_size = -1\n", "group_size = 0\n", "group_size = 9223372036854775808\n",
    'weights = "int3"\n', "a = [[[[[[[[[[", "\n[x.y.z]\n", "true", "max_context_tokens = 1e9\n",
    "\n[properties]\n", 'CACHE_DIR = "/"\n', "# \n", "\\u0000", '"\\ud800"', "\n[[devices]]\n",
)  # fmt: skip


def _read_layer(lab: Lab) -> Reader:
    return lambda data: read_record(lab.write("layer-0.safetensors", data)) and None


def _layer_seeds(lab: Lab) -> list[bytes]:
    header = {
        "vectors": ["norm"], "parts": {"m": ["scale"]}, "reports": [],
        "matrices": {"m": {"format": "int4", "shape": [2, 2], "group_size": 2}},
    }  # fmt: skip
    data = make_safetensors({"norm": (2,), "m/scale": (2, 1)})
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    content["__metadata__"] = {"layer": json.dumps(header)}
    text = json.dumps(content).encode()
    return [len(text).to_bytes(8, "little") + text + data[8 + length :]]


def change_layer(rng: Random, data: bytes) -> bytes:
    """Change what the file says of its own in its metadata, and leave the tensors as they are."""
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    own = change_json(rng, content["__metadata__"]["layer"].encode())
    content["__metadata__"]["layer"] = own.decode("utf-8", "replace")
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _read_search(lab: Lab) -> Reader:
    return lambda data: _read_costs(lab.write("search.json", data), "k") and None


def _search_seeds(lab: Lab) -> list[bytes]:
    found = {"weights": "int4", "symmetric": True, "group_size": 64}
    entry = {"name": "m", "shape": [4, 4], "kl": [[found, 0.5], [found, 1]]}
    return [json.dumps({"key": "k", "costs": [entry, entry]}).encode()]


def _read_readme(lab: Lab) -> Reader:
    def read(data: bytes) -> None:
        read_card(lab.write("card/README.md", data).parent)

    return read


_README = b"""---
license: apache-2.0
license_link: https://x/y
base_model:
- a/b
tags: [x, 'y']
---
# Title
"""
_YAML_PIECES = (
    "&a ", "*a", "!!python/object/apply:os.system ['x']", "? ", ": ", "- ", "|", ">", "[", "{",
    "---\n",
    "a: &a [x, x]\nb: &b [*a, *a]\n", "2001-99-99", "1_0:59:59", "!!binary x", "<<: *a\n", "\t",
    "%YAML",
    "!!int x", "!!timestamp 2001-13-45", "license: [[[[[[", "license: {a: b}\n", "0b", "!!float .",
)  # fmt: skip

TARGETS = (
    Target("safetensors", _checkpoint_seed, (change_safetensors, change_bytes), _read_tensors, 700),
    Target("shard-index", _index_seed, (change_json, change_json, change_bytes), _read_index, 700),
    Target("config", _config_seeds, (change_json, change_json, change_bytes), _read_config, 1_500),
    Target(
        "generation-config",
        demo_file("generation_config.json"),
        (change_json, change_bytes),
        _read_generation,
        700,
    ),
    Target(
        "tokenizer",
        _tokenizer_seeds,
        (change_json, change_json, change_bytes, put_in(_TOKENIZER_PIECES)),
        _read_tokenizer,
        700,
    ),
    Target(
        "tokenizer-config",
        demo_file("tokenizer_config.json"),
        (change_json, change_json, change_bytes, add_key(_CONFIG_PIECES)),
        _read_tokenizer_config,
        150,
    ),
    Target(
        "adapter-config",
        lambda lab: [_adapter_config(), _adapter_config(target_modules=".*(q|v)_proj")],
        (change_json, change_json, change_bytes, add_key(_ADAPTER_PIECES)),
        _read_adapter_config,
        700,
    ),
    Target(
        "adapter-weights",
        lambda lab: [make_safetensors(_adapter_shapes())],
        (change_safetensors, change_bytes),
        _read_adapter_weights,
        500,
    ),
    Target("calibration", _calibration_seeds, (change_lines, change_bytes), _read_calibration, 700),
    Target(
        "recipe", _catalog("recipes"), (change_bytes, put_in(_TOML_PIECES)), _read_recipe, 1_000
    ),
    Target(
        "profile", _catalog("catalog"), (change_bytes, put_in(_TOML_PIECES)), _read_profile, 1_000
    ),
    Target(
        "kept-layer",
        _layer_seeds,
        (change_layer, change_layer, change_safetensors),
        _read_layer,
        500,
    ),
    Target("kept-search", _search_seeds, (change_json, change_bytes), _read_search, 500),
    Target(
        "model-card",
        lambda lab: [_README],
        (change_bytes, put_in(_YAML_PIECES), make_text(("---\n", *_YAML_PIECES), 20)),
        _read_readme,
        700,
    ),
)
