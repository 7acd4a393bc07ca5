"""P3D ResNet: units against their equations, frames apart and together, kernels that cost 12/27."""

import pytest
import torch

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.graph.capture import capture
from paredown.nn.conv3d import ConvNormAct3d
from paredown.workload import Workload
from paredown.zoo.p3d_resnet import P3DResNet, PseudoConv3d, p3d_resnet


def unit(wiring, channels=6):
    torch.manual_seed(0)
    return PseudoConv3d(channels, wiring).eval()


def still(made):
    """The unit with a temporal tap (0, 1, 0) and norms that change nothing."""
    with torch.no_grad():
        weight = made.temporal.conv.weight.zero_()
        weight[:, :, 1, 0, 0] = torch.eye(weight.shape[0])
        made.temporal.norm.running_var.fill_(1 - made.temporal.norm.eps)
    return made


@pytest.mark.parametrize(("wiring", "times"), [("A", 1), ("C", 2)])
def test_with_an_identity_in_time_it_is_the_2d_unit_frame_by_frame(wiring, times):
    made = still(unit(wiring))
    x = torch.randn(2, 6, 5, 9, 7)
    with torch.inference_mode():
        found = made(x)
        flat = made.spatial(x.transpose(1, 2).reshape(10, 6, 1, 9, 7))
        want = times * flat.reshape(2, 5, 6, 9, 7).transpose(1, 2)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_the_parallel_unit_is_the_sum_of_its_parts():
    made = unit("B")
    x = torch.randn(1, 6, 4, 5, 5)
    with torch.inference_mode():
        torch.testing.assert_close(made(x), made.spatial(x) + made.temporal(x))
    one, other = unit("A"), unit("C")
    other.load_state_dict(one.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(other(x), one(x) + one.spatial(x))


def kernel_macs(module, x):
    graph = capture(Workload(module.eval(), (x,)))
    assert not graph.unpriced
    return sum(n.macs or 0 for n in graph.nodes)


@pytest.mark.parametrize("wiring", ["A", "B", "C"])
def test_kernels_cost_12_parts_of_27(wiring):
    x = torch.randn(1, 8, 4, 6, 6)
    whole, apart = ConvNormAct3d(8, 8, 3), unit(wiring, 8)
    weights = [sum(p.numel() for p in m.parameters() if p.ndim == 5) for m in (apart, whole)]
    assert weights[0] / weights[1] == 12 / 27
    assert kernel_macs(apart, x) / kernel_macs(whole, x) == 12 / 27


def small(**settings):
    return P3DResNet((1, 2, 1, 1), 5, width=8, **settings)


def test_wirings_are_cycled_through_the_blocks():
    def wired(net):
        return "".join(m.wiring for m in net.modules() if isinstance(m, PseudoConv3d))

    assert wired(small()) == "ABCA"
    assert wired(small(wirings="B")) == "BBBB"
    with torch.device("meta"):
        assert wired(p3d_resnet(63)) == "ABC" * 4 + "A"


def test_sixteen_frames_end_as_one_and_more_are_averaged():
    torch.manual_seed(0)
    net, bare = small().eval(), small(features_only=True).eval()
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if "head" not in k})
    clip = torch.randn(2, 3, 32, 32, 32)
    with torch.inference_mode():
        maps = bare(clip[:, :, :16])
        assert [m.shape[2] for m in maps] == [8, 4, 2, 1]
        assert [m.shape[-1] for m in maps] == [8, 4, 2, 1]
        two = bare(clip)[-1]
        assert two.shape == (2, 256, 2, 1, 1)
        torch.testing.assert_close(net(clip), net.head(two.mean((2, 3, 4))))


def test_frames_of_different_clips_do_not_mix():
    torch.manual_seed(0)
    net = small().eval()
    clips = torch.randn(3, 3, 33, 20, 24)
    with torch.inference_mode():
        together = net(clips)
        apart = torch.cat([net(c[None]) for c in clips])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_order_of_frames_matters():
    torch.manual_seed(0)
    net = small().eval()
    clip = torch.randn(1, 3, 16, 24, 24)
    with torch.inference_mode():
        assert not torch.allclose(net(clip), net(clip.flip(2)), atol=1e-5)


def test_what_it_cannot_take_is_refused():
    with pytest.raises(InputError, match=r"depth of at least 16.*got 15x32x32"):
        small()(torch.zeros(1, 3, 15, 32, 32))
    with pytest.raises(InputError, match="wirings are A, B or C, got D"):
        small(wirings=("A", "D"))
    with pytest.raises(UnknownName, match="199"):
        zoo.create("p3d63", layers=198)
