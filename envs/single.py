"""Single-precision twins of the scalar physics, for loops over many nodes.

`physics.py` states each equation once, in double precision. A vector register holds twice as many singles, whose
square roots and divisions take half the time, and watts and rates need no more than seven digits. A literal such as
`1.0` would turn the arithmetic back into doubles, so a twin is the same source with its literals, and the functions
that it calls, in single precision.
"""

import ast
import inspect
import textwrap
from collections import namedtuple

import numba
import numpy as np

from .hardware import PROFILE

RELAXED = {"arcp", "contract", "nsz"}
"""Reciprocals instead of divisions by the same number, and fused multiply-add.

Loops over tiles have a constant length, so that every node of every batch goes through the same instructions: a batch
still equals its rows bit for bit (`tests/envs/test_plant.py`).
"""

_twins: dict = {}


class _Narrow(ast.NodeTransformer):
    """Wraps floating-point literals in `float32(...)`."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, float):
            return node
        return ast.copy_location(ast.Call(ast.Name("_float32", ast.Load()), [node], []), node)


def single(function):
    """The single-precision twin of a scalar kernel: give it singles, it returns singles.

    Args:
        function: A kernel of `physics.py`: arithmetic, `min`, `max`, `math.sqrt` and kernels of the same kind.
    """
    if function not in _twins:
        python = function.py_func
        tree = ast.parse(textwrap.dedent(inspect.getsource(python)))
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.decorator_list = []
        scope = {
            name: _narrowed(value) for name, value in python.__globals__.items() if name in python.__code__.co_names
        }
        scope["_float32"] = np.float32
        exec(compile(ast.fix_missing_locations(_Narrow().visit(tree)), inspect.getfile(python), "exec"), scope)
        _twins[function] = _compiled(scope[python.__name__])
    return _twins[function]


def _narrowed(value):
    if isinstance(value, float):
        return np.float32(value)
    return single(value) if hasattr(value, "py_func") else value


def _compiled(function):
    # not cached: its only callers are, with its code inlined
    return numba.njit(error_model="numpy", forceinline=True, _nrt=False, fastmath=RELAXED)(function)


Profile = namedtuple("Profile", PROFILE.names)
"""A row of `hardware.PROFILE` as singles in registers: a loop need not read it again after every store."""


def _make_row_reader():
    scope = {"Profile": Profile, "_float32": np.float32}
    fields = ", ".join(f"_float32(row.{name})" for name in PROFILE.names)
    exec(f"def single_row(row):\n    return Profile({fields})", scope)
    return _compiled(scope["single_row"])


single_row = _make_row_reader()
"""`Profile` of a row of `hardware.PROFILE`, inside kernels."""
