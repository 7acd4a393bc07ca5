"""Released layouts by name and shape, against listings of public state dicts (`layouts/`).

The listings were taken from torchvision 0.28, timm 1.0.31 and diffusers 0.42.1 with untrained
networks. With weights copied from these our outputs were equal to theirs, to the bit or (Swin and
ConViT, whose attention is computed otherwise) to 7e-7.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.zoo.weights import LAYOUTS, LEFT_OUT, layouts, load_weights, names

FILES = sorted((Path(__file__).parent / "layouts").glob("*.txt"))
FILES_BY_STEM = {f.stem: f for f in FILES}


def listing(file):
    """Name -> shape of every tensor of a released state dict."""
    rows = (line.partition(" ") for line in file.read_text().splitlines())
    return {name: tuple(map(int, size.split("x"))) if size else () for name, _, size in rows}


def ones(*shape):
    return torch.ones(shape)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_tensor_of_a_released_file_has_its_place(file):
    name, _, layout = file.stem.rpartition(".")
    released = listing(file)
    with torch.device("meta"):
        model = zoo.create(name)
        state = {k: torch.empty(v) for k, v in released.items()}
        load_weights(model, state, layout=layout)
    mapping = names(model, layout)
    needed = [k for k in mapping if not k.endswith(LEFT_OUT)]
    assert len({mapping[k] for k in needed}) == len(needed)


def test_every_layout_has_a_listing_but_the_authors():
    listed = set()
    for file in FILES:
        name, _, layout = file.stem.rpartition(".")
        with torch.device("meta"):
            listed.add((type(zoo.create(name)).__name__, layout))
    # ResNet and DenseNet have the same names in timm; the authors' own are held below.
    same = {("ResNet", "timm"), ("DenseNet", "timm")}
    authors = {(c, lay) for c, known in LAYOUTS.items() for lay in known if lay == "authors"}
    assert {(c, lay) for c, known in LAYOUTS.items() for lay in known} == listed | same | authors


def test_the_authors_names_of_dit_and_convnext():
    with torch.device("meta"):
        dit = zoo.create("dit-s2")
        convnext = zoo.create("convnext-tiny")
    found = names(dit, "authors")
    assert found["blocks.3.modulation.weight"] == "blocks.3.adaLN_modulation.1.weight"
    assert found["blocks.3.attn.qkv.bias"] == "blocks.3.attn.qkv.bias"
    assert found["embed.proj.weight"] == "x_embedder.proj.weight"
    assert found["time.fc2.weight"] == "t_embedder.mlp.2.weight"
    assert found["classes.weight"] == "y_embedder.embedding_table.weight"
    assert found["head.bias"] == "final_layer.linear.bias"
    found = names(convnext, "authors")
    assert found["body.4.weight"] == "downsample_layers.1.1.weight"
    assert found["body.5.fc1.weight"] == "stages.1.0.pwconv1.weight"


def test_values_arrive_and_the_layout_is_found(tmp_path):
    torch.manual_seed(0)
    one, two = zoo.create("mobilenetv3-small"), zoo.create("mobilenetv3-small")
    theirs = names(one, "torchvision")
    released = {theirs[k]: v.contiguous() for k, v in one.state_dict().items()}
    save_file(released, tmp_path / "w.safetensors")
    assert load_weights(two, tmp_path / "w.safetensors") is two
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    own = zoo.create("mobilenetv3-small")
    load_weights(own, one.state_dict())
    assert torch.equal(own.stem.conv.weight, one.stem.conv.weight)


def test_sizes_of_one_do_not_matter():
    model = zoo.create("mobilenetv3-small", num_classes=3)
    state = model.state_dict()
    state["head.5.weight"] = state["head.5.weight"][:, :, None, None]
    load_weights(model, state)


def test_the_first_tensor_that_does_not_fit_is_named_and_nothing_is_loaded():
    model = zoo.create("resnet18", num_classes=10)
    before = model.stem[0].conv.weight.clone()
    released = listing(FILES_BY_STEM["resnet18.torchvision"])
    file = {k: torch.zeros(v) for k, v in released.items()}
    said = r"fc.weight is \(1000, 512\).*head.2.weight is \(10, 512\)"
    with pytest.raises(InputError, match=said):
        load_weights(model, file)
    assert torch.equal(model.stem[0].conv.weight, before)
    missing = {k: v for k, v in file.items() if k != "layer1.0.bn2.bias"}
    with pytest.raises(InputError, match=r"has no layer1.0.bn2.bias \(64,\)"):
        load_weights(model, missing)
    file["fc.weight"], file["fc.bias"] = ones(10, 512), ones(10)
    with pytest.raises(InputError, match=r"holds extra.weight \(3,\)"):
        load_weights(model, {**file, "extra.weight": ones(3)})
    load_weights(model, file)


def test_pickles_and_unknown_layouts_are_refused(tmp_path):
    model = zoo.create("mobilenetv2-0.35")
    with pytest.raises(InputError, match=r"read from \.safetensors"):
        load_weights(model, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(model, tmp_path / "none.safetensors")
    with pytest.raises(UnknownName, match="torchvision"):
        load_weights(model, {}, layout="torchvisoin")
    assert layouts(model) == ["paredown", "torchvision"]
    assert layouts(zoo.create("patnet-t0", num_classes=2)) == ["paredown"]
