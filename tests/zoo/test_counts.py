"""Parameter counts of the zoo against the published and publicly counted figures, exactly."""

import pytest
import torch

from paredown import zoo
from paredown.errors import InputError, UnknownName

PARAMS = {
    "mobilenetv2": 3_504_872,
    "mobilenetv2-1.4": 6_108_776,
    "mobilenetv2-0.35": 1_677_128,
    "vovnet27-slim": 3_525_736,
    "vovnet39": 22_600_296,
    "vovnet57": 36_640_296,
    "densenet121": 7_978_856,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "convnext-tiny": 28_589_128,
    "vit-ti": 5_717_416,
    "vit-s": 22_050_664,
    "vit-b": 86_567_656,
    "regnetx-400mf": 5_157_512,
}


def test_every_network_has_a_count():
    assert set(PARAMS) == set(zoo.names())


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_parameters(name):
    with torch.device("meta"):
        model = zoo.create(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]


@pytest.mark.parametrize("name", ["mobilenetv2-0.35", "vovnet27-slim", "resnet18", "vit-ti"])
def test_logits_have_the_classes_asked_for(name):
    size = 224 if name.startswith("vit") else 64
    model = zoo.create(name, num_classes=7, in_channels=1).eval()
    with torch.inference_mode():
        out = model(*zoo.example(name, batch=2, image_size=size, in_channels=1))
    assert out.shape == (2, 7)
    assert torch.isfinite(out).all()


def test_seed_fixes_the_weights():
    torch.manual_seed(3)
    one = zoo.create("mobilenetv2-0.35").state_dict()
    torch.manual_seed(3)
    two = zoo.create("mobilenetv2-0.35").state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_unknown_network_names_the_nearest():
    with pytest.raises(UnknownName, match="mobilenetv2"):
        zoo.create("mobilenet2")
    with pytest.raises(UnknownName):
        zoo.example("nothing")


def test_unknown_setting_is_refused():
    with pytest.raises(InputError, match="depth_multiplier"):
        zoo.create("mobilenetv2", depth_multiplier=2)
