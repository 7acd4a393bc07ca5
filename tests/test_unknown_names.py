"""What an unknown name is answered with."""

from __future__ import annotations

import pytest

from paredown.errors import UnknownName

KNOWN = ["mobilenetv2", "mobilenetv2-0.35", "mobilenetv3-large", "mobilenetv3-small", "vgg16"]


@pytest.mark.parametrize(
    ("name", "hint"),
    {
        "a family": ("mobilenetv3", "did you mean mobilenetv3-large, mobilenetv3-small,"),
        "a slip": ("mobilnetv2", "did you mean mobilenetv2,"),
        "a start": ("vg", "did you mean vgg16?"),
        "nothing near": ("xyzzy", "known: mobilenetv2, "),
        "empty": ("", "known: mobilenetv2, "),
    }.values(),
)
def test_it_names_the_family_first_then_what_is_near(name: str, hint: str) -> None:
    assert hint in str(UnknownName("network", name, KNOWN))
