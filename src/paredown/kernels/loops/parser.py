"""CUDA-like text read back to a program: the subset that the printer writes, and somewhat more.

Kernels of pointers to float or int, private scalars and arrays, shared arrays of any rank, counted
``for`` loops (``++``, ``+=``, ``-=``, ``>>=``), ``if``, ``__syncthreads()``, a guard
``if (c) return;`` at the outermost level, and one function of launches with literal sizes. Anything
else (warp functions, atomics, ``while``, pointers that move, templates) is refused with its line.
"""

from __future__ import annotations

from dataclasses import replace

from paredown.errors import InputError
from paredown.kernels.loops.parse_expr import Symbol
from paredown.kernels.loops.parse_stmt import Statements
from paredown.kernels.loops.stmt import (
    Allocate,
    Declare,
    For,
    Kernel,
    Parameter,
    Program,
    Sizes,
    Store,
    on_buffers,
    statements,
)


def parse(text: str) -> Program:
    """The program; raises ``InputError`` with the line for what is not of the subset."""
    return _Parser(text).program()


class _Parser(Statements):
    def program(self) -> Program:
        """Kernels, then the function that launches them."""
        kernels: dict[str, Kernel] = {}
        while True:
            if self.accept("extern") and self.take().text != '"C"':
                self.fail('extern that is not "C"')
            if not self.accept("__global__"):
                break
            k = self.kernel()
            if k.name in kernels:
                self.fail(f"kernel {k.name} comes twice")
            kernels[k.name] = k
        found = self.host(kernels)
        if self.word.kind != "end":
            self.fail(f"{self.word.text!r} after the function that launches")
        return found

    def kernel(self) -> Kernel:
        """One kernel, its sizes not yet known."""
        self.expect("void")
        if self.accept("__launch_bounds__"):
            self.expect("(")
            self.whole()
            self.expect(")")
        name = self.name()
        parameters = self.parameters()
        self.scope = {p.name: Symbol(p.dtype, buffer=True) for p in parameters}
        self.expect("{")
        body = self.rest(True)
        for s in statements(body):
            if isinstance(s, Store) and Parameter(s.buffer, "float", True) in parameters:
                raise InputError(f"{name} writes to {s.buffer}, which is const")
        return Kernel(name, parameters, body)

    def parameters(self) -> tuple[Parameter, ...]:
        """Pointers in parentheses."""
        found: list[Parameter] = []
        self.expect("(")
        while not self.accept(")"):
            if found:
                self.expect(",")
            const = self.accept("const")
            dtype = self.type()
            self.expect("*")
            self.accept("__restrict__")
            found.append(Parameter(self.name(), dtype, const))
        if len({p.name for p in found}) < len(found):
            self.fail("two parameters of one name")
        return tuple(found)

    def host(self, kernels: dict[str, Kernel]) -> Program:
        """The launches, each a kernel on the program's own buffers."""
        self.expect("void")
        name = self.name()
        given = self.parameters()
        self.expect("{")
        launched: list[Kernel] = []
        while not self.accept("}"):
            called = self.name()
            if called not in kernels:
                self.fail(f"no kernel {called!r}")
            self.expect("<<<")
            grid, block = self.sizes(), (self.expect(","), self.sizes())[1]
            self.expect(">>>", "(")
            arguments: list[str] = []
            while not self.accept(")"):
                if arguments:
                    self.expect(",")
                arguments.append(self.name())
            self.expect(";")
            if len(arguments) != len(kernels[called].parameters) or not set(arguments) <= {
                p.name for p in given
            }:
                self.fail(f"{called} is launched with other buffers than it takes")
            made = _renamed(kernels[called], arguments)
            times = sum(k.name.partition("__again")[0] == called for k in launched)
            again = f"{called}__again{times}" if times else called
            launched.append(replace(made, name=again, grid=grid, block=block))
        return Program(name, given, tuple(launched))

    def sizes(self) -> Sizes:
        """``dim3(x, y, z)`` or one whole number."""
        if not self.accept("dim3"):
            return self.whole(), 1, 1
        self.expect("(")
        found = [self.whole()]
        while self.accept(","):
            found.append(self.whole())
        self.expect(")")
        if len(found) > 3:
            self.fail("more than three sizes")
        x, y, z = [*found, 1, 1][:3]
        return x, y, z


def _renamed(k: Kernel, arguments: list[str]) -> Kernel:
    """A kernel on the program's buffers."""
    new = dict(zip((p.name for p in k.parameters), arguments, strict=True))
    own = {s.name for s in statements(k.body) if isinstance(s, Declare | Allocate | For)}
    if own & set(arguments) or len(set(arguments)) < len(arguments):
        raise InputError(f"{k.name} is launched on one buffer twice, or on one of its own names")
    parameters = tuple(replace(p, name=new[p.name]) for p in k.parameters)
    return replace(k, parameters=parameters, body=on_buffers(k.body, new))
