"""The bill of materials of a bundle: CycloneDX 1.6, as JSON.

Every part with its version, licence and files; every file with its SHA-256. It holds no time and
no name of a machine, so that equal bundles have equal ones.

Source:
    CycloneDX 1.6 JSON reference; OmniBOR and package URLs by ECMA-424 and the purl specification.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from qwen_edge.bundle.contents import UNKNOWN_LICENCE, Part
from qwen_edge.runtime.manifest import Manifest

SBOM_NAME = "sbom.cdx.json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")
_TYPES = {
    "program": "application",
    "distribution": "library",
    "engine": "library",
    "interpreter": "platform",
    "library": "library",
    "model": "machine-learning-model",
}
# An expression of identifiers, in contrast to a name such as "BSD License".
_EXPRESSION = re.compile(
    r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*|\(.*\)(?: (?:AND|OR) .*)*"
)
# Hub cards write identifiers in small letters; these are what SPDX calls them.
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause"}


def write_sbom(
    manifest: Manifest, parts: Sequence[Part], *, package_hash: str, properties: dict[str, str]
) -> bytes:
    """Return the text of the bill of materials.

    Args:
        manifest: The package's.
        parts: All parts of the bundle, the program first.
        package_hash: SHA-256 of the package's manifest, which names all its files.
        properties: Facts of the bundle, such as its devices.
    """
    components = [_describe(part, manifest, package_hash) for part in parts]
    references = [component["bom-ref"] for component in components]
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "bundle",
                "name": f"{manifest.name} (qwen-edge bundle)",
            },
            "properties": [
                {"name": f"qwen-edge:{name}", "value": value}
                for name, value in sorted(properties.items())
            ],
        },
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": references}]
        + [{"ref": reference} for reference in references],
    }
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}"
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _describe(part: Part, manifest: Manifest, package_hash: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": _TYPES[part.kind],
        "bom-ref": f"{part.kind}:{part.name}",
        "name": part.name,
    }
    if part.version is not None:
        component["version"] = part.version
    if part.about is not None:
        component["description"] = part.about
    is_model = part.kind == "model"
    digest = package_hash if is_model else hash_of_list(part)
    component["hashes"] = [{"alg": "SHA-256", "content": digest}]
    component["licenses"] = _describe_licence(part.licence)
    if part.purl is not None:
        component["purl"] = part.purl
    what = "manifest.json" if is_model else "sha256sum lines of its files, sorted by name"
    component["properties"] = [{"name": "qwen-edge:hash-of", "value": what}]
    if is_model:
        component["modelCard"] = _describe_model(manifest)
    component["components"] = [
        {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": sha256}],
        }
        for name, sha256 in sorted(part.digests.items())
    ]
    return component


def hash_of_list(part: Part) -> str:
    """Return one SHA-256 for all files of a part: that of their list as `sha256sum` writes it."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(part.digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _describe_licence(licence: str) -> list[dict[str, Any]]:
    licence = _SPDX.get(licence, licence)
    if licence == UNKNOWN_LICENCE or not _EXPRESSION.fullmatch(licence):
        return [{"license": {"name": licence}}]
    return [{"expression": licence}]


def _describe_model(manifest: Manifest) -> dict[str, Any]:
    model, source = manifest.model, manifest.source
    facts = {
        "source": source.id,
        "revision": source.revision or "",
        "recipe": manifest.recipe.name,
        "parameters": str(model.num_parameters),
    }
    return {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": model.model_type,
            "modelArchitecture": model.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "properties": [
            {"name": f"qwen-edge:{name}", "value": value} for name, value in facts.items() if value
        ],
    }
