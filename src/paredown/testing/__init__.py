"""Conformance tests that every technique passes, ours and a third party's.

    import pytest
    from paredown.testing import CHECKS, NETWORKS, case

    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize("check", CHECKS)
    def test_my_technique(check, network):
        CHECKS[check](*case(MyTechnique(), network))

A check raises ``AssertionError`` saying what was promised and not kept; `Inapplicable` (a skip, in
pytest's eyes) where the technique refuses the whole network with a reason.
"""

from paredown.testing.checks import CHECKS, Inapplicable, case
from paredown.testing.networks import NETWORKS, build

__all__ = ["CHECKS", "NETWORKS", "Inapplicable", "build", "case"]
