"""What factorisations share: which layers split, the decomposition, the two factors put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import CaptureError, NotApplicable
from paredown.graph.dependency import CONV
from paredown.graph.graph import Graph
from paredown.runtime.forms_lowrank import LowRankConv, LowRankLinear
from paredown.technique import Rewrite, Sites
from paredown.techniques.quantize.common import Usage, is_conv1d, site
from paredown.workload import Workload

THIN = 4
"""Below this break-even rank two layers only add an operator."""

FACTORS = ("first", "second")


def factor_sites(
    technique: Rewrite,
    workload: Workload,
    graph: Graph,
    refuse: Callable[[nn.Module], str | None],
) -> Sites:
    """Linear layers and plain convolutions, ``path:weight``, that ``refuse`` lets pass.

    Thin ones, grouped convolutions and those in whose place the model's own code wants the original
    layer are refused.
    """
    usage = Usage(workload, graph)
    ok: dict[str, str] = {}
    refused: dict[str, str] = {}
    for path, module in workload.model.named_modules():
        if not (isinstance(module, (nn.Linear, *CONV)) or is_conv1d(module)):
            continue
        name = site(path, workload, "weight")
        reason = usage.why_not(module) or _thin(module) or refuse(module)
        if reason is None:
            ok[name] = path
        else:
            refused[name] = reason
    sites = Sites(tuple(s for s in ok if s not in refused), refused)
    return _that_run(technique, graph, sites)


def _thin(module: nn.Module) -> str | None:
    if isinstance(module, CONV) and module.groups > 1:
        return "grouped convolutions are already thin"
    rows, columns = shape_of(module)
    if break_even(rows, columns) < THIN:
        return f"a {rows} x {columns} matrix is already thin"
    return None


def _that_run(technique: Rewrite, graph: Graph, sites: Sites) -> Sites:
    """Sites without those in whose place the model's own code wants the original layer."""
    if not sites.ok:
        return sites
    try:
        technique.preview(graph, sites)
    except (CaptureError, AttributeError):
        pass
    else:
        return sites
    good: list[str] = []
    refused = dict(sites.refused)
    for one in sites.ok:
        try:
            technique.preview(graph, Sites((one,), {}, sites.overrides))
        except (CaptureError, AttributeError) as e:
            refused[one] = f"the model's code needs the layer itself: {e}"
        else:
            good.append(one)
    return Sites(tuple(good), refused, sites.overrides)


def factors_in(editor: Editor, path: str, first: Tensor, second: Tensor) -> None:
    """Swap the layer at ``path`` for ``first`` (rank, columns), then ``second`` (rows, rank)."""
    module: Any = editor.model.get_submodule(path)
    bias, rank = module.bias, len(first)
    dtype = str(module.weight.dtype).removeprefix("torch.")
    editor.swap(path, _form(module, rank, dtype))
    if isinstance(module, CONV):
        first = first.reshape(rank, *module.weight.shape[1:])
        second = second.reshape(*second.shape, *(1 for _ in module.kernel_size))
    editor.tensor(f"{path}.first", "weight", first)
    editor.tensor(f"{path}.second", "weight", second)
    if bias is not None:
        editor.tensor(f"{path}.second", "bias", bias.detach())


def break_even(rows: int, columns: int) -> float:
    """The rank at which two factors cost as much as one matrix."""
    return rows * columns / (rows + columns)


def limit(share: float, rows: int, columns: int) -> int:
    """The rank that keeps a share of a matrix's weights, at least 1."""
    return max(1, int(share * break_even(rows, columns)))


def factors(weight: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``(left, values, right)`` with ``left * values @ right = weight``, best rank first.

    With a covariance C of the inputs (columns, columns) the decomposition is that of ``weight @
    S``, S the Cholesky factor of C, so truncation has the least error of outputs.
    """
    w = weight.double()
    if covariance is None:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return u.float(), s.float(), v.float()
    root = _root(covariance.double())
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    back = torch.linalg.solve_triangular(root, v, upper=False, left=False)
    return u.float(), s.float(), back.float()


def _root(covariance: Tensor) -> Tensor:
    """Cholesky factor, damped by as little as makes the matrix positive definite.

    The sums are float32: a dominant direction leaves errors above any fixed small damping.
    Raises ``NotApplicable`` where the inputs were not finite.
    """
    eye = torch.eye(len(covariance), dtype=torch.float64)
    mean = float(covariance.diagonal().mean()) or 1e-6
    for exponent in range(-6, 1):
        root, info = torch.linalg.cholesky_ex(covariance + 10.0**exponent * mean * eye)
        if int(info) == 0:
            return root
    raise NotApplicable("low-rank: the calibration inputs of a layer are not finite")


def _form(module: Any, rank: int, dtype: str) -> nn.Module:
    if not isinstance(module, CONV):
        rows, columns = shape_of(module)
        return LowRankLinear(columns, rows, rank, module.bias is not None, dtype)
    padding = module.padding if isinstance(module.padding, str) else list(module.padding)
    return LowRankConv(
        [int(n) for n in module.weight.shape],
        rank,
        list(module.stride),
        padding,
        list(module.dilation),
        module.bias is not None,
        module.padding_mode,
        dtype,
    )


def shape_of(module: Any) -> tuple[int, int]:
    """Rows and columns of a layer's matrix: outputs, and inputs times kernel positions."""
    shape = [int(n) for n in module.weight.shape]
    if is_conv1d(module):
        return shape[1], shape[0]
    columns = 1
    for n in shape[1:]:
        columns *= n
    return shape[0], columns


def fits(workload: Workload, path: str) -> bool:
    """Whether the module now at ``path`` is one that splits."""
    module = workload.model.get_submodule(path)
    return isinstance(module, (nn.Linear, *CONV)) or is_conv1d(module)
