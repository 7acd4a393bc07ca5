"""Write src/paredown/techniques/manifest.json, which lists the techniques without torch."""

from __future__ import annotations

import sys

from paredown.techniques import listing


def main(arguments: list[str]) -> int:
    """Write the manifest; with ``--check`` return 1 when it is not current."""
    wanted = listing.text(listing.built_in())
    there = listing.MANIFEST.read_text() if listing.MANIFEST.exists() else ""
    if "--check" in arguments:
        if wanted != there:
            print("the manifest is not current: run scripts/manifest.py", file=sys.stderr)
        return int(wanted != there)
    listing.MANIFEST.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
