"""pack_ragged, pack_numpy, as_torch and as_numpy: shared memory, devices, transforms, and what each refuses."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

import fastpack
import fastpack.torch as fp
from bench.cases import with_bytes
from tests.oracle import random_array
from tests.torch_oracle import assert_packed, assert_same, every_dtype, random_tensor, unchanged, views

LENGTHS, OFFSETS = [2, 0, 5, 3], [0, 2, 2, 7, 10]
SHARED = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "F", "D"]


def packed_array(dtype="f4", trailing=(3,)) -> fastpack.Packed:
    return fastpack.pack([random_array((length, *trailing), dtype, length) for length in LENGTHS])


# ---- pack_ragged


@pytest.mark.parametrize("case", with_bytes(1 << 21), ids=lambda case: case.name)
def test_pack_ragged_and_pack_numpy(case):
    values = torch.from_numpy(case.values())
    expected = fp.pack_sequence(list(torch.split(values, case.lengths.tolist())), False, allow_empty=True)
    with unchanged(values):
        assert_packed(fp.pack_ragged(values, case.offsets()), expected)
    assert_packed(fp.pack_numpy(case.sequences()), expected)
    assert_packed(fp.as_torch(fastpack.pack(case.sequences())), expected)


@pytest.mark.parametrize("dtype", every_dtype(), ids=str)
def test_pack_ragged_of_every_dtype_and_stride(dtype):
    for trailing in ((), (3,), (2, 1, 3)):
        for name, values in views(random_tensor((10, *trailing), dtype)).items():
            packed = fp.pack_ragged(values, OFFSETS)
            parts = [values.detach()[start:end].clone() for start, end in pairwise(OFFSETS)]
            assert packed.data.is_contiguous(), name
            assert_same(fp.unpack_sequence(packed), parts)


def test_offsets_of_every_kind():
    values = torch.randn(10, 2)
    expected = fp.pack_ragged(values, OFFSETS)
    vector = torch.tensor(OFFSETS)
    for offsets in (tuple(OFFSETS), np.array(OFFSETS, np.uint8), vector, vector.int(), torch.stack([vector, -vector], 1)[:, 0]):
        assert_packed(fp.pack_ragged(values, offsets), expected)


@pytest.mark.parametrize(
    ("values", "offsets", "error", "message"),
    [
        (np.zeros(3), [0, 3], TypeError, "values is a ndarray, not a tensor: fastpack.pack_ragged takes arrays"),
        (torch.tensor(1.0), [0, 1], ValueError, "values has no dimension"),
        (torch.zeros(3), [1, 3], ValueError, r"offsets\[0\] is 1, but offsets start at 0"),
        (torch.zeros(3), [0, 2], ValueError, r"offsets end at the number of rows, and values has 3"),
        (torch.zeros(3), [0, 4], ValueError, r"offsets end at the number of rows, and values has 3"),
        (torch.zeros(3), [0, 2, 1, 3], ValueError, r"offsets\[2\] is 1, but offsets never decrease"),
        (torch.zeros(3), [0], ValueError, "offsets has 1 entries, but needs B \\+ 1"),
        (torch.zeros(3), [0.0, 3.0], TypeError, r"offsets\[0\] is 0.0, not an integer"),
        (torch.zeros(3), torch.tensor([0.0, 3.0]), TypeError, "offsets is of dtype float32, not of an integer dtype"),
        (torch.zeros(3), torch.tensor([False, True]), TypeError, "offsets is of dtype bool, not of an integer dtype"),
        (torch.zeros(3), torch.tensor([[0, 3]]), ValueError, r"offsets has the shape \(1, 2\), but needs one dimension"),
    ],
)
def test_pack_ragged_refuses(values, offsets, error, message):
    with pytest.raises(error, match=message):
        fp.pack_ragged(values, offsets)


def test_pack_ragged_on_other_devices_and_under_transforms():
    values = torch.randn(10, 2)
    data = fp.pack_ragged(values, OFFSETS).data
    meta = fp.pack_ragged(values.to("meta"), OFFSETS)
    assert [field.device.type for field in meta] == ["meta", "cpu", "meta", "meta"]
    assert meta.data.shape == data.shape
    with FakeTensorMode():
        assert fp.pack_ragged(torch.empty(10, 2), OFFSETS).data.shape == (10, 2)
    lazy = torch.randn(10, 2, dtype=torch.complex64).conj()
    assert_packed(fp.pack_ragged(lazy, OFFSETS), fp.pack_ragged(lazy.resolve_conj(), OFFSETS))
    batched = torch.vmap(lambda x: fp.pack_ragged(x, OFFSETS).data)(torch.stack([values, -values]))
    assert_same(batched, torch.stack([data, -data]))
    gradient = torch.func.grad(lambda x: fp.pack_ragged(x, OFFSETS).data.square().sum())(values)
    assert_same(gradient, 2 * values)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_pack_ragged_compiled():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fp.pack_ragged(x * 2, OFFSETS).data + 1, backend="eager")
    values = torch.randn(10, 2)
    assert_same(compiled(values), fp.pack_ragged(values * 2, OFFSETS).data + 1)


# ---- shared memory


@pytest.mark.parametrize("dtype", SHARED)
def test_memory_is_shared_both_ways(dtype):
    packed = packed_array(dtype)
    tensors = fp.as_torch(packed)
    for tensor, array in zip(tensors, packed, strict=True):
        assert (tensor.data_ptr(), tensor.shape) == (array.ctypes.data, array.shape)
    again = fp.as_numpy(tensors)
    assert type(again) is fastpack.Packed
    for array, tensor in zip(again, tensors, strict=True):
        assert (array.ctypes.data, array.shape) == (tensor.data_ptr(), tensor.shape)
    tensors.data[0] = 1
    assert (packed.data[0] == 1).all()
    again.data[1] = 0
    assert not tensors.data[1].any()


def test_tensors_outlive_arrays():
    tensors = fp.as_torch(packed_array())
    before = [tensor.clone() for tensor in tensors]
    junk = [np.full(64, k) for k in range(100)]
    assert_same(tuple(tensors), tuple(before))
    assert len(junk) == 100


def test_as_numpy_of_batches_without_indices():
    packed = rnn.pack_sequence([torch.ones(3, 2), torch.zeros(1, 2)])
    arrays = fp.as_numpy(packed)
    assert arrays.sorted_indices.tolist() == arrays.unsorted_indices.tolist() == [0, 1]
    assert arrays.data.ctypes.data == packed.data.data_ptr()
    assert arrays.lengths.tolist() == [3, 1]


def test_results_of_pack_numpy_are_new():
    array = np.ones((3, 2), np.float32)
    packed = fp.pack_numpy([array])
    packed.data.zero_()
    assert array.all()


@pytest.mark.parametrize(
    "sequences", [[np.array(["a"])], [np.zeros(2, ">f4")], [np.zeros(2, "M8[s]")], [np.zeros(2, "f4,i4")], [np.zeros(2, "S3")]]
)
def test_dtypes_that_torch_does_not_have(sequences):
    with pytest.raises((TypeError, ValueError), match=r"can.t convert np\.ndarray of type|byte order different"):
        fp.pack_numpy(sequences)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2], ids=str)
def test_dtypes_that_numpy_does_not_have(dtype):
    with pytest.raises(TypeError, match="Got unsupported ScalarType"):
        fp.as_numpy(fp.pack_sequence([torch.ones(2).to(dtype)]))


# ---- what is refused


def test_as_torch_refuses():
    packed = packed_array()
    read_only = packed.data.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"data is read-only, and tensors never are: pass packed._replace\(data=packed.data.copy\(\)\)"):
        fp.as_torch(packed._replace(data=read_only))
    with pytest.raises(ValueError, match="batch_sizes add up to 10, but data has 9 rows"):
        fp.as_torch(packed._replace(data=packed.data[:9]))
    with pytest.raises(ValueError, match=r"sorted_indices\[1\] is 2, but it is a permutation|each must be the inverse"):
        fp.as_torch(packed._replace(sorted_indices=np.array([2, 2, 0, 1])))
    with pytest.raises(ValueError, match="negative"):
        fp.as_torch(packed._replace(data=packed.data[::-1]))
    with pytest.raises(TypeError, match=r"packed is a tuple, not a fastpack.Packed"):
        fp.as_torch(tuple(packed))
    with pytest.raises(TypeError, match=r"packed is a PackedSequence, not a fastpack.Packed"):
        fp.as_torch(fp.as_torch(packed))


def test_as_numpy_refuses():
    packed = fp.as_torch(packed_array())
    for error, wrong, message in [
        (TypeError, fp.as_numpy(packed), "sequence is a Packed, not a PackedSequence"),
        (TypeError, packed.data, "sequence is a Tensor, not a PackedSequence"),
        (RuntimeError, packed._replace(data=packed.data.clone().requires_grad_()), "requires grad"),
        (TypeError, packed._replace(data=packed.data.to("meta")), "meta"),
        (RuntimeError, packed._replace(data=packed.data.to(torch.complex64).conj()), "conjugate bit"),
        (TypeError, packed._replace(data=packed.data.to_sparse()), "Sparse"),
        (ValueError, packed._replace(data=packed.data[:9]), "sequence is inconsistent"),
        (ValueError, packed._replace(data=torch.tensor(1.0)), "sequence is inconsistent"),
        (ValueError, packed._replace(batch_sizes=packed.batch_sizes + 1), "sequence is inconsistent"),
        (ValueError, packed._replace(batch_sizes=packed.batch_sizes.flip(0)), "sequence is inconsistent"),
        (ValueError, packed._replace(batch_sizes=packed.batch_sizes[:0]), "sequence is inconsistent"),
        (ValueError, packed._replace(batch_sizes=packed.batch_sizes.int()), "sequence is inconsistent"),
        (ValueError, packed._replace(sorted_indices=packed.unsorted_indices + 1), "sequence is inconsistent"),
        (ValueError, packed._replace(unsorted_indices=packed.unsorted_indices[:2]), "sequence is inconsistent"),
        (ValueError, packed._replace(unsorted_indices=None), "sequence is inconsistent"),
        (ValueError, PackedSequence(torch.zeros(3), torch.tensor([10**15])), "sequence is inconsistent"),
        (ValueError, PackedSequence(torch.zeros(0), torch.tensor([-1])), "sequence is inconsistent"),
    ]:
        with pytest.raises(error, match=message):
            fp.as_numpy(wrong)


def test_strided_index_tensors_are_followed():
    packed = fp.as_torch(packed_array())
    strided = [torch.stack([index, -index], 1)[:, 0] for index in packed[1:]]
    wide = PackedSequence(packed.data, *strided)
    assert_same(fp.unpack_sequence(wide), fp.unpack_sequence(packed))
    assert fp.as_numpy(wide).lengths.tolist() == LENGTHS
