"""Write docs/schemas/*.json, the JSON Schema of every document; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paredown import result
from paredown.manifest import Manifest

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def schemas() -> dict[str, str]:
    """File name -> text, one for each kind of document."""
    out: dict[str, str] = {}
    classes = [c for c in vars(result).values() if isinstance(c, type)]
    for cls in (*classes, Manifest):
        if not issubclass(cls, result.Document) or cls is result.Document:
            continue
        name = cls.__name__.removesuffix("Doc").lower() + ".json"
        schema = cls.model_json_schema(by_alias=True, mode="serialization")
        out[name] = json.dumps(schema, indent=2, sort_keys=True) + "\n"
    return out


def main(arguments: list[str]) -> int:
    """Write the schemas; with ``--check`` return 1 when one is not current."""
    wanted = schemas()
    there = {p.name: p.read_text() for p in FOLDER.glob("*.json")}
    if "--check" in arguments:
        stale = sorted(n for n in wanted.keys() | there.keys() if wanted.get(n) != there.get(n))
        if stale:
            print(f"not current: {', '.join(stale)}; run scripts/schemas.py", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in there.keys() - wanted.keys():
        (FOLDER / name).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
