"""YAML as its version 1.2 reads it: PyYAML knows 1.1, where 1e-3 is a text and ``no`` is False."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

__all__ = ["read_yaml"]

RESOLVED = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""Scalars that are no texts, by the core schema of YAML 1.2, and their first characters."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, and without keys that are given twice."""

    yaml_implicit_resolvers: dict[str, list] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in known:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value} is given twice", key.start_mark
                )
            known.add(name)
        return super().construct_mapping(node, deep)


# "1_000" and "010" would be read by the rules of 1.1.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: _number(node.value))
for _kind, (_pattern, _first) in RESOLVED.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})\\Z"), list(_first) + [""]
    )


def _number(text: str) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


def read_yaml(text: str) -> Any:
    """What a YAML text says; raises yaml.YAMLError, also for a key that is given twice.

    >>> read_yaml("{a: 1e-3, b: no, c: 010, d: 1:30, e: 2024-01-01, f: .5, g: true}")
    {'a': 0.001, 'b': 'no', 'c': 10, 'd': '1:30', 'e': '2024-01-01', 'f': 0.5, 'g': True}
    """
    return yaml.load(text, _Loader)
