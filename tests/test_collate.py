"""PackCollate: any form of samples, against torch's pack_sequence and default_collate."""

import pickle
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import default_collate

from fastpack.torch import PackCollate, pack_sequence, unpack_sequence
from fastpack.torch.collate import STACKED_BELOW
from tests.torch_oracle import assert_packed

LENGTHS = [3, 1, 7, 7, 2]


def sequences(*trailing: int, dtype: torch.dtype = torch.float32, lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(trailing))
    return [torch.randint(0, 99, (length, *trailing), generator=generator).to(dtype) for length in lengths]


def expected(given: list[torch.Tensor]) -> PackedSequence:
    return pack_sequence(given, enforce_sorted=False)


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Sample:
    x: Any
    y: Any
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.x))  # which a PackedSequence would not have survived as a length


@dataclass(slots=True)
class Slotted:
    x: Any
    y: Any


FORMS = {
    "tuple": (lambda x, y: (x, y), lambda made: made),
    "list": (lambda x, y: [x, y], lambda made: made),
    "named tuple": (Pair, lambda made: (made.x, made.y)),
    "dict": (lambda x, y: {"x": x, "y": y}, lambda made: (made["x"], made["y"])),
    "ordered dict": (lambda x, y: OrderedDict(x=x, y=y), lambda made: (made["x"], made["y"])),
    "user's dict": (lambda x, y: UserDict(x=x, y=y), lambda made: (made["x"], made["y"])),
    "defaultdict": (lambda x, y: defaultdict(int, x=x, y=y), lambda made: (made["x"], made["y"])),
    "dataclass": (Sample, lambda made: (made.x, made.y)),
    "slots": (Slotted, lambda made: (made.x, made.y)),
    "nested": (lambda x, y: {"in": Pair((x,), "text"), "out": {"y": y}}, lambda made: (made["in"].x[0], made["out"]["y"])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_any_form_of_samples(form: str, kind: str) -> None:
    make, take = FORMS[form]
    given = sequences(dtype=torch.int64)
    as_kind = {"tensor": torch.clone, "array": lambda x: x.numpy(), "list": lambda x: x.tolist()}[kind]
    samples = [make(as_kind(sequence), k) for k, sequence in enumerate(given)]
    made = PackCollate()(samples)
    packed, labels = take(made)
    assert_packed(packed, expected(given))
    assert torch.equal(labels, torch.arange(5))
    assert type(made) is (list if form == "tuple" else type(samples[0]))
    assert take(samples[0])[1] == 0  # samples are left as they are


def test_a_sample_may_be_the_sequence_itself() -> None:
    given = sequences(4)
    assert_packed(PackCollate()(given), expected(given))
    assert_packed(PackCollate()([x.numpy() for x in given]), expected(given))
    assert_packed(PackCollate("")([x.tolist() for x in given]), expected(given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int8, torch.bool, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 2)])
def test_dtypes_and_shapes(dtype: torch.dtype, trailing: tuple[int, ...]) -> None:
    given = sequences(*trailing, dtype=dtype)
    assert_packed(PackCollate()([(x,) for x in given])[0], expected(given))


def test_strided_and_read_only_arrays() -> None:
    given = sequences(4)
    strided = [np.repeat(x.numpy(), 2, axis=0)[::2] for x in given]
    for array in strided:
        array.flags.writeable = False
    assert_packed(PackCollate()(strided), expected(given))


@pytest.mark.parametrize("value", [1.5, True, "word", b"bytes", np.float32(2), np.array(3), torch.tensor(4.0), 2**40])
def test_the_rest_is_stacked_as_torch_does_it(value: Any) -> None:
    rest = [value] * 3
    made = PackCollate()([(x, value) for x in sequences()[:3]])[1]
    wanted = default_collate([(value,) for _ in rest])[0]
    assert type(made) is type(wanted)
    assert made.dtype == wanted.dtype and torch.equal(made, wanted) if isinstance(made, torch.Tensor) else made == wanted


def test_without_a_sequence_it_is_default_collate() -> None:
    samples = [{"a": (1, [2.0, "x"]), "b": torch.ones(2, 3)}, {"a": (3, [4.0, "y"]), "b": torch.zeros(2, 3)}]
    made, wanted = PackCollate(fields=lambda name, value: False)(samples), default_collate(samples)
    assert str(made) == str(wanted)
    large = [(torch.full((STACKED_BELOW,), k),) for k in range(2)]
    assert torch.equal(PackCollate(())(large)[0], default_collate(large)[0])


def test_equal_lengths_give_the_same_form() -> None:
    # a rule by lengths would stack these two, and only these
    packed = PackCollate()([torch.ones(3, 2), torch.ones(3, 2)])
    assert isinstance(packed, PackedSequence)
    assert packed.batch_sizes.tolist() == [2, 2, 2]


def test_fields_by_name_and_by_rule() -> None:
    samples = [{"tokens": torch.arange(k + 1), "box": torch.ones(4), "meta": {"id": k}} for k in range(3)]
    for fields in ("tokens", ["tokens"], lambda name, value: name == "tokens"):
        made = PackCollate(fields)(samples)
        assert isinstance(made["tokens"], PackedSequence)
        assert made["box"].shape == (3, 4)
        assert made["meta"]["id"].tolist() == [0, 1, 2]
    asked = []
    PackCollate(lambda name, value: bool(asked.append((name, type(value)))))([(torch.ones(2), {"a": [1], "b": 2})])
    assert asked == [("0", torch.Tensor), ("1.a", list), ("1.a.0", int), ("1.b", int)]
    assert isinstance(PackCollate(1)([(torch.ones(2), torch.ones(k)) for k in (1, 3)])[1], PackedSequence)
    nested = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    assert PackCollate("")(nested).data.tolist() == [[1, 2], [5, 6], [3, 4]]


def test_fields_of_the_same_lengths_share_a_layout() -> None:
    x, y, z = sequences(3), sequences(dtype=torch.int64), sequences(lengths=[1, 3, 7, 7, 2])
    packed = PackCollate()(list(zip(x, y, z, [a.numpy() for a in x], strict=True)))
    assert_packed(packed[1], expected(y))
    assert_packed(packed[2], expected(z))
    for k in (1, 3):
        assert all(mine is first for mine, first in zip(packed[k][1:], packed[0][1:], strict=True))
    assert packed[2].batch_sizes is not packed[0].batch_sizes  # the same batch sizes, but another order
    assert torch.equal(packed[2].batch_sizes, packed[0].batch_sizes)


@pytest.mark.parametrize("batch_first", [True, False])
def test_padded_fields(batch_first: bool) -> None:
    x, tags = sequences(3), sequences(dtype=torch.int64)
    samples = list(zip(x, tags, tags, strict=True))
    packed, (padded, lengths), (zeros, _) = PackCollate(padded={1: -100, "2": 0}, batch_first=batch_first)(samples)
    assert isinstance(packed, PackedSequence)
    assert torch.equal(padded, rnn.pad_sequence(tags, batch_first, -100))
    assert torch.equal(zeros, rnn.pad_sequence(tags, batch_first))
    assert lengths.tolist() == LENGTHS
    only = PackCollate([], padded=[0])(samples[2:4])  # the others are stacked
    assert only[0][0].shape == (2, 7, 3)
    assert only[1].shape == (2, 7)


def test_empty_sequences() -> None:
    for kind in (torch.clone, lambda x: x.numpy(), lambda x: x.tolist()):
        given = [torch.arange(2), torch.arange(0), torch.arange(1)]
        samples = [(kind(x), k) for k, x in enumerate(given)]
        with pytest.raises((ValueError, RuntimeError), match="field '0': sample 1 is a sequence of length 0: pass allow_empty=True"):
            PackCollate()(samples)
        packed, label = PackCollate(allow_empty=True)(samples)
        assert [x.tolist() for x in unpack_sequence(packed)] == [[0, 1], [], [0]]
        assert label.tolist() == [0, 1, 2]


def test_gradients_pass() -> None:
    given = [x.requires_grad_() for x in sequences(2)]
    PackCollate()(given).data.sum().backward()
    assert all(torch.equal(x.grad, torch.ones_like(x)) for x in given)


ONE = torch.ones(2)
REFUSED = {
    "shapes": ([(ONE, 1), (torch.ones(2, 2), 1)], RuntimeError, r"field '0': sample 1 is of shape \(2, 2\), but sample 0 of \(2,\)"),
    "dtypes": (
        [{"x": torch.arange(2)}, {"x": ONE}],
        TypeError,
        "field 'x': sample 1 is of type Tensor and dtype torch.float32, but sample 0",
    ),
    "kinds": ([ONE, np.ones(2)], TypeError, "samples: sample 1 is of type ndarray and dtype float64, but sample 0 is of type Tensor"),
    "no sequence": ([(ONE, 1), (5, 1)], TypeError, "field '0': sample 1 is of type int, which is no sequence"),
    "counts": ([(1, 2), (1,)], ValueError, "samples: sample 1 has 1 items, but sample 0 has 2 items"),
    "keys": ([{"a": {"b": 1}}, {"a": {"c": 1}}], ValueError, r"field 'a': sample 1 has the fields \['c'\], but sample 0 has .*'b'"),
    "forms": ([(1, 2), [1, 2]], ValueError, "samples: sample 1 is of type list, but sample 0 is of type tuple"),
    "classes": ([Slotted(1, 2), Pair(1, 2)], ValueError, "samples: sample 1 is of type Pair, but sample 0 is of type Slotted"),
    "packed": ([(rnn.pack_sequence([ONE]), 1)] * 2, TypeError, r"field '0': sample 0 is a PackedSequence.*unpack_sequence"),
    "lists": ([([1, 2],), ([0.5],)], TypeError, "field '0': lists of float and int have no dtype that is the same in each batch"),
    "nothing": ([[], []], ValueError, "samples: sample 0 is a sequence of length 0"),
    "None": ([(ONE, None)], TypeError, "field '1': default_collate: batch must contain .*NoneType"),
    "words": ([np.array(["a"])], TypeError, "samples: .*str_"),
    "vectors": ([(torch.ones(()),), (ONE,)], RuntimeError, r"field '0': sample 1 is of shape \(2,\).* name it among `fields`"),
    "too large": ([2**63], RuntimeError, "samples: "),
    "no sample": ([], ValueError, "there is no sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_name_the_field_and_the_sample(case: str) -> None:
    samples, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        PackCollate()(samples)


def test_errors_of_arguments() -> None:
    samples = [(ONE, 1)]
    with pytest.raises(ValueError, match=r"the samples have no field 'tokens', but \['0', '1'\]"):
        PackCollate("tokens")(samples)
    with pytest.raises(ValueError, match="no field '2'"):
        PackCollate(padded=[2])(samples)
    with pytest.raises(TypeError, match="field '1': sample 0 is of type int, which is no sequence"):
        PackCollate([0, 1])(samples)
    with pytest.raises(TypeError, match=r"fields has 0\.5, but names are strings, or integers"):
        PackCollate([0.5])
    with pytest.raises(TypeError, match="padded has None"):
        PackCollate(padded={None: 1})


def test_what_is_finished_is_handed_on() -> None:
    finished = expected(sequences())
    assert PackCollate()(finished) is finished


def test_torchs_own_collate_makes_nonsense_of_packed_sequences() -> None:
    # what is refused above: were this to change, so should the docstring
    samples = [rnn.pack_sequence([torch.full((3,), k)], enforce_sorted=False) for k in range(2)]
    assert default_collate(samples).data.shape == (2, 3)


@pytest.mark.parametrize("collate", [PackCollate(), PackCollate(["b"]), PackCollate(padded=["b"]), PackCollate(lambda n, _: n == "b")])
@pytest.mark.parametrize("place", [lambda packed: packed, lambda packed: [packed], lambda packed: {"c": (packed, 1)}])
def test_a_packed_sequence_is_refused_wherever_it_is(collate: PackCollate, place: Any) -> None:
    samples = [{"a": place(rnn.pack_sequence([torch.full((3,), k)], enforce_sorted=False)), "b": ONE} for k in range(2)]
    with pytest.raises(TypeError, match=r"^field 'a.*': sample 0 is a PackedSequence, but .* \(unpack_sequence\) in its place$"):
        collate(samples)


def test_it_is_pickled() -> None:
    collate = pickle.loads(pickle.dumps(PackCollate("x", padded={"y": -1})))
    made = collate([{"x": ONE, "y": [1]}])
    assert isinstance(made["x"], PackedSequence)
