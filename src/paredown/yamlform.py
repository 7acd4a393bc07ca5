"""YAML as paredown reads and writes it: plain data only, ``2e-3`` is a number, short leaves on
one line.

YAML 1.1, which PyYAML follows, takes ``2e-3`` for text since it has no point; YAML 1.2 and every
user take it for a number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")


class _Loader(yaml.SafeLoader):
    """The safe loader, reading exponents like YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """YAML with short leaf lists and mappings on one line, as in DESIGN."""


for _kind in (_Loader, _Dumper):
    # The dumper quotes text that would be read back as a number.
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load(text: str) -> Any:
    """The plain data of a YAML text; raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)


def dump(data: Any) -> str:
    """Plain data as readable YAML, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)


def _flow(dumper: yaml.SafeDumper, node: yaml.Node) -> yaml.Node:
    if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)):
        leaves = [v for _, v in node.value] if isinstance(node, yaml.MappingNode) else node.value
        node.flow_style = all(isinstance(v, yaml.ScalarNode) for v in leaves)
    return node


_Dumper.add_representer(
    list, lambda d, v: _flow(d, d.represent_sequence("tag:yaml.org,2002:seq", v))
)
_Dumper.add_representer(tuple, lambda d, v: d.represent_list(list(v)))
_Dumper.add_representer(
    dict, lambda d, v: _flow(d, d.represent_mapping("tag:yaml.org,2002:map", v.items()))
)
