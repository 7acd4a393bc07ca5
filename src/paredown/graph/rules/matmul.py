"""Matrix products: dense, integer, packed, grouped, sparse; and dense linear algebra."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from paredown.graph.graph import Tensor
from paredown.graph.rules.call import Call, Rule, Unpriceable, Work, numel


def _sparse(c: Call) -> Tensor | None:
    return next((t for t in c.ins if t.nnz is not None), None)


def _product(first: int, bias: bool) -> Rule:
    """``(..., m, k) @ (k, n)``: the left factor is argument ``first``, an added term is
    read too.
    """

    def rule(c: Call) -> Work:
        a, out = c.need(first), c.out
        sparse = _sparse(c)
        if sparse is not None:
            return _sparse_product(c, sparse, bias)
        return Work(macs=numel(out) * a.shape[-1], elementwise=numel(out) if bias else 0)

    return rule


def _sparse_product(c: Call, sparse: Tensor, bias: bool) -> Work:
    """Only stored values multiply: nnz x columns of the dense factor."""
    out = c.out
    if sparse.nnz is None or sparse.nnz < 0:
        raise Unpriceable("how many values the sparse factor stores is not known here")
    rows = sparse.shape[-2] if len(sparse.shape) > 1 else 1
    left = sparse.id == (c.need(1) if bias else c.need(0)).id
    columns = numel(out) // max(rows, 1) if left else out.shape[0]
    return Work(macs=sparse.nnz * columns, elementwise=numel(out) if bias else 0)


def linear(c: Call) -> Work:
    """``x (..., k) @ weight (n, k).T + bias``."""
    x, out = c.need(0), c.out
    bias = len(c.ins) > 2
    return Work(macs=numel(out) * x.shape[-1], elementwise=numel(out) if bias else 0)


def matmul(c: Call) -> Work:
    """Broadcasting product; a vector factor contracts its only dimension."""
    return Work(macs=numel(c.out) * c.need(0).shape[-1])


def dot(c: Call) -> Work:
    """Inner product of two vectors."""
    return Work(macs=numel(c.need(0)))


def outer(c: Call) -> Work:
    """Outer product: one multiplication per output."""
    return Work(macs=numel(c.out))


def addbmm(c: Call) -> Work:
    """Sum of a batch of products, onto a term."""
    a, b = c.need(1), c.need(2)
    return Work(macs=numel(a) * b.shape[-1], elementwise=numel(c.out))


def bilinear(c: Call) -> Work:
    """``x1 W x2`` for each output feature."""
    x1, x2, w = c.need(0), c.need(1), c.need(2)
    rows = prod(x1.shape[:-1])
    return Work(macs=rows * (numel(w) + w.shape[0] * x2.shape[-1]))


def grouped_mm(c: Call) -> Work:
    """Expert products: every row (or column) belongs to one group, so the work needs no routing.

    2-D x 3-D (rows grouped), 3-D x 2-D (columns grouped), 2-D x 2-D (the contraction is grouped)
    and 3-D x 3-D (an ordinary batch).
    """
    a, b = c.need(0), c.need(1)
    if len(a.shape) == 2 and len(b.shape) == 2:
        return Work(macs=a.shape[0] * a.shape[1] * b.shape[1])
    return Work(macs=numel(c.out) * a.shape[-1])


def int4_linear(c: Call) -> Work:
    """Packed int4 weights: each weight is also unpacked and scaled once."""
    x, out = c.need(0), c.out
    weights = out.shape[-1] * x.shape[-1]
    return Work(macs=numel(out) * x.shape[-1], elementwise=2 * weights)


def int8_weight_linear(c: Call) -> Work:
    """int8 weights, float activations, one scale per output."""
    x, out = c.need(0), c.out
    return Work(macs=numel(out) * x.shape[-1], elementwise=numel(out))


def cdist(c: Call) -> Work:
    """Pairwise distances: a difference, a power and a sum per coordinate."""
    return Work(macs=numel(c.out) * c.need(0).shape[-1], elementwise=numel(c.out))


def cdist_backward(c: Call) -> Work:
    """One difference and one scaled sum per pair and coordinate."""
    x1, x2 = c.need(1), c.need(2)
    return Work(macs=numel(x1) * x2.shape[-2] * 2)


def einsum(c: Call) -> Work:
    """Two factors, contracted at once: the product of all index sizes."""
    equation = c.arg(0, "equation")
    factors = c.tensors(1, "tensors")
    if not isinstance(equation, str) or "." in equation:
        raise Unpriceable("einsum with an ellipsis")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = {
        i: d
        for term, t in zip(terms, factors, strict=True)
        for i, d in zip(term, t.shape, strict=True)
    }
    return Work(macs=prod(sizes.values()) * max(len(factors) - 1, 1))


def _cubic(numerator: int, denominator: int) -> Rule:
    """Factorisations: a fraction of n^3 multiply-accumulates for each matrix of a batch."""

    def rule(c: Call) -> Work:
        a = c.need(0)
        m, n = a.shape[-2], a.shape[-1]
        small, large = min(m, n), max(m, n)
        return Work(macs=prod(a.shape[:-2]) * small * small * large * numerator // denominator)

    return rule


def solve(c: Call) -> Work:
    """Factorise (n^3 / 3), then two triangular solves per right-hand side."""
    a, b = c.need(0), c.need(1)
    n = a.shape[-1]
    columns = numel(b) // max(prod(a.shape[:-2]) * n, 1)
    return Work(macs=prod(a.shape[:-2]) * (n**3 // 3 + n * n * columns))


def triangular(c: Call) -> Work:
    """n^2 / 2 per right-hand side."""
    a, b = c.need(0), c.need(1)
    return Work(macs=numel(b) * a.shape[-1] // 2)


def multi_dot(c: Call) -> Work:
    """A chain, left to right."""
    factors = c.tensors(0, "tensors")
    rows, macs = factors[0].shape[0], 0
    for left, right in pairwise(factors):
        macs += rows * left.shape[-1] * right.shape[-1]
    return Work(macs=macs)


def trilinear(c: Call) -> Work:
    """Sum over a broadcast product of three tensors."""
    return Work(macs=max(numel(t) for t in c.ins) * max(c.need(2).shape[-1], 1))


def sampled_addmm(c: Call) -> Work:
    """A product evaluated only at the stored places of a sparse matrix."""
    s, a = c.need(0), c.need(1)
    return Work(macs=int(s.nnz or 0) * a.shape[-1], elementwise=int(s.nnz or 0))


def addmv(c: Call) -> Work:
    """Matrix-vector product onto a term."""
    return Work(macs=numel(c.need(1)), elementwise=numel(c.out))


def mv(c: Call) -> Work:
    """Matrix-vector product."""
    a = c.need(0)
    return Work(macs=numel(a) if a.nnz is None else a.nnz)


def linear_backward(c: Call) -> Work:
    """Gradients of input and weight, as the mask asks."""
    x, grad, w = c.need(0), c.need(1), c.need(2)
    mask = c.arg(3, "output_mask", [True, True, True])
    each = numel(grad) * w.shape[-1]
    return Work(
        macs=each * (bool(mask[0]) + bool(mask[1])),
        elementwise=numel(grad) if mask[2] else 0,
        read=x.nbytes + grad.nbytes + w.nbytes,
    )


_LINEAR = (
    "aten::linear",
    "aten::mkldnn_linear",
    "mkldnn::_linear_pointwise",
    "mkl::_mkl_linear",
    "aten::_cslt_sparse_mm",
    "aten::_sparse_semi_structured_linear",
)

LINEAR: dict[str, Rule] = {
    "aten::addmm": _product(1, bias=True),
    "aten::_addmm_activation": _product(1, bias=True),
    "aten::_weight_int4pack_mm": int4_linear,
    "aten::_weight_int4pack_mm_for_cpu": int4_linear,
    "aten::_weight_int4pack_mm_with_scales_and_zeros": int4_linear,
    "aten::_dyn_quant_matmul_4bit": int4_linear,
    "aten::_weight_int8pack_mm": int8_weight_linear,
    "aten::linear_backward": linear_backward,
    "aten::mkldnn_linear_backward": linear_backward,
    "aten::fbgemm_linear_fp16_weight": linear,
    "aten::fbgemm_linear_fp16_weight_fp32_activation": linear,
    "aten::_mixed_dtypes_linear": linear,
    **dict.fromkeys(_LINEAR, linear),
}

MATMUL: dict[str, Rule] = {
    "aten::mm": _product(0, bias=False),
    "aten::bmm": _product(0, bias=False),
    "aten::matmul": matmul,
    "aten::linalg_matmul": matmul,
    "aten::baddbmm": _product(1, bias=True),
    "aten::addbmm": addbmm,
    "aten::_int_mm": _product(0, bias=False),
    "aten::_scaled_mm": _product(0, bias=False),
    "aten::_scaled_mm_v2": _product(0, bias=False),
    "aten::_grouped_mm": grouped_mm,
    "aten::_scaled_grouped_mm": grouped_mm,
    "aten::_scaled_grouped_mm_v2": grouped_mm,
    "aten::dot": dot,
    "aten::vdot": dot,
    "aten::linalg_vecdot": dot,
    "aten::mv": mv,
    "aten::addmv": addmv,
    "aten::ger": outer,
    "aten::outer": outer,
    "aten::addr": outer,
    "aten::kron": outer,
    "aten::bilinear": bilinear,
    "aten::_trilinear": trilinear,
    "aten::einsum": einsum,
    "aten::linalg_multi_dot": multi_dot,
    "aten::_cdist_forward": cdist,
    "aten::_euclidean_dist": cdist,
    "aten::_cdist_backward": cdist_backward,
    "aten::_sparse_mm": _product(0, bias=False),
    "aten::_sparse_addmm": _product(1, bias=True),
    "aten::_sparse_semi_structured_mm": _product(0, bias=False),
    "aten::_sparse_semi_structured_addmm": _product(1, bias=True),
    "aten::sparse_sampled_addmm": sampled_addmm,
    "aten::_linalg_det": _cubic(1, 3),
    "aten::_linalg_slogdet": _cubic(1, 3),
    "aten::linalg_lu_factor_ex": _cubic(1, 3),
    "aten::linalg_lu": _cubic(1, 3),
    "aten::linalg_cholesky_ex": _cubic(1, 6),
    "aten::cholesky_inverse": _cubic(2, 3),
    "aten::linalg_inv_ex": _cubic(1, 1),
    "aten::linalg_qr": _cubic(2, 1),
    "aten::geqrf": _cubic(2, 3),
    "aten::linalg_householder_product": _cubic(2, 3),
    "aten::_linalg_svd": _cubic(11, 1),
    "aten::_linalg_eigh": _cubic(9, 2),
    "aten::linalg_eig": _cubic(25, 2),
    "aten::linalg_matrix_exp": _cubic(10, 1),
    "aten::_linalg_solve_ex": solve,
    "aten::linalg_lu_solve": solve,
    "aten::cholesky_solve": triangular,
    "aten::triangular_solve": triangular,
    "aten::linalg_solve_triangular": triangular,
}
