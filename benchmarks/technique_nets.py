"""The six networks of the techniques' benchmark: `benchmarks/technique_nets.py:mobile` and so on.

    python benchmarks/technique_nets.py residual encoder decoder generator   (trains and stores)

`mobile` and `vit` are networks of `benchmarks/nets.py`. Channels after the norms of the three
transformers are scaled by factors that the next weights undo, as large trained transformers have
them by themselves: the function stays, ranges do not (see `_vits.spread`, `_text.inject`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import technique_tasks as tasks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.conv import ConvNormAct
from paredown.nn.transformer import EncoderBlock
from paredown.papers.cards import _text
from paredown.quality import judge
from paredown.workload import TrainingData, Workload
from paredown.workloads import clutter, digits, nets
from paredown.workloads.fit import Batches, Loss, Phase, fit
from paredown.zoo.resnet import ResNet

FOLDER = Path(__file__).with_name("nets")
SIZE, NOISE, PIECES = 48, 0.3, 3
JUDGED_NOISE = 0.75
"""What the residual network is used under: more noise than it was trained for."""
SPREAD, SPREAD_ENCODER = 4.0, 8.0
"""Factors of the channels of a transformer's norms lie between its inverse and itself."""


class TextEncoder(nn.Module):
    """Bytes ``(batch, tokens)`` to logits ``(batch, classes)``: pre-norm blocks, then the mean."""

    def __init__(self, width: int = 128, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.place = nn.Parameter(torch.randn(tasks.LENGTH, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(tasks.SOURCES))
        nn.init.normal_(self.embed.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids) + self.place)).mean(1))


class Generator(nn.Module):
    """A code with its class ``(batch, 42)`` to a digit ``(batch, 1, 32, 32)`` in -1..1."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Linear(tasks.CODE + tasks.CLASSES, width * 16)
        self.stages = nn.ModuleList(ConvNormAct(width >> i, width >> (i + 1), 3) for i in range(3))
        self.out = nn.Conv2d(width >> 3, 1, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        x = self.stem(code).relu().reshape(-1, self.width, 4, 4)
        for stage in self.stages:
            x = stage(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.out(x).tanh()


class Autoencoder(nn.Module):
    """What trains the generator: a conditional variational autoencoder (Kingma & Welling 2014)."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = nn.Sequential(
            nn.Linear(64 + tasks.CLASSES, 256), nn.ReLU(), nn.Linear(256, 2 * tasks.CODE)
        )

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        small = F.avg_pool2d(images, tasks.SIDE // 8).flatten(1)
        mean, log = self.encoder(torch.cat((small, classes), 1)).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log / 2).exp()
        return self.generator(torch.cat((code, classes), 1)), mean, log

    @staticmethod
    def loss(out: tuple[Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
        drawn, mean, log = out
        away = (drawn - images).square().sum((1, 2, 3)).mean() / 16
        return away + 0.5 * (mean.square() + log.exp() - 1 - log).sum(1).mean()


class Drawn:
    """Training scans, distorted, with their classes, for the autoencoder."""

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        source = digits.Epochs(*digits.split("train", tasks.SIDE), strength=0.5)
        for (images,), labels in source():
            images = images.clamp(-1, 1)
            yield (images, F.one_hot(labels, tasks.CLASSES).float()), images


@dataclass(frozen=True)
class Trained:
    """How one of the four new networks is built and trained."""

    build: Callable[[], nn.Module]
    batches: Batches
    epochs: int
    rate: float
    work: Callable[[nn.Module], Workload]
    loss: Loss | None = None
    inside: Callable[[nn.Module], nn.Module] = lambda model: model
    """The module that is trained, around the network that is kept."""


def _scenes(model: nn.Module) -> Workload:
    """Digits among three pieces of others, 48 pixels, under `JUDGED_NOISE`."""

    def judged(part: str, copies: int) -> digits.Accuracy:
        return digits.Accuracy(
            *clutter.scenes(part, SIZE, copies, noise=JUDGED_NOISE, pieces=PIECES)
        )

    validation, train = judged("validation", 3), judged("train", 1)
    return Workload(
        model.eval(),
        (validation.images[:1].clone(),),
        name="residual",
        calibration=list(train.images[: tasks.CALIBRATION].split(1)),
        evaluate=validation,
        verify=judged("held-out", 1),
        training=TrainingData(
            clutter.Scenes(SIZE, noise=JUDGED_NOISE, pieces=PIECES), F.cross_entropy
        ),
        scale=1.0,
    )


NEW: dict[str, Trained] = {
    "residual": Trained(
        lambda: ResNet((2, 2, 2), num_classes=10, in_channels=1, width=32),
        clutter.Scenes(SIZE, noise=NOISE, pieces=PIECES),
        30,
        4e-3,
        _scenes,
    ),
    "encoder": Trained(TextEncoder, tasks.Windows(), 20, 2e-3, tasks.which_source),
    "decoder": Trained(
        lambda: _text.Decoder(128, layers=3),
        _text.batches("reference", 20, 48),
        20,
        3e-3,
        tasks.next_byte,
        _text.nats,
    ),
    "generator": Trained(
        Generator,
        Drawn(),
        25,
        3e-3,
        tasks.drawn_digits,
        Autoencoder.loss,
        lambda model: Autoencoder(model),  # type: ignore[arg-type]
    ),
}


@torch.no_grad()
def spread(
    model: nn.Module, pairs: Sequence[tuple[str, str]], largest: float = SPREAD
) -> nn.Module:
    """Scale channels after each block's norms by ``largest ** u``, u uniform in -1..1, in place.

    ``pairs`` name a norm and the linear that reads it inside each of ``blocks``; the linear's
    columns are divided by as much.
    """
    generator = torch.Generator().manual_seed(0)
    for block in model.get_submodule("blocks").children():
        for norm, linear in pairs:
            one, other = block.get_submodule(norm), block.get_submodule(linear)
            draw = torch.rand(one.get_parameter("weight").shape, generator=generator)
            factor = largest ** (2 * draw - 1)
            one.get_parameter("weight").mul_(factor)
            one.get_parameter("bias").mul_(factor)
            other.get_parameter("weight").div_(factor)
    return model


ENCODER = (("norm1", "attn.qkv"), ("norm2", "mlp.fc1"))
DECODER = (("norm1", "attn.qkv"), ("norm2", "fc1"))


def _stored(name: str) -> nn.Module:
    return nets.restore(NEW[name].build(), FOLDER / f"technique-{name}.safetensors")


def mobile() -> Workload:
    """MobileNetV2 at half width, digits in clutter, 96 pixels."""
    return replace(nets.workload("mobilenetv2", FOLDER), name="mobile")


def residual() -> Workload:
    """A ResNet of three stages; see `_scenes`."""
    return _scenes(_stored("residual"))


def vit() -> Workload:
    """A ViT of six blocks on digits distorted as in its training, 64 pixels."""
    work = nets.workload("vit", FOLDER)
    generator = torch.Generator().manual_seed(14)

    def distorted(part: str, copies: int) -> digits.Accuracy:
        images, labels = digits.split(part, 64)
        found = [digits.augment(images, generator) for _ in range(copies)]
        return digits.Accuracy(torch.cat(found), labels.repeat(copies))

    spread(work.model, ENCODER)
    return replace(work, evaluate=distorted("validation", 3), verify=distorted("held-out", 1))


def encoder() -> Workload:
    """Three blocks of width 128: whose source 96 bytes are of."""
    return tasks.which_source(spread(_stored("encoder"), ENCODER, SPREAD_ENCODER))


def decoder() -> Workload:
    """Three causal blocks of width 128: the next byte of English."""
    return tasks.next_byte(spread(_stored("decoder"), DECODER))


def generator() -> Workload:
    """Digits of a class asked for, drawn from a code by three convolutions."""
    return tasks.drawn_digits(_stored("generator"))


NETWORKS = {f.__name__: f for f in (mobile, residual, vit, encoder, decoder, generator)}


def train(name: str, share: float, bf16: bool) -> dict[str, object]:
    """Train one, store it, judge what was stored."""
    how, start = NEW[name], time.monotonic()
    torch.manual_seed(0)
    model = how.build()

    def say(epoch: int, epochs: int, loss: float) -> None:
        if epoch % 5 == 0:
            seconds = time.monotonic() - start
            print(f"{name} {epoch}/{epochs} loss {loss:.3f} {seconds:.0f} s", flush=True)

    phases = [Phase(how.batches, max(1, round(how.epochs * share)))]
    fit(
        how.inside(model),
        phases,
        rate=how.rate,
        loss=how.loss,
        average=50,
        bf16=bf16,
        progress=say,
    )
    nets.store(model, FOLDER / f"technique-{name}.safetensors")
    work = NETWORKS[name]()
    return {
        "params": sum(p.numel() for p in work.model.parameters()),
        "held_out": round(float(judge(work.verify, work.model).mean()), 4),
        "validation": round(float(judge(work.evaluate, work.model).mean()), 4),
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NEW))
    parser.add_argument("--share", type=float, default=1.0, help="share of the epochs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    notes = FOLDER / "technique-nets.json"
    known = json.loads(notes.read_text()) if notes.exists() else {}
    for name in options.names:
        known[name] = train(name, options.share, options.bf16)
        print(name, known[name], flush=True)
        notes.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
