"""exp, sigmoid and tanh of float32 by polynomials, on vectors of any width.

LLVM has no vector code for them: it would call libm for each number. Here each is a few multiplications and additions,
which take their place when intrinsics are lowered, after all loops are scheduled and vectorized.

    exp(x) = 2^n e^r,    n = rint(x / ln 2),  r = x - n ln 2 in two steps,  |r| <= ln 2 / 2
    e^r    = 1 + r + r^2 q(r),    q of degree 4

    sigmoid(x) = 1 / (1 + exp(-x))
    tanh(x)    = x + x^3 p(x^2) for |x| < 5/8,    p of degree 4;    1 - 2 / (exp(2 |x|) + 1) with the sign of x beyond
    softplus(x) = max(x, 0) + ln(1 + e),    e = exp(-|x|),  ln(1 + e) = 2 s (1 + s^2 l(s^2)),  s = e / (2 + e)

The coefficients were fitted for the least largest error. Errors against the exact values, in units of the last place,
over all float32 numbers (tests/tvm/test_functions.py samples them):

    exp         2, down to the smallest normal number; below, to 0, the result is right to the spacing there; above
                88.73 infinity
    sigmoid     3, above 2^-126; below the absolute error is under 2^-126
    tanh        3
    softplus    4

NaN gives NaN. float16 is computed as float32; float64 is left to libm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

__all__ = ["lowered", "softplus"]

_LOG2E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690581e-4
"""Their sum is ln 2; the first has 9 bits, so that its products with n are exact."""
_ROUND = 12582912.0
"""1.5 * 2^23: what is added to it is rounded to a whole number, which stands in the lowest bits of the sum."""
_LOWEST, _HIGHEST = -104.0, 89.0
"""Beyond them exp is 0 and infinity."""
_NORMAL = 87.0
"""Up to here 2^n is a normal number on either side of 0."""
_EXP = (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.008368710055947304, 0.0013814610429108143)
_TANH = (-0.3333328366279602, 0.13331490755081177, -0.05374349653720856, 0.020650578662753105, -0.005717036779969931)
_LOG = (0.3333333730697632, 0.19999438524246216, 0.14308442175388336, 0.10713828355073929, 0.12150469422340393)


class _Lanes:
    """Arithmetic on vectors of float32 with as many lanes as `like` has."""

    def __init__(self, like: Any) -> None:
        from tvm import tirx

        self._tir = tirx
        text = str(like.ty)
        self._suffix = text[text.index("x") :] if "x" in text else ""
        self._bound: list[tuple[Any, Any]] = []

    def real(self, value: float) -> Any:
        """A constant."""
        return self._tir.const(value, f"float32{self._suffix}")

    def integer(self, value: int) -> Any:
        """A constant."""
        return self._tir.const(value, f"int32{self._suffix}")

    def name(self, value: Any) -> Any:
        """A variable for an expression that is used more than once."""
        variable = self._tir.Var(f"v{len(self._bound)}", str(value.ty))
        self._bound.append((variable, value))
        return variable

    def close(self, value: Any) -> Any:
        """The value with its variables."""
        for variable, expression in reversed(self._bound):
            value = self._tir.Let(variable, expression, value)
        return value

    def select(self, condition: Any, value: Any, other: Any) -> Any:
        """Selects lane by lane."""
        return self._tir.Select(condition, value, other)

    def within(self, x: Any, low: float, high: float) -> Any:
        """x between two numbers; NaN stays, which minimum and maximum would not guarantee."""
        x = self.name(self.select(x < self.real(low), self.real(low), x))
        return self.name(self.select(x > self.real(high), self.real(high), x))

    def as_float(self, bits: Any) -> Any:
        """The float with these bits."""
        return self._tir.reinterpret(f"float32{self._suffix}", bits)

    def as_bits(self, x: Any) -> Any:
        """The bits of a float."""
        return self._tir.reinterpret(f"int32{self._suffix}", x)

    def horner(self, x: Any, factors: Sequence[float]) -> Any:
        """factors[0] + factors[1] x + ..."""
        value = self.real(factors[-1])
        for factor in reversed(factors[:-1]):
            value = value * x + self.real(factor)
        return value

    def power(self, x: Any) -> tuple[Any, Any]:
        """e^x = p 2^n: p, and n in the lowest bits of an integer."""
        rounded = self.name(x * self.real(_LOG2E) + self.real(_ROUND))
        n = self.name(rounded - self.real(_ROUND))
        r = self.name(x - n * self.real(_LN2_HIGH) - n * self.real(_LN2_LOW))
        p = self.name(r * r * self.horner(r, _EXP) + r + self.real(1))
        return p, self.as_bits(rounded)

    def two_to(self, n: Any) -> Any:
        """2^n for -126 <= n <= 127; n may have anything in its high bits."""
        return self.as_float((n << self.integer(23)) + self.integer(127 << 23))

    def normal_exp(self, x: Any) -> Any:
        """e^x, where it is a normal number."""
        p, n = self.power(x)
        return p * self.two_to(n)


def _exp(v: _Lanes, x: Any) -> Any:
    p, bits = v.power(v.within(x, _LOWEST, _HIGHEST))
    # In two factors, since 2^n alone may be out of range on either side.
    n = v.name(bits - v.as_bits(v.real(_ROUND)))
    half = v.name(n >> v.integer(1))
    return p * v.two_to(half) * v.two_to(n - half)


def _sigmoid(v: _Lanes, x: Any) -> Any:
    e = v.normal_exp(v.within(v.real(0) - x, -_NORMAL, 88.0))
    return v.real(1) / (v.real(1) + e)


def _tanh(v: _Lanes, x: Any) -> Any:
    size = v.name(v.select(x < v.real(0), v.real(0) - x, x))
    # From 9.1 on it is 1.
    e = v.normal_exp(v.within(size + size, 0.0, 20.0))
    far = v.name(v.real(1) - v.real(2) / (e + v.real(1)))
    square = v.name(x * x)
    near = x + x * square * v.horner(square, _TANH)
    return v.select(size < v.real(0.625), near, v.select(x < v.real(0), v.real(0) - far, far))


_RULES = {"exp": _exp, "sigmoid": _sigmoid, "tanh": _tanh}
_active: ContextVar[bool] = ContextVar("dnc.targets.tvm.functions", default=False)
_registered: list[str] = []


@contextlib.contextmanager
def lowered() -> Iterator[None]:
    """Gives these functions to what TVM compiles for LLVM meanwhile, in this thread; elsewhere TVM stays as it is."""
    if not _registered:
        for name, rule in _RULES.items():
            _register(name, rule)
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def _register(name: str, rule: Callable[[_Lanes, Any], Any]) -> None:
    from tvm import tirx
    from tvm.ir import Op

    known = Op.get(f"tirx.{name}")
    usual = known.get_attr("llvm.FLowerIntrinsic")

    def lower(call: Any) -> Any:
        kind = str(call.ty).partition("x")[0]
        if not _active.get() or kind not in ("float32", "float16"):
            # What is returned unchanged falls to TVM's own rules.
            return call if usual is None else usual(call)
        v = _Lanes(call)
        x = v.name(call.args[0] if kind == "float32" else tirx.Cast(str(v.real(0).ty), call.args[0]))
        result = v.close(rule(v, x))
        return result if kind == "float32" else tirx.Cast(str(call.ty), result)

    tirx.register_intrin_lowering(f"tirx.{name}", target="llvm", f=lower, level=99)
    _registered.append(name)


def softplus(x: Any) -> Any:
    """ln(1 + e^x), as a tensor expression."""
    from tvm import te, tirx

    dtype = str(x.dtype)

    def number(value: float) -> Any:
        return tirx.const(value, dtype)

    zero = number(0)
    e = te.compute(x.shape, lambda *i: tirx.exp(tirx.Select(x(*i) < zero, x(*i), zero - x(*i))), name="e")
    s = te.compute(x.shape, lambda *i: e(*i) / (number(2) + e(*i)), name="s")

    def at(*i: Any) -> Any:
        square = s(*i) * s(*i)
        factor = number(_LOG[-1])
        for coefficient in reversed(_LOG[:-1]):
            factor = factor * square + number(coefficient)
        positive = tirx.Select(x(*i) < zero, zero, x(*i))
        return positive + number(2) * s(*i) * (number(1) + square * factor)

    return te.compute(x.shape, at, name="softplus")
