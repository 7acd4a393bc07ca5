"""Fused and foreach optimizer steps, gradient scaling and clipping."""

from __future__ import annotations

from paredown.graph.rules.call import Call, Rule, Work, numel


def _fused(per_weight: int, states: int) -> Rule:
    """Reads parameters, gradients and states once, writes parameters and states back."""

    def rule(c: Call) -> Work:
        lists = [c.tensors(i) for i in range(2 + states)]
        weights = sum(numel(t) for t in lists[0])
        read = sum(t.nbytes for ts in lists for t in ts)
        written = sum(t.nbytes for i, ts in enumerate(lists) if i != 1 for t in ts)
        return Work(
            elementwise=per_weight * weights,
            transcendental=weights if states > 1 else 0,
            read=read,
            written=written,
        )

    return rule


OPTIMIZER: dict[str, Rule] = {
    "aten::_fused_adam": _fused(12, 2),
    "aten::_fused_adam_": _fused(12, 2),
    "aten::_fused_adamw": _fused(13, 2),
    "aten::_fused_adamw_": _fused(13, 2),
    "aten::_fused_sgd": _fused(4, 1),
    "aten::_fused_sgd_": _fused(4, 1),
    "aten::_fused_adagrad": _fused(6, 1),
    "aten::_fused_adagrad_": _fused(6, 1),
    "aten::_amp_foreach_non_finite_check_and_unscale_": lambda c: Work(
        elementwise=2 * sum(numel(t) for t in c.tensors(0))
    ),
    "aten::_amp_update_scale_": lambda c: Work(elementwise=1),
}
