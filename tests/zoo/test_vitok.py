"""ViTok: the code's size, positions that are relative, counts in closed form, the two halves."""

import pytest
import torch
import torch.nn.functional as F

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.nn.rotary import RotaryAttention, axial_rotation, rotated
from paredown.zoo.sd_vae import SdVae
from paredown.zoo.vitok import ViTok, code_floats, counted_macs, loss
from paredown.zoo.weights import load_weights, names

TINY = (24, 2, 2)


def tiny(**settings):
    torch.manual_seed(0)
    return ViTok(TINY, (36, 3, 3), 4, **{"patch": 4, **settings})


@pytest.mark.parametrize(("patch", "latent"), [(8, 4), (16, 16), (32, 64)])
def test_half_the_patch_and_a_quarter_of_the_channels_is_the_same_code(patch, latent):
    floats = code_floats(256, patch=patch, latent=latent)
    assert floats == code_floats(256, patch=patch // 2, latent=latent // 4) == 4096
    net, x = tiny(), torch.zeros(1, 3, 12, 20)
    mean, logvar = net.eval().encode(x)
    assert mean.shape == logvar.shape == (1, 15, 4)
    assert net.grid(x) == (1, 3, 5)


def test_counts_in_closed_form_are_the_tables():
    for name, macs in (("vitok-s-b-16", 34.8e9), ("vitok-s-l-16", 113.4e9)):
        found = counted_macs(name[6:9], 256)
        assert found == zoo._count.rows()[zoo.names().index(name)].macs
        assert found == pytest.approx(macs, rel=2e-3)
    clip = counted_macs("s-b", 128, frames=16, patch=8, tubelet=4)
    assert clip == counted_macs("s-b", 512), "a clip of 4 x 16 x 16 tokens is a 512-pixel image"


def test_work_beside_the_convolutional_auto_encoder():
    kept = {r.name: r.macs for r in zoo.rows()}
    assert 2 <= kept["sd-vae"] / kept["vitok-s-b-16"] <= 15


def test_an_image_is_a_clip_of_one_frame():
    net, x = tiny().eval(), torch.randn(2, 3, 8, 12)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), net(x.unsqueeze(2)).squeeze(2))


@pytest.mark.parametrize("grid", [(1, 3, 5), (4, 2, 2)])
def test_scores_depend_on_offsets_alone(grid):
    torch.manual_seed(0)
    far = tuple(n + 2 for n in grid)
    q, k = torch.randn(8), torch.randn(8)
    turned = []
    for g in (grid, far):
        cos, sin = axial_rotation(g, 8)
        at = [cos.unflatten(0, g), sin.unflatten(0, g)]
        shift = 0 if g is grid else 1
        one = [t[shift, shift, shift] for t in at]
        two = [t[shift, shift + 1, shift + 1] for t in at]
        turned.append(rotated(q, tuple(one)) @ rotated(k, tuple(two)))
    torch.testing.assert_close(turned[0], turned[1])
    assert abs(float(turned[0] - q @ k)) > 1e-3


def test_rotation_keeps_lengths_and_its_axes_share_the_pairs():
    x = torch.randn(1, 2, 6, 12)
    cos, sin = axial_rotation((1, 2, 3), 12)
    torch.testing.assert_close(rotated(x, (cos, sin)).norm(dim=-1), x.norm(dim=-1))
    # Of 32 pairs time has 10; with one frame these are not turned.
    assert (axial_rotation((1, 4, 4), 64)[1][:, :10] == 0).all()
    moved = (axial_rotation((2, 4, 4), 64)[1].abs().amax(0) > 0).sum()
    assert moved == 32
    with pytest.raises(InputError, match="even head of at least 6"):
        axial_rotation((1, 2, 3), 4)


def test_rotary_attention_in_a_loop():
    torch.manual_seed(0)
    attn, x = RotaryAttention(8, 2), torch.randn(1, 3, 8)
    cos, sin = axial_rotation((3,), 4)
    q, k, v = attn.qkv(x).reshape(3, 3, 2, 4).unbind(1)
    out = torch.zeros(3, 2, 4)

    def turn(t, i):
        a, b = t[:2], t[2:]
        return torch.cat((a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]))

    for h in range(2):
        for i in range(3):
            scores = torch.stack([turn(q[i, h], i) @ turn(k[j, h], j) for j in range(3)]) / 2
            out[i, h] = scores.softmax(0) @ v[:, h]
    torch.testing.assert_close(attn(x, (cos, sin))[0], attn.proj(out.flatten(1)))


def test_training_samples_around_the_mean_and_the_loss_is_the_papers():
    net, x = tiny().train(), torch.randn(2, 3, 8, 8)
    pixels, mean, logvar = net(x)
    assert pixels.shape == x.shape
    want = F.mse_loss(pixels, x)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1))
    found = loss((pixels, mean, logvar), x, kl=0.5)
    torch.testing.assert_close(found, want + 0.5 * divergence.mean())
    near = loss((pixels, mean, logvar), x, kl=0, perceptual=lambda a, b: (a - b).abs().mean())
    torch.testing.assert_close(near, want + (pixels - x).abs().mean())


def test_the_second_stage_trains_the_decoder_alone():
    net = tiny()
    net.freeze_encoder()
    learns = {n.partition(".")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert learns == {"widen", "decoder", "pixels"}


def test_what_cannot_be_taken_is_refused():
    net = tiny(tubelet=2)
    with pytest.raises(InputError, match="tubelets of 2 frames takes clips"):
        net(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="depth of at least 2 in steps of 2"):
        net(torch.zeros(1, 3, 3, 8, 8))
    with pytest.raises(InputError, match="width of at least 4 in steps of 4"):
        tiny()(torch.zeros(1, 3, 8, 10))
    with pytest.raises(UnknownName, match="size of ViTok"):
        zoo.create("vitok-s-b-16", variant="s-xl")
    with pytest.raises(InputError, match="multiples of 4"):
        SdVae(widths=(8, 8, 8))(torch.zeros(1, 3, 6, 8))


def test_it_learns_to_repeat_what_it_sees():
    net = tiny().train()
    x = torch.randn(8, 3, 1, 1).expand(-1, -1, 8, 8)
    steps = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        steps.zero_grad()
        loss(net(x), x).backward()
        steps.step()
    with torch.inference_mode():
        assert F.mse_loss(net.eval()(x), x) < 0.05 * x.square().mean()


def test_released_names():
    with torch.device("meta"):
        found = names(tiny(), "authors")
        other = names(zoo.create("sd-vae"), "diffusers")
    assert found["embed.weight"] == "tubelet_embed.proj.weight"
    assert found["encoder.blocks.1.mlp.down.bias"] == "encoder.blocks.1.mlp.fc3.bias"
    assert found["decoder.norm.weight"] == "decoder.norm.weight"
    assert other["encoder.1.conv2.weight"] == "encoder.down_blocks.0.resnets.0.conv2.weight"
    assert other["encoder.4.skip.bias"] == "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"
    assert other["encoder.13.q.weight"] == "encoder.mid_block.attentions.0.to_q.weight"
    assert other["encoder.14.norm1.bias"] == "encoder.mid_block.resnets.1.norm1.bias"
    assert other["decoder.7.conv.weight"] == "decoder.up_blocks.0.upsamplers.0.conv.weight"
    assert other["decoder.18.conv1.weight"] == "decoder.up_blocks.3.resnets.2.conv1.weight"
    assert other["decoder.21.weight"] == "decoder.conv_out.weight"
    assert len(set(found.values())) == len(found)
    assert len(set(other.values())) == len(other)
    one, two = tiny(), tiny()
    load_weights(two, {found[k]: v + 1 for k, v in one.state_dict().items()})
    assert torch.equal(two.widen.weight, one.widen.weight + 1)
