"""Every name declared in a kernel made the only one of its kind, so that scopes can be merged."""

from __future__ import annotations

from dataclasses import replace

from paredown.kernels.loops.expr import Expr, Load, Var, rebuild
from paredown.kernels.loops.stmt import (
    Allocate,
    Assign,
    Body,
    Declare,
    For,
    If,
    Kernel,
    Stmt,
    Store,
)


def unique(k: Kernel) -> Kernel:
    """The same kernel; a name declared again is numbered."""
    return replace(k, body=_Renaming({p.name for p in k.parameters}).body(k.body, {}))


class _Renaming:
    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def fresh(self, name: str) -> str:
        """The name, or the first ``name_2``, ``name_3`` ... that is free."""
        new, n = name, 1
        while new in self.taken:
            n += 1
            new = f"{name}_{n}"
        self.taken.add(new)
        return new

    def body(self, body: Body, scope: dict[str, str]) -> Body:
        """Statements in a scope of their own."""
        scope = dict(scope)
        return tuple(self.one(s, scope) for s in body)

    def one(self, s: Stmt, scope: dict[str, str]) -> Stmt:
        """One statement; what it declares is put in scope."""

        def change(e: Expr) -> Expr | None:
            match e:
                case Var(name) if name in scope:
                    return Var(scope[name])
                case Load(buffer, index) if buffer in scope:
                    return Load(scope[buffer], tuple(rebuild(i, change) for i in index))
                case _:
                    return None

        match s:
            case For():
                start = rebuild(s.start, change)
                outside = dict(scope)
                scope[s.name] = self.fresh(s.name)
                # From here on, ``change`` sees the loop's variable.
                new = replace(
                    s,
                    name=scope[s.name],
                    start=start,
                    stop=rebuild(s.stop, change),
                    step=rebuild(s.step, change),
                    body=self.body(s.body, scope),
                )
                scope.clear()
                scope.update(outside)
                return new
            case If():
                return If(
                    rebuild(s.condition, change),
                    self.body(s.body, scope),
                    self.body(s.otherwise, scope),
                )
            case Declare():
                value = rebuild(s.value, change)
                scope[s.name] = self.fresh(s.name)
                return Declare(scope[s.name], s.dtype, value)
            case Allocate():
                scope[s.name] = self.fresh(s.name)
                return replace(s, name=scope[s.name])
            case Assign():
                return Assign(scope.get(s.name, s.name), rebuild(s.value, change))
            case Store():
                return Store(
                    scope.get(s.buffer, s.buffer),
                    rebuild(s.index, change),
                    rebuild(s.value, change),
                )
            case _:
                return s
