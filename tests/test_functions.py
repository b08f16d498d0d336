"""exp, sigmoid and tanh of vectors: how near they are to the truth, at every CPU level of this machine."""

from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
import pytest

from fastpack import compiler, machine
from tests.conftest import Child

ROOT = Path(__file__).parent.parent
LEVELS = machine.supported_levels()
HIGHEST = LEVELS[-1]
NAMES = ["exp", "sigmoid", "tanh"]
BOUNDS = {"exp": 2, "sigmoid": 4, "tanh": 4}  # in units in the last place
FALL = 4  # a function that rises may fall by so much from one number to the next
DTYPES = {32: np.float32, 64: np.float64}
DENSE = {32: (-10, 7, 2**16, 2**10), 64: (-10, 10, 2**14, 2**5)}  # exponents, how many numbers of each, and of each other one
SOME = 16  # of what takes room, each sixteenth
Values = dict[str, np.ndarray]


class Truth(NamedTuple):
    """Exact values, in a wider type, and the unit in the last place of each."""

    values: np.ndarray
    ulp: np.ndarray

    def errors(self, found: np.ndarray) -> np.ndarray:
        """Return how many units in the last place each finite value is away; what rounds to infinity has to be infinite."""
        info, one = np.finfo(found.dtype), self.values.dtype.type(1)
        finite = self.values < np.ldexp(one - np.ldexp(one, -info.nmant - 2), info.maxexp)
        assert (found[~finite] == np.inf).all()
        return abs(found[finite] - self.values[finite]) / self.ulp[finite]

    def falls(self, found: np.ndarray) -> np.ndarray:
        """Return by how many units in the last place each finite value is below the one before."""
        finite = np.isfinite(found)
        return -np.diff(found[finite].astype(self.ulp.dtype)) / self.ulp[finite][1:]

    def some(self) -> "Truth":
        return Truth(self.values[::SOME], self.ulp[::SOME])


def sample(bits: int) -> np.ndarray:
    """Return numbers of every exponent and sign, rising: densely where they matter, and side by side where formulas meet."""
    dtype, integer = DTYPES[bits], np.dtype(f"u{bits // 8}").type
    info, random = np.finfo(dtype), np.random.default_rng(bits)
    low, high, many, few = DENSE[bits]
    parts = []
    for exponent in range(info.minexp - 1, info.maxexp):  # from the subnormal numbers'
        count = many if low <= exponent < high else few
        step = 2**info.nmant // count
        mantissas = np.arange(count, dtype=integer) * integer(step) + random.integers(0, step, count, dtype=integer)
        parts.append((integer(exponent + info.maxexp - 1) << integer(info.nmant)) | mantissas)
    parts.append(integer(1) << np.arange(info.nmant + 1, dtype=integer))  # powers of 2 that are subnormal
    ends = [log := -np.log(info.smallest_subnormal), log + np.log(2), np.log(info.max), 17.4, 9.0, 38.0, 19.1, 104.0, 89.0, 746.0, 710.0]
    meeting = np.concatenate([np.arange(1.0, 4.0 * info.maxexp) * np.log(2) / 4, ends])  # 2^n has another n from one to the next
    parts.append((meeting.astype(dtype).view(integer)[:, None] + np.arange(-16, 16).astype(integer)).ravel())
    parts.append(np.array([0, np.inf, info.max], dtype).view(integer))
    positive = np.unique(np.concatenate(parts)).view(dtype)
    return np.concatenate([-positive[::-1], positive])


@pytest.fixture(scope="module")
def inputs() -> dict[int, np.ndarray]:
    return {bits: sample(bits) for bits in DTYPES}


@pytest.fixture(scope="module")
def truths(inputs: dict[int, np.ndarray]) -> dict[int, dict[str, Truth]]:
    return {bits: truths_of(x) for bits, x in inputs.items()}


def truths_of(x: np.ndarray) -> dict[str, Truth]:
    """Return what float64 says of float32, and long double of float64."""
    wide, info = np.float64 if x.dtype == np.float32 else np.longdouble, np.finfo(x.dtype)
    y = x.astype(wide)
    with np.errstate(all="ignore"):
        falling = np.exp(-abs(y))
        values = {"exp": np.exp(y), "sigmoid": np.where(y < 0, falling, 1) / (1 + falling), "tanh": np.tanh(y)}
        units = {name: np.ldexp(wide(1), np.maximum(np.frexp(value)[1] - 1, info.minexp) - info.nmant) for name, value in values.items()}
    return {name: Truth(values[name], units[name]) for name in NAMES}


@pytest.fixture(scope="module")
def found(inputs: dict[int, np.ndarray], child: Child, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    """Return what each CPU level makes of the inputs: one process a level, in which numba compiles for it."""
    folder = tmp_path_factory.mktemp("functions")
    np.savez(folder / "inputs.npz", **{f"x{bits}": x for bits, x in inputs.items()})
    code = (ROOT / "tests" / "functions_at_level.py").read_text()
    results = {}
    for level in LEVELS:
        steering = {"FASTPACK_COMPILING": level, "NUMBA_CPU_NAME": compiler.llvm_cpu(level), "NUMBA_CPU_FEATURES": ""}
        guard = "guard" if level == HIGHEST else ""
        child(code, folder / "inputs.npz", folder / f"{level}.npz", str(SOME), guard, PYTHONPATH=ROOT, **steering)
        results[level] = dict(np.load(folder / f"{level}.npz"))
    return results


at_each_level = pytest.mark.parametrize("level", LEVELS)
of_each_type = pytest.mark.parametrize("bits", DTYPES)


@of_each_type
@at_each_level
@pytest.mark.parametrize("name", NAMES)
def test_is_right_to_a_few_units_in_the_last_place(name: str, level: str, bits: int, found: dict[str, Values], truths: dict) -> None:
    assert truths[bits][name].errors(found[level][f"ours{bits}"][NAMES.index(name)]).max() <= BOUNDS[name]


@of_each_type
@at_each_level
def test_limits_and_zeros(level: str, bits: int, found: dict[str, Values], inputs: dict[int, np.ndarray]) -> None:
    x, (exp, sigmoid, tanh) = inputs[bits], found[level][f"ours{bits}"]
    assert (x[0], x[-1]) == (-np.inf, np.inf)
    assert (exp[0], sigmoid[0], tanh[0]) == (0, 0, -1)
    assert (exp[-1], sigmoid[-1], tanh[-1]) == (np.inf, 1, 1)
    zeros = x == 0
    assert np.signbit(x[zeros]).tolist() == np.signbit(tanh[zeros]).tolist() == [True, False]
    assert exp[zeros].tolist() == [1, 1]
    assert sigmoid[zeros].tolist() == [0.5, 0.5]
    tiny = abs(x) < np.finfo(x.dtype).tiny
    assert tiny.sum() > 32
    assert (tanh[tiny] == x[tiny]).all()
    assert np.isnan(found[level][f"nan{bits}"]).all()


@of_each_type
@at_each_level
def test_tanh_is_odd_to_the_bit(level: str, bits: int, found: dict[str, Values]) -> None:
    tanh = found[level][f"ours{bits}"][2]
    assert np.array_equal(tanh, -tanh[::-1])


@of_each_type
@at_each_level
def test_stays_within_its_range_and_never_falls_visibly(level: str, bits: int, found: dict[str, Values], truths: dict) -> None:
    exp, sigmoid, tanh = found[level][f"ours{bits}"]
    assert exp.min() >= 0
    assert (sigmoid.min(), sigmoid.max()) == (0, 1)
    assert (tanh.min(), tanh.max()) == (-1, 1)
    for name, values in zip(NAMES, (exp, sigmoid, tanh), strict=True):
        assert truths[bits][name].falls(values).max() <= FALL, name


@of_each_type
@at_each_level
def test_fractions_can_be_multiplied_before_the_division(level: str, bits: int, found: dict[str, Values]) -> None:
    numerator, denominator, n, d = found[level][f"fractions{bits}"]
    _, sigmoid, tanh = found[level][f"ours{bits}"]
    assert np.array_equal(numerator / denominator, sigmoid[::SOME])
    assert np.array_equal(n / d, tanh[::SOME])
    assert (denominator.min(), d.min()) > (1, 0.5)
    assert (numerator[sigmoid[::SOME] > 0] >= np.finfo(numerator.dtype).tiny).all()
    assert np.isfinite(denominator.max() * denominator.max() * d.max())


@of_each_type
@at_each_level
def test_any_number_of_lanes_gives_the_same_bits(level: str, bits: int, found: dict[str, Values]) -> None:
    assert np.array_equal(found[level][f"lanes{bits}"], found[level][f"ours{bits}"][:, ::SOME])


@of_each_type
def test_agrees_with_sleef(bits: int, found: dict[str, Values], truths: dict) -> None:
    levels = [level for level in LEVELS if f"sleef{bits}" in found[level]]
    assert HIGHEST in levels or not HIGHEST.startswith("x86-64")
    for level in levels:
        ours = found[level][f"ours{bits}"][[0, 2], ::SOME]
        for name, values, theirs in zip(("exp", "tanh"), ours, found[level][f"sleef{bits}"], strict=True):
            finite = np.isfinite(values) & np.isfinite(theirs)
            assert finite.sum() > finite.size / 2
            assert (abs(values[finite] - theirs[finite]) <= (BOUNDS[name] + 1) * truths[bits][name].some().ulp[finite]).all()


@of_each_type
@pytest.mark.parametrize(
    ("wrong", "name"), [("coefficient", "exp"), ("coefficient", "tanh"), ("ln2", "sigmoid"), ("end", "sigmoid"), ("tanh_end", "tanh")]
)
def test_what_is_wrong_shows(wrong: str, name: str, bits: int, found: dict[str, Values], truths: dict) -> None:
    assert truths[bits][name].some().errors(found[HIGHEST][f"{wrong}{bits}"][NAMES.index(name)]).max() > BOUNDS[name]


@of_each_type
def test_a_fall_shows(bits: int, found: dict[str, Values], truths: dict) -> None:
    truth, values = truths[bits]["sigmoid"], found[HIGHEST][f"ours{bits}"][1].copy()
    middle = values.size // 2
    values[middle:] -= (FALL + 1) * truth.ulp[middle:].astype(values.dtype)
    assert truth.falls(values).max() > FALL


@of_each_type
def test_the_truth_is_true(bits: int, inputs: dict[int, np.ndarray], truths: dict) -> None:
    some = np.flatnonzero(abs(inputs[bits]) < 700)[:: len(inputs[bits]) // 300]
    with mpmath.workdps(40):
        for k in some:
            x = mpmath.mpf(float(inputs[bits][k]))
            exact = {"exp": mpmath.exp(x), "sigmoid": 1 / (1 + mpmath.exp(-x)), "tanh": mpmath.tanh(x)}
            for name, value in exact.items():
                known = truths[bits][name]
                high = float(known.values[k])  # a long double is a float64 and what is left
                low = float(known.values[k] - high)
                assert abs(mpmath.mpf(high) + low - value) <= 0.01 * mpmath.mpf(float(known.ulp[k])), (name, x)
