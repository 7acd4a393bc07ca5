"""What every network of the zoo shares: feature maps on the way, and sizes it cannot take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from paredown.errors import InputError


def tapped(layers: Iterable[nn.Module], x: Tensor, at: Iterable[int]) -> list[Tensor]:
    """Run layers in turn; the outputs of those whose positions are in ``at``."""
    wanted, maps = frozenset(at), []
    for i, layer in enumerate(layers):
        x = layer(x)
        if i in wanted:
            maps.append(x)
    return maps


def quarters(depth: int, *, features_only: bool) -> list[int]:
    """Positions of the blocks that end the quarters of a chain of ``depth`` blocks.

    Raises ``InputError`` where ``features_only`` asks for four maps of fewer blocks.
    """
    if features_only and depth < 4:
        raise InputError(f"features_only gives maps at four depths: {depth} blocks are too few")
    return [depth * (i + 1) // 4 - 1 for i in range(4)]


def token_maps(
    blocks: Iterable[nn.Module], x: Tensor, at: Iterable[int], side: int, *, prefix: int = 0
) -> list[Tensor]:
    """`tapped` tokens ``(batch, prefix + side^2, channels)`` as square maps, channels second."""
    return [m[:, prefix:].mT.unflatten(2, (side, side)) for m in tapped(blocks, x, at)]


def before_halvings(strides: Sequence[int]) -> list[int]:
    """Positions of the last layer at each resolution, from the layers' strides.

    What ``features_only`` gives of a chain of blocks: the map before each strided one, and the
    last.
    """
    return [i - 1 for i, s in enumerate(strides) if s > 1 and i] + [len(strides) - 1]


def need_size(
    x: Tensor, *, network: str, multiple: int = 1, minimum: int = 1, exactly: int | None = None
) -> None:
    """Refuse images that a network cannot take, naming those it can (``InputError``).

    ``x`` is ``(batch, channels, h, w)``; h and w must both be ``exactly`` that, or else at least
    ``minimum`` and multiples of ``multiple``.
    """
    h, w = x.shape[-2:]
    if exactly is not None:
        if h != exactly or w != exactly:
            raise InputError(
                f"{network} was built for {exactly}x{exactly} images, got {h}x{w}: "
                f"build it with image_size={h}, or resize the images"
            )
        return
    if h < minimum or w < minimum or h % multiple or w % multiple:
        sizes = f"at least {minimum} pixels" if minimum > 1 else ""
        steps = f"multiples of {multiple}" if multiple > 1 else ""
        can = " and ".join(t for t in (steps, sizes) if t)
        raise InputError(f"{network} takes heights and widths that are {can}, got {h}x{w}")


def need_volume(
    x: Tensor,
    *,
    network: str,
    multiple: tuple[int, int, int] = (1, 1, 1),
    minimum: tuple[int, int, int] = (1, 1, 1),
) -> None:
    """Refuse clips and volumes that a network cannot take, naming those it can (``InputError``).

    ``x`` is ``(batch, channels, d, h, w)`` with d frames or slices; each side must be at least its
    ``minimum`` and a multiple of its ``multiple``.
    """
    if x.ndim != 5:
        raise InputError(
            f"{network} takes (batch, channels, depth, height, width), got {tuple(x.shape)}"
        )
    sides = tuple(x.shape[2:])
    if any(s < m or s % k for s, m, k in zip(sides, minimum, multiple, strict=True)):
        can = " and ".join(
            f"{name} of at least {m} in steps of {k}" if k > 1 else f"{name} of at least {m}"
            for name, m, k in zip(("depth", "height", "width"), minimum, multiple, strict=True)
        )
        raise InputError(f"{network} takes a {can}, got {'x'.join(map(str, sides))}")
