"""U-Net's sizes, DiT's beginnings and the samplers: exact where the papers are."""

from itertools import pairwise

import pytest
import torch

from paredown import zoo
from paredown.errors import InputError
from paredown.nn.diffusion import Diffusion, guided
from paredown.zoo.dit import DiT
from paredown.zoo.unet import UNet


def test_unet_has_the_papers_sizes():
    with torch.device("meta"):
        assert zoo.create("unet")(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        padded = UNet(num_classes=3, in_channels=2, padded=True, norm=True)
        assert padded(torch.empty(1, 2, 64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_unpadded_unet_takes_just_the_sizes_it_says(depth):
    net = UNet(width=2, depth=depth).eval()
    fits, refused = [], []
    for side in range(1, 120):
        try:
            fits.append((side, net(torch.zeros(1, 1, side, side)).shape[-1]))
        except InputError:
            refused.append(side)
    assert fits
    assert all(out >= 1 for _, out in fits)
    assert {b - a for (a, _), (b, _) in pairwise(fits)} == {2**depth}
    # Just below the first there is nothing: the same network cut by hand has no pixel left.
    assert fits[0][0] - 2**depth in refused


def test_an_unpadded_score_sees_what_the_padded_sees_inside():
    torch.manual_seed(0)
    bare, padded = UNet(width=2, depth=1).eval(), UNet(width=2, depth=1, padded=True).eval()
    padded.load_state_dict(bare.state_dict())
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        small, whole = bare(x), padded(x)
    cut = (64 - small.shape[-1]) // 2
    inside = whole[:, :, cut:-cut, cut:-cut]
    torch.testing.assert_close(small, inside, atol=1e-5, rtol=1e-5)


def small_dit(**settings):
    return DiT(32, 2, 4, num_classes=5, in_channels=3, image_size=8, patch=2, **settings)


def test_a_new_dit_is_the_identity_in_its_blocks_and_zero_at_its_end():
    torch.manual_seed(0)
    net = small_dit().eval()
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 4])
    condition, tokens = net.time(t) + net.classes(y), net.embed(x) + net.position
    with torch.no_grad():
        assert torch.equal(net.blocks[0](tokens, condition), tokens)
        assert net(x, t, y).shape == (2, 6, 8, 8)
        assert net(x, t, y).abs().max() == 0


def test_patches_go_back_to_their_places():
    net = small_dit(learn_sigma=False)
    x = torch.arange(3 * 64.0).reshape(1, 3, 8, 8)
    cut = x.reshape(1, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(1, 16, 12)
    assert torch.equal(net._image(cut), x)


def test_training_drops_classes_at_the_rate_asked():
    torch.manual_seed(0)
    net, seen = small_dit(class_dropout=0.5), []
    net.classes.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    y = torch.zeros(400, dtype=torch.long)
    net.train()(torch.zeros(400, 3, 8, 8), torch.zeros(400), y)
    share = (seen[0] == 5).float().mean().item()
    # 400 draws at one half: the standard deviation is 0.025.
    assert share == pytest.approx(0.5, abs=0.1)
    with pytest.raises(InputError, match="probability"):
        small_dit(class_dropout=1.5)


def test_noise_and_back():
    torch.manual_seed(0)
    process = Diffusion()
    x, noise = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4).double()
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(process.clean(process.noised(x, t, noise), t, noise), x)
    # Variance preserving: signal and noise shares sum to one.
    assert process.alpha_bar[0] == pytest.approx(1 - 1e-4)
    assert process.alpha_bar[-1] < 1e-4


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_a_perfect_denoiser_gives_the_image_in_any_number_of_steps(steps):
    torch.manual_seed(0)
    process = Diffusion()
    clean = torch.randn(2, 1, 3, 3, dtype=torch.float64)

    def knows(x, t):
        left = process.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (x - left.sqrt() * clean) / (1 - left).sqrt()

    noise = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    out = process.sample(knows, noise, steps=steps)
    torch.testing.assert_close(out, clean, atol=1e-8, rtol=1e-8)
    out = process.sample(knows, noise, steps=steps, eta=1.0)
    torch.testing.assert_close(out, clean, atol=1e-8, rtol=1e-8)


def test_guidance_is_linear_in_its_scale():
    def one(x, t):
        return x

    def two(x, t):
        return 3 * x

    x = torch.ones(1, 1, 2, 2)
    assert torch.equal(guided(two, one, 1.0)(x, x), 3 * x)
    assert torch.equal(guided(two, one, 0.0)(x, x), x)
    assert torch.equal(guided(two, one, 2.5)(x, x), 6 * x)


def test_dit_samples_reproducibly_with_and_without_guidance():
    torch.manual_seed(0)
    net = small_dit().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    noise, y = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    plain = net.sample(noise, y, steps=4)
    assert plain.shape == noise.shape
    assert torch.equal(plain, net.sample(noise, y, steps=4))
    assert not torch.equal(plain, net.sample(noise, y, steps=4, guidance=3.0))
    with pytest.raises(InputError, match="1 to 1000 steps"):
        net.sample(noise, y, steps=1001)
    with pytest.raises(InputError, match="class_dropout"):
        small_dit(class_dropout=0.0).sample(noise, y, guidance=2.0)
