r"""Exact equality of parsed mathematics: numbers, expressions, relations, sets, tuples and matrices.

The values are those of math-verify's parser. Its own comparison rounds: 1/2^99 equals 1/2^98, and 1 equals 1 + 1/2^60.
Here constants differ if some digit of their difference is certain, however small it is, and expressions are equal only
if their difference is proved to be 0.
"""

import re
from collections.abc import Iterable

import sympy
from sympy import (
    And,
    Basic,
    Derivative,
    Eq,
    Expr,
    FiniteSet,
    Ge,
    Gt,
    Integral,
    Interval,
    Le,
    Limit,
    Lt,
    MatrixBase,
    Ne,
    Poly,
    Pow,
    Product,
    Rational,
    Set,
    Sum,
    Symbol,
    Tuple,
    Union,
    exp,
)
from sympy.core.relational import Relational
from sympy.matrices import MatrixExpr


def equal(gold: Basic | MatrixBase, guess: Basic | MatrixBase) -> bool:
    """Whether two values of math-verify's parser are equal.

    A set is not a tuple; an open interval may be a pair; a relation in one variable is the set of its solutions. Raises
    whatever sympy raises on values that it cannot handle.
    """
    return _equal(*_with_equal_symbols(_with_unknowns(gold), _with_unknowns(guess)))


def _with_unknowns(value: Basic | MatrixBase) -> Basic | MatrixBase:
    """The value with a symbol for every derivative and sum that sympy would evaluate without what it does not know.

    To sympy dx/dt is 0, since x is not a function, and the sum of X_i over i is n X_i.
    """
    unknown = {part: Symbol(str(part), real=True) for part in value.atoms(Derivative) if part.doit() == 0}
    for part in value.atoms(Sum, Product):
        indexes = {index.name for index in part.bound_symbols}
        if any(set(re.findall("[a-zA-Z]+", symbol.name.partition("_")[2])) & indexes for symbol in part.atoms(Symbol)):
            unknown[part] = Symbol(str(part), real=True)
    return value.xreplace(unknown) if unknown else value


def _with_equal_symbols(gold: Basic | MatrixBase, guess: Basic | MatrixBase) -> tuple[Basic | MatrixBase, ...]:
    """The same values, whose symbols are real or complex in both: a parse with an i has complex ones."""
    symbols = gold.atoms(Symbol) | guess.atoms(Symbol)
    if all(symbol.is_real for symbol in symbols):
        return gold, guess
    complex_ones = {symbol: Symbol(symbol.name) for symbol in symbols}
    return gold.xreplace(complex_ones), guess.xreplace(complex_ones)


def _equal(gold: Basic | MatrixBase, guess: Basic | MatrixBase) -> bool:
    gold, guess = _members(gold, guess)
    if _is_relation(gold) and _is_relation(guess):
        return _same_relations(gold, guess)
    if _is_relation(gold) or _is_relation(guess):
        if not isinstance(gold, Set) and not isinstance(guess, Set):
            return False
        gold, guess = (value.as_set() if _is_relation(value) else value for value in (gold, guess))
    if isinstance(gold, Tuple) or isinstance(guess, Tuple):
        gold, guess = map(_as_tuple, (gold, guess))
        both = isinstance(gold, Tuple) and isinstance(guess, Tuple)
        return both and len(gold) == len(guess) and all(map(_equal, gold, guess))
    if isinstance(gold, Set) or isinstance(guess, Set):
        return _same_sets(*(value if isinstance(value, Set) else FiniteSet(value) for value in (gold, guess)))
    gold, guess = gold.doit(), guess.doit()
    if isinstance(gold, MatrixBase | MatrixExpr) or isinstance(guess, MatrixBase | MatrixExpr):
        return (
            isinstance(gold, MatrixBase)
            and isinstance(guess, MatrixBase)
            and gold.shape == guess.shape
            and all(map(_equal, gold.flat(), guess.flat()))
        )
    if isinstance(gold, Expr) and isinstance(guess, Expr):
        return _same_expressions(gold, guess)
    return gold == guess


def _members(gold: Basic | MatrixBase, guess: Basic | MatrixBase) -> tuple[Basic | MatrixBase, ...]:
    """`x in S`, which the parser gives as the equation x = S, as S; unless the other side has another variable."""
    sides = [value.lhs if isinstance(value, Eq) and isinstance(value.rhs, Set) else None for value in (gold, guess)]
    others = [value.free_symbols if _is_relation(value) else set() for value in (guess, gold)]
    if any(side is not None and other and side not in other for side, other in zip(sides, others, strict=True)):
        return gold, guess
    return tuple(value if side is None else value.rhs for value, side in zip((gold, guess), sides, strict=True))


def _as_tuple(value: Basic | MatrixBase) -> Basic | MatrixBase:
    """An open interval as the pair of its ends: the parser cannot tell them apart."""
    is_pair = isinstance(value, Interval) and value.left_open and value.right_open
    return Tuple(value.start, value.end) if is_pair else value


def _match(gold: Iterable, guess: Iterable, same) -> bool:
    """Whether every element has its equal on the other side."""
    gold, guess = list(gold), list(guess)
    return all(any(same(a, b) for b in guess) for a in gold) and all(any(same(a, b) for a in gold) for b in guess)


# Relations: equations, inequalities and chains of them, such as 1 < x < 2.


def _is_relation(value: Basic | MatrixBase) -> bool:
    return isinstance(value, Relational) or (isinstance(value, And) and all(map(_is_relation, value.args)))


def _same_relations(gold: Relational | And, guess: Relational | And) -> bool:
    parts = [list(value.args) if isinstance(value, And) else [value] for value in (gold, guess)]
    if len(parts[0]) == len(parts[1]) and _match(*parts, _same_relation):
        return True
    # As sets of solutions: inequalities in one variable, unless they always hold or never.
    is_ordered = not any(isinstance(part, Eq) for part in parts[0] + parts[1])
    one_variable = len(gold.free_symbols | guess.free_symbols) == 1 and gold.free_symbols == guess.free_symbols
    if not is_ordered or not one_variable:
        return False
    solutions = gold.as_set()
    return solutions not in (sympy.S.Reals, sympy.S.EmptySet) and _same_sets(solutions, guess.as_set())


def _same_relation(gold: Relational, guess: Relational) -> bool:
    kinds = [_kind(relation) for relation in (gold, guess)]
    if kinds[0] != kinds[1]:
        return False
    sides = [
        (value.lhs, value.rhs) if not isinstance(value, Gt | Ge) else (value.rhs, value.lhs) for value in (gold, guess)
    ]
    if not all(isinstance(side, Expr) for pair in sides for side in pair):
        return all(map(_equal, *sides))
    gold_difference, guess_difference = ((left - right).doit() for left, right in sides)
    if not gold_difference.free_symbols or not guess_difference.free_symbols:  # 1 = 1, or f(0) = 0 read as f * 0 = 0
        return set(sides[0]) == set(sides[1]) if kinds[0] in (Eq, Ne) else sides[0] == sides[1]
    factor = _constant_factor(gold_difference, guess_difference)
    if factor is not None:
        return bool(factor.is_positive or kinds[0] in (Eq, Ne))
    return kinds[0] is Eq and _same_solutions(gold_difference, guess_difference)


def _kind(relation: Relational) -> type:
    return next(
        kind for kind, names in ((Eq, Eq), (Ne, Ne), (Lt, Lt | Gt), (Le, Le | Ge)) if isinstance(relation, names)
    )


def _constant_factor(gold: Expr, guess: Expr) -> Expr | None:
    """The constant c != 0 with gold = c * guess, if there is one."""
    symbols = gold.free_symbols
    if not symbols or symbols != guess.free_symbols:
        return None
    ratio = gold / guess
    first, second = (ratio.subs(point) for point in _points(symbols))
    if _differs_from_zero(first - second):
        return None
    ratio = sympy.simplify(ratio)
    return ratio if not ratio.free_symbols and ratio.is_finite and not ratio.is_zero else None


def _same_solutions(gold: Expr, guess: Expr) -> bool:
    """Whether two equations, expression = 0 each, have the same solutions for each of their variables, and have any.

    For one variable alone the half circle y = sqrt(1 - x^2) has the solutions of the circle, x = ±sqrt(1 - y^2).
    """
    symbols = sorted(gold.free_symbols, key=str)
    if gold.free_symbols != guess.free_symbols:
        return False
    numerators = [sympy.fraction(sympy.together(difference))[0] for difference in (gold, guess)]
    if all(numerator.is_polynomial(*symbols) for numerator in numerators):
        # Without repeated factors, polynomials with the same zeros are multiples of each other.
        first, second = (Poly(numerator, *symbols, field=True).sqf_part().monic() for numerator in numerators)
        return first == second
    for symbol in gold.free_symbols:
        solutions = [sympy.solve(equation, symbol) for equation in (gold, guess)]
        if not all(solutions) or not _match(*solutions, _equal):
            return False
    return True


# Sets.


def _same_sets(gold: Set, guess: Set) -> bool:
    if gold == guess:
        return True
    if isinstance(gold, Interval) and isinstance(guess, Interval):
        ends = (gold.left_open, gold.right_open) == (guess.left_open, guess.right_open)
        return bool(ends) and _equal(gold.start, guess.start) and _equal(gold.end, guess.end)
    if isinstance(gold, FiniteSet) and isinstance(guess, FiniteSet):
        return _match(gold.args, guess.args, _equal)
    if isinstance(gold, Union) and isinstance(guess, Union) and _match(gold.args, guess.args, _same_sets):
        return True
    return gold.symmetric_difference(guess).is_empty is True


# Expressions.

_NOT_EVALUATED = (Integral, Sum, Product, Limit)  # slowly, and with an error that is not known


def _same_expressions(gold: Expr, guess: Expr) -> bool:
    difference = gold - guess
    values = Tuple(gold, guess)
    if values.has(sympy.zoo, sympy.nan):  # x/0
        return False
    if values.has(sympy.oo, -sympy.oo) and not values.has(*_NOT_EVALUATED):
        return gold == guess
    if not difference.free_symbols:
        decided = _is_zero(difference)
        return sympy.simplify(difference) == 0 if decided is None else decided
    if any(_differs_from_zero(difference.subs(point)) for point in _points(difference.free_symbols)):
        return False
    if difference.is_polynomial(*difference.free_symbols):
        return all(map(_is_zero, Poly(difference, *difference.free_symbols).coeffs()))
    return sympy.simplify(difference) == 0


def _points(symbols: Iterable[Symbol]) -> list[dict[Symbol, Rational]]:
    """Two assignments of positive rational numbers at which different expressions are not equal by chance."""
    ordered = sorted(symbols, key=str)
    return [
        {symbol: Rational(sympy.prime(first + i), divisor) for i, symbol in enumerate(ordered)}
        for first, divisor in ((10, 23), (20, 19))
    ]


def _differs_from_zero(number: Expr, digits: int = 15) -> bool:
    """Whether a constant is certainly not 0: evaluated to `digits` and to twice as many, it is the same number."""
    if number.is_Rational:
        return number != 0
    if number.has(*_NOT_EVALUATED):
        return False
    first = _certain_parts(number, digits)
    if not any(first):
        return False
    second = _certain_parts(number, 2 * digits)
    return any(a != 0 and b != 0 and abs(a / b - 1) < 1e-3 for a, b in zip(first, second, strict=True))


def _certain_parts(number: Expr, digits: int) -> list[Expr]:
    """Real and imaginary part of a constant, evaluated; 0 for one without a certain digit."""
    parts = number.evalf(digits, maxn=max(digits, 100)).as_real_imag()
    return [part if part.is_Float and part._prec > 1 else sympy.S.Zero for part in parts]


def _is_zero(number: Expr) -> bool | None:
    """Whether a constant is 0, as far as the digits go that its size calls for; None if it cannot be evaluated."""
    if number.is_Rational:
        return number == 0
    if _differs_from_zero(number):
        return False
    if number.has(*_NOT_EVALUATED) or not all(
        part.is_finite and part.is_Number for part in number.evalf().as_real_imag()
    ):
        return None
    # Roots of integers with d digits in all may agree in a multiple of d digits, and 1 + e^-n agrees with 1 in about n.
    bits = sum(part.bit_length() for rational in number.atoms(Rational) for part in (rational.p, rational.q))
    exponents = (power.exp.evalf(5) for power in number.atoms(Pow, exp))
    size = sum(abs(exponent) for exponent in exponents if exponent.is_comparable)
    return not _differs_from_zero(number, 500 + 7 * bits + int(min(2 * size, 20_000)))
