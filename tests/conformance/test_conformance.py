"""Every technique keeps every promise on every conformance network."""

import pytest

from paredown import registry
from paredown.testing import CHECKS, NETWORKS, Inapplicable, case

SETTINGS = {
    "recover": {"steps": 6},
    "trained-low-rank": {"steps": 4},
    "cross-distillation": {"steps": 3},
    "accllm": {"group_size": 16},
    "qfx": {"steps": 4},
    "mst-bnn": {"steps": 4},
    "nm-training": {"steps": 4},
    "consensus": {"steps": 4},
    "qlora": {"steps": 4},
    "early-exit": {"steps": 4},
    "hard-to-easy": {"steps": 4},
    "adaptive-computation": {"steps": 3, "layer_steps": 2},
    "quantized-distillation": {"steps": 4},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_promises(name, check, network):
    technique = registry.make(name, SETTINGS.get(name))
    try:
        CHECKS[check](*case(technique, network))
    except Inapplicable as e:
        pytest.skip(str(e))
