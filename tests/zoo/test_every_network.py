"""Every network of the zoo, by its row: counts, sizes, features, gradients, exports.

Quick checks cover every variant on shapes alone, and one small variant of every architecture with
numbers; the slow ones do the rest.
"""

import inspect
import json
import math
import re

import pytest
import torch
from nn_nets import with_statistics

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.zoo import _count, _table, weights

KEPT = {n: tuple(v) for n, v in json.loads(_count.COUNTS.read_text()).items()}


def smallest():
    """Of every architecture the variant with the fewest parameters."""
    found = {}
    for name in zoo.names():
        row = zoo.variant(name)
        # Forms of one file that differ in more than size are told apart by the settings' names.
        key = row.build, tuple(sorted(row.settings))
        params = KEPT.get(name, (math.inf,))[0]
        if key not in found or params < found[key][0]:
            found[key] = params, name
    return sorted(name for _, name in found.values())


SMALL = smallest()
QUICK = {"mobilenetv3-small", "fasternet-t0", "vit-ti", "regnetx-200mf"}
"""Those exported in the quick run: a convnet with gates, one with splits, a transformer."""


def quick_or_slow(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


def built(name, size, **settings):
    """A small network for images of that size, and two of them."""
    row = zoo.variant(name)
    if row.fixed_size:
        settings["image_size"] = size
    if "num_classes" in inspect.signature(_table._found(row.build)).parameters:
        settings.setdefault("num_classes", 7)
    frames = None if row.frames is None else min(row.frames, 16)
    return zoo.create(name, **settings), zoo.example(name, batch=2, image_size=size, frames=frames)


def tensors(out):
    return [out] if isinstance(out, torch.Tensor) else list(out)


def test_the_kept_counts_are_of_these_networks():
    assert sorted(KEPT) == zoo.names(), "run scripts/zoo.py"


def close(found, published):
    return abs(found / published - 1) <= 0.005


@pytest.mark.parametrize("name", zoo.names())
def test_counts_are_the_published_ones(name):
    row = zoo.variant(name)
    with torch.device("meta"):
        params = sum(p.numel() for p in zoo.create(name).parameters())
    assert params == KEPT[name][0], "the network changed: run scripts/zoo.py --all"
    pairs = zip(KEPT[name], (row.paper_params, row.paper_macs), strict=True)
    off = [(a, b) for a, b in pairs if b is not None and not close(a, b)]
    assert bool(off) == bool(row.why), f"off by more than 0.5 %: {off}; reason given: {row.why!r}"
    assert row.source


@pytest.mark.parametrize("name", quick_or_slow(zoo.names(), SMALL))
def test_macs_are_counted_with_every_operator_priced(name):
    assert _count.count(name) == KEPT[name], "the network changed: run scripts/zoo.py --all"


@pytest.mark.parametrize("name", SMALL)
def test_a_network_learns_from_any_size_it_takes(name):
    sizes = zoo.variant(name).sizes
    forward_and_backward(name, sizes[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_network_learns_at_other_sizes(name):
    sizes = zoo.variant(name).sizes
    assert len(sizes) == 3
    for size in sizes[1:]:
        forward_and_backward(name, size)


def forward_and_backward(name, size):
    torch.manual_seed(0)
    model, inputs = built(name, size)
    out = tensors(model.train()(*inputs))
    assert all(torch.isfinite(t).all() for t in out)
    sum(t.square().mean() for t in out).backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None]
    assert not lost, f"no gradient reaches {lost}"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", quick_or_slow(SMALL, QUICK))
def test_the_export_computes_the_same(name):
    torch.manual_seed(0)
    model, inputs = built(name, zoo.variant(name).sizes[0])
    with_statistics(model)
    with torch.inference_mode():
        want = tensors(model(*inputs))
    with torch.no_grad():
        program = torch.export.export(model, inputs)
        compared(tensors(program.module()(*inputs)), want)
        compared(run_onnx(program, inputs), want)


def run_onnx(program, inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    onnx = torch.onnx.export(program, (), dynamo=True, verbose=False)
    text = onnx.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(a) for a in session.run(None, feed)]


def compared(found, want):
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a / scale, b / scale, atol=1e-4, rtol=1e-4)


def has_features(name):
    return "features_only" in inspect.signature(zoo_class(name).__init__).parameters


def zoo_class(name):
    with torch.device("meta"):
        return type(zoo.create(name))


@pytest.mark.parametrize("name", [n for n in SMALL if has_features(n)])
def test_features_come_from_fine_to_coarse(name):
    found = zoo.feature_info(name)
    assert len(found) >= 3
    strides = [s for _, s in found]
    assert strides == sorted(strides)
    # Terminator keeps the resolution from end to end.
    assert strides[-1] >= 4 or name == "terminator"
    with torch.device("meta"):
        whole, bare = zoo.create(name), zoo.create(name, features_only=True)
    assert set(bare.state_dict()) - set(whole.state_dict()) <= {
        k for k in bare.state_dict() if k.startswith("norms.")
    }


RESTORE = {"DRCT", "MAXIM", "ViTok", "SdVae"}
"""Networks that give images back: no classes, and no features that another network would read."""
DENOISE = {"DiT", "DiCo"}
"""Networks told a class: it is an input, not an answer."""


@pytest.mark.parametrize("name", SMALL)
def test_the_settings_that_everybody_expects(name):
    kind = zoo_class(name)
    known = {
        *inspect.signature(kind.__init__).parameters,
        *inspect.signature(_table._found(zoo.variant(name).build)).parameters,
    }
    assert "in_channels" in known
    assert ("num_classes" in known) == (kind.__name__ not in RESTORE)
    # H-DenseUNet is two networks, each of which has features of its own.
    assert ("features_only" in known) == (kind.__name__ not in RESTORE | DENOISE | {"HDenseUNet"})


@pytest.mark.parametrize("name", quick_or_slow(SMALL, QUICK))
def test_other_channels_and_classes(name):
    row = zoo.variant(name)
    # Terminator's norms have 12 groups of four times the channels.
    channels = 6 if name == "terminator" else 2
    with torch.device("meta"):
        size = {"image_size": row.sizes[0]} if row.fixed_size else {}
        classes = {} if zoo_class(name).__name__ in RESTORE else {"num_classes": 7}
        model = zoo.create(name, in_channels=channels, **size, **classes).eval()
    inputs = zoo.example(name, batch=2, image_size=row.sizes[0], in_channels=channels)
    out = tensors(model(*(t.to("meta") for t in inputs)))
    assert all(t.shape[0] == 2 for t in out)
    if type(model).__name__ not in {*RESTORE, *DENOISE, "LeYOLO"}:
        assert 7 in out[0].shape[1:]


@pytest.mark.parametrize("name", quick_or_slow(SMALL, QUICK))
def test_every_layout_names_every_tensor_once(name):
    with torch.device("meta"):
        model = zoo.create(name)
    for layout in weights.layouts(model):
        found = weights.names(model, layout)
        assert set(found) == set(model.state_dict())
        assert len(set(found.values())) == len(found), layout


@pytest.mark.parametrize("name", quick_or_slow(SMALL, QUICK))
def test_any_side_is_taken_or_refused_naming_those_that_can_be(name):
    with torch.device("meta"):
        model = zoo.create(name).eval()
    for side in (1, 30, 33):
        inputs = [t.to("meta") for t in zoo.example(name, image_size=side)]
        refused = None
        try:
            model(*inputs)
        except InputError as e:
            refused = str(e)
        if refused is not None:
            can, _, got = refused.partition(", got ")
            assert re.search(r"\d", can), f"{refused} names no size that can be taken"
            assert str(side) in got


def test_seed_fixes_the_weights():
    torch.manual_seed(3)
    one = zoo.create("mobilenetv2-0.35").state_dict()
    torch.manual_seed(3)
    two = zoo.create("mobilenetv2-0.35").state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("vit-ti", 64, "built for 224x224 images, got 64x64"),
        ("mixer-s16", 96, "build it with image_size=96"),
        ("densenet121", 28, "at least 29 pixels"),
        ("convnext-tiny", 31, "at least 32 pixels"),
        ("fasternet-t0", 31, "at least 32 pixels"),
        ("vovnet27-slim", 28, "at least 29 pixels"),
        ("swin-tiny", 3, "at least 4 pixels"),
        ("unet", 570, "use 572"),
        ("unet", 100, "use 188"),
        ("dit-s8", 16, "built for 32x32"),
    ],
)
def test_a_size_it_cannot_take_is_refused_naming_one_it_can(name, size, said):
    with torch.device("meta"):
        model = zoo.create(name).eval()
        inputs = [t.to("meta") for t in zoo.example(name, image_size=size)]
        with pytest.raises(InputError, match=said):
            model(*inputs)


@pytest.mark.parametrize("name", ["vit-ti", "mixer-s16", "dit-s2"])
def test_a_patch_that_does_not_divide_is_refused(name):
    with torch.device("meta"), pytest.raises(InputError, match="does not divide the image_size 99"):
        zoo.create(name, image_size=99)


def test_unknown_network_names_the_nearest():
    with pytest.raises(UnknownName, match="mobilenetv2"):
        zoo.create("mobilenet2")
    for ask in (zoo.example, zoo.row, zoo.feature_info):
        with pytest.raises(UnknownName, match="resnet50"):
            ask("resnet-50")


def test_unknown_setting_is_refused():
    with pytest.raises(InputError, match="depth_multiplier"):
        zoo.create("mobilenetv2", depth_multiplier=2)


@pytest.mark.parametrize(
    ("build", "wrong"),
    [("resnet:resnet", {"layers": 51}), ("vit:vit", {"variant": "xs"}),
     ("swin:swin", {"variant": "large"}), ("mobilenetv3:MobileNetV3", {"variant": "medium"})],
)  # fmt: skip
def test_unknown_variant_names_those_there_are(build, wrong):
    with pytest.raises(UnknownName):
        _table._found(build)(**wrong)
