"""RaggedDataset against plain slices and torch's own packing, from every kind of storage."""

import functools
import operator
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Subset

import fastpack.torch as fp
from fastpack import TokenBudgetBatchSampler, storage
from fastpack.torch.batches import Finished
from tests.torch_oracle import assert_packed, assert_same, every_dtype, random_tensor

LENGTHS = [3, 0, 5, 1, 2, 5, 4]
OFFSETS = np.cumsum([0, *LENGTHS])
N, B = sum(LENGTHS), len(LENGTHS)
BATCHES = [[0], [1], [2, 5], [6, 5, 4, 3, 2, 1, 0], [3, 3, 0], [1, 1], [-1, 0, -7]]


class Identity:
    """Collate what is a batch already; unlike a lambda, this can be sent to a spawned process."""

    def __call__(self, batch):
        return batch


def slices(values: torch.Tensor, indices: list[int], offsets: np.ndarray = OFFSETS) -> list[torch.Tensor]:
    parts = [values[start:end] for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    return [parts[i] for i in indices]


def packed(values: torch.Tensor, indices: list[int], offsets: np.ndarray = OFFSETS) -> fp.PackedSequence:
    return fp.pack_sequence(slices(values, indices, offsets), enforce_sorted=False, allow_empty=True)


def mapped(folder: Path, array: np.ndarray, name: str = "values") -> np.memmap:
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


@pytest.mark.parametrize("dtype", every_dtype(), ids=str)
def test_tensors_of_every_dtype(dtype):
    values = random_tensor((N, 3), dtype)
    dataset = fp.RaggedDataset(values, OFFSETS)
    for indices in BATCHES:
        assert_packed(dataset.__getitems__(indices), packed(values, indices))
    assert_same([dataset[i] for i in range(B)], slices(values, list(range(B))))


@pytest.mark.parametrize("trailing", [(), (1,), (3,), (2, 4), (0,)])
def test_storage_of_every_kind(trailing, tmp_path):
    array = np.arange(N * int(np.prod(trailing)), dtype=np.float32).reshape(N, *trailing)
    array[...] = np.random.default_rng(0).normal(size=array.shape)
    values = torch.from_numpy(array)
    wide = np.zeros((2 * N, *[size + 2 for size in trailing]), np.float32)[(slice(0, None, 2), *[slice(1, 1 + size) for size in trailing])]
    wide[...] = array
    frozen = array.copy()
    frozen.flags.writeable = False
    kinds = {
        "array": array,
        "strided": wide,
        "turned": np.asfortranarray(array),
        "backwards": array[::-1].copy()[::-1],
        "read-only": frozen,
        "tensor": values,
        "strided tensor": torch.from_numpy(wide),
    }
    if array.size:
        kinds["memory map"] = mapped(tmp_path, array)
        kinds["part of a memory map"] = mapped(tmp_path, np.concatenate([array, array]), "two")[N:]
        kinds["arrow"] = pa.array(array.reshape(-1))
        for size in trailing[::-1]:
            kinds["arrow"] = pa.FixedSizeListArray.from_arrays(kinds["arrow"], size)
    for name, kind in kinds.items():
        dataset = fp.RaggedDataset(kind, OFFSETS)
        again = pickle.loads(pickle.dumps(dataset))
        for indices in BATCHES:
            assert_packed(dataset.__getitems__(indices), packed(values, indices))
            assert_packed(again.__getitems__(indices), packed(values, indices))
        assert_same(dataset[2], values[3:8])
        dataset[2].fill_(7)  # a sample is nobody else's
        assert_same(dataset[2], values[3:8]), name


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", ">i4", ">i8"])
def test_offsets_of_every_dtype(dtype, tmp_path):
    values, offsets = torch.arange(N), OFFSETS.astype(dtype)
    native = dtype[0] != ">"
    for given in (offsets, mapped(tmp_path, offsets), np.repeat(offsets, 2)[::2], *([torch.from_numpy(offsets)] if native else [])):
        dataset = fp.RaggedDataset(values, given)
        assert_packed(dataset.__getitems__([6, 1, 2]), packed(values, [6, 1, 2]))
        assert dataset.lengths.tolist() == LENGTHS
    assert_same(fp.RaggedDataset(values, OFFSETS.tolist())[2], values[3:8])
    assert_same(fp.RaggedDataset(values, pa.array(OFFSETS))[2], values[3:8])


PER_SEQUENCE = {
    "list": (list(range(B)), torch.arange(B)),
    "floats": ([0.5] * B, torch.full((B,), 0.5, dtype=torch.float64)),
    "array": (np.arange(B, dtype=np.int16), torch.arange(B, dtype=torch.int16)),
    "strided": (np.arange(2 * B)[::-2], torch.arange(2 * B).flip(0)[::2]),
    "booleans": (np.arange(B) % 2 == 0, torch.arange(B) % 2 == 0),
    "rows": (np.arange(6.0 * B).reshape(B, 2, 3), torch.arange(6.0 * B, dtype=torch.float64).view(B, 2, 3)),
    "no items": (np.empty((B, 0)), torch.empty(B, 0, dtype=torch.float64)),
    "tensor": (torch.arange(B).bfloat16(), torch.arange(B).bfloat16()),
    "integer tensor": (torch.arange(B), torch.arange(B)),
    "turned tensor": (torch.arange(2.0 * B).view(2, B).T, torch.arange(2.0 * B).view(2, B).T),
    "arrow": (pa.chunked_array([np.arange(4), np.arange(4, B)]), torch.arange(B)),
    "arrow booleans": (pa.array([True] * B), torch.ones(B, dtype=torch.bool)),
}


@pytest.mark.parametrize("kind", PER_SEQUENCE)
def test_values_of_each_sequence(kind):
    given, expected = PER_SEQUENCE[kind]
    values = torch.arange(N)
    for dataset in (
        fp.RaggedDataset(values, OFFSETS, label=given),
        pickle.loads(pickle.dumps(fp.RaggedDataset(values, OFFSETS, label=given))),
    ):
        for indices in BATCHES:
            batch = dataset.__getitems__(indices)
            assert_packed(batch.values, packed(values, indices))
            assert_same(batch.label, expected[indices])
            sequence, label = batch
            assert sequence is batch.values
            assert label is batch.label
        assert_same(tuple(dataset[2]), (values[3:8], expected[2]))
        assert type(dataset[2]) is type(batch)


NAMES = ["", "a", "bb", "ü", "日本", "a\0b", "\U0001f600"]


@pytest.mark.parametrize(
    "given",
    [NAMES, tuple(NAMES), np.array(NAMES), pa.array(NAMES), pa.chunked_array([NAMES[:2], NAMES[2:]]), pa.array(NAMES).dictionary_encode()],
)
def test_strings_of_each_sequence(given):
    dataset = fp.RaggedDataset(torch.arange(N), OFFSETS, name=given, label=np.arange(B))
    for found in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert list(found.__getitems__([6, 0, 3, 3]).name) == [NAMES[6], NAMES[0], NAMES[3], NAMES[3]]
        assert [sample.name for sample in found] == NAMES


def test_several_fields_of_sequences():
    frames, tags, other = torch.randn(N, 2), torch.arange(N), np.cumsum([0, *LENGTHS[::-1]])
    dataset = fp.RaggedDataset({"frames": frames, "tags": tags}, OFFSETS, label=np.arange(B))
    batch = dataset.__getitems__([4, 2, 0])
    assert_packed(batch.frames, packed(frames, [4, 2, 0]))
    assert_packed(batch.tags, packed(tags, [4, 2, 0]))
    assert all(one is two for one, two in zip(batch.frames[1:], batch.tags[1:], strict=True))  # one layout for both
    assert batch._fields == ("frames", "tags", "label")

    apart = fp.RaggedDataset({"frames": frames, "tags": tags}, {"frames": OFFSETS, "tags": other})
    batch = apart.__getitems__([4, 2, 0])
    assert_packed(batch.frames, packed(frames, [4, 2, 0]))
    assert_packed(batch.tags, packed(tags, [4, 2, 0], other))
    assert apart.lengths.tolist() == LENGTHS
    assert_same(tuple(apart[0]), (frames[:3], tags[: LENGTHS[-1]]))


def test_a_field_alone_is_no_tuple():
    dataset = fp.RaggedDataset(torch.arange(N), OFFSETS)
    assert type(dataset.__getitems__([0, 1])) is fp.PackedSequence
    assert type(dataset[0]) is torch.Tensor
    assert repr(dataset) == "RaggedDataset(7 sequences; values int64 (T, ))"
    named = fp.RaggedDataset(torch.zeros(N, 80), OFFSETS, label=np.zeros(B), name=["x"] * B)
    assert repr(named) == "RaggedDataset(7 sequences; values float32 (T, 80), label float64 (), name str)"
    assert isinstance(named[0], Finished)


def test_names_that_are_no_attributes():
    dataset = fp.RaggedDataset({"input ids": torch.arange(N), "class": torch.arange(N)}, OFFSETS)
    one, two = dataset.__getitems__([2])
    assert_same(one.data, two.data)


GOOD = {"values": np.arange(N), "offsets": OFFSETS}
WRONG = [
    ({"values": np.array(["a"] * N)}, TypeError, "values is of dtype <U1, which torch does not have"),
    ({"values": np.arange(N).astype("M8[s]")}, TypeError, "which torch does not have: convert it, as by .astype or .view"),
    ({"values": np.arange(N).astype(">i4")}, TypeError, "values is of dtype >i4"),
    ({"values": np.array([{}] * N)}, TypeError, "references to Python objects"),
    ({"values": torch.zeros(N, requires_grad=True)}, ValueError, r"values requires grad, .*: pass values.detach\(\)"),
    ({"values": torch.zeros(N, device="meta")}, TypeError, "values is no dense tensor of the CPU"),
    ({"values": torch.zeros(N, 2).to_sparse()}, TypeError, "values is no dense tensor of the CPU"),
    ({"values": 3}, ValueError, "values has 0 dimensions"),
    ({"values": None}, TypeError, "values is None"),
    ({"values": {}}, ValueError, "values is empty"),
    ({"values": {"a": np.arange(N)}, "offsets": {"b": OFFSETS}}, ValueError, "offsets are of 'b', but values of 'a'"),
    ({"values": {"a": np.arange(N - 1)}}, ValueError, r"offsets\[7\] is 20, but offsets end at the number of rows, and values has 19"),
    ({"values": pa.chunked_array([[1], [2]])}, ValueError, r"values has 2 chunks, but needs one: pass values.combine_chunks\(\)"),
    ({"values": pa.array([1, None])}, ValueError, "values has a null"),
    ({"offsets": OFFSETS.astype(float)}, TypeError, "offsets is of dtype float64, not of an integer dtype"),
    ({"offsets": OFFSETS[None]}, ValueError, r"offsets has the shape \(1, 8\)"),
    ({"offsets": OFFSETS[1:]}, ValueError, r"offsets\[0\] is 3, but offsets start at 0"),
    ({"offsets": OFFSETS[:-1]}, ValueError, r"offsets\[6\] is 16, but offsets end at the number of rows, and values has 20"),
    ({"values": np.arange(0), "offsets": [0]}, ValueError, "offsets has 1 entries, but needs B [+] 1"),
    ({"label": np.arange(B + 1)}, ValueError, "label has 8 entries, but values has 7 sequences: pass one for each"),
    ({"label": [{}] * B}, TypeError, "label"),
    ({"label": ["a", 1]}, (TypeError, ValueError), "label"),
    ({"label": np.array([b"a"] * B)}, TypeError, "label is of dtype |S1, but a value of each sequence is one of numbers"),
    ({"label": 5}, ValueError, "label has 0 dimensions"),
    ({"label": torch.tensor(5)}, TypeError, "label is no dense tensor of the CPU with rows"),
    ({"values": {"label": np.arange(N)}, "label": np.arange(B)}, ValueError, "'label' is the name of a field of sequences and of"),
]


@pytest.mark.parametrize(("changes", "error", "problem"), WRONG)
def test_wrong_arguments(changes, error, problem):
    with pytest.raises(error, match=problem):
        fp.RaggedDataset(**(GOOD | changes))


def test_wrong_indices():
    dataset = fp.RaggedDataset(**GOOD)
    for indices, error, problem in [
        ([], ValueError, "indices is empty"),
        ([0, 7], IndexError, r"indices\[1\] is 7, out of range: there are 7 sequences"),
        ([-8, 0], IndexError, r"indices\[0\] is -8, out of range"),
        ([0, -8, 7], IndexError, r"indices\[[12]\] is"),
        ([0.5], TypeError, "not an integer"),
        ([True], TypeError, "not an integer"),
    ]:
        with pytest.raises(error, match=problem):
            dataset.__getitems__(indices)
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"index {index} is out of range"):
            dataset[index]
    with pytest.raises(TypeError, match=r"index is slice.* not an integer: __getitems__ takes several"):
        dataset[1:3]
    assert_packed(dataset.__getitems__(np.array([2, 0], np.uint8)), dataset.__getitems__(torch.tensor([2, 0])))


@pytest.mark.parametrize("batch_size", [2, None])
def test_a_sampler_of_batches_in_the_place_of_one_of_indices(batch_size):
    dataset = fp.RaggedDataset(np.arange(6), [0, 1, 3, 6])
    sampler = TokenBudgetBatchSampler(dataset.lengths, 3, shuffle=False)
    with pytest.raises(TypeError, match=r" is \[2\], not an integer: .*a DataLoader takes a sampler of batches as its batch_sampler"):
        next(iter(DataLoader(dataset, batch_size, sampler=sampler, collate_fn=fp.PackCollate())))
    for taken in (dataset, fp.RaggedDataset({"a": np.arange(6)}, [0, 6])):
        with pytest.raises(TypeError, match=r"^lengths is a RaggedDataset, which has them: pass its \.lengths$"):
            TokenBudgetBatchSampler(taken, 3)


def test_a_batch_that_torch_collates_again_is_nonsense():
    """Nothing tells torch that a batch is complete, as only the DataLoader knows its collate function: the documentation warns of it."""
    values = {"a": np.arange(3), "b": np.arange(3)}
    again = next(iter(DataLoader(fp.RaggedDataset(values, [0, 1, 3]), 2)))
    assert again.data.shape == (2, 3)


@pytest.mark.parametrize("wrong", [[0, 3, 2, 20], [0, 25, 20], [0, -1, 20], [0, 5, 2**40, 20], [0, -(2**40), 20]])
def test_offsets_are_checked_before_a_kernel_takes_them(wrong):
    dataset = fp.RaggedDataset(np.arange(N), np.array(wrong))
    with pytest.raises(ValueError, match=r"offsets of sequence . are .*, but offsets never decrease, and there are rows 0 to 20"):
        dataset.__getitems__(list(range(len(wrong) - 1)))


@pytest.mark.parametrize("dtype", ["<u8", ">u8"])
@pytest.mark.parametrize("step", [1, 2])
def test_offsets_beyond_int64_are_shown_as_they_are(dtype, step):
    wrong = np.repeat(np.array([0, 2**63 + 5, 20], dtype), step)[::step]
    dataset = fp.RaggedDataset(np.arange(N), wrong)
    for index, shown in ((0, "0 and 9223372036854775813"), (1, "9223372036854775813 and 20")):
        with pytest.raises(ValueError, match=f"^offsets of sequence {index} are {shown}, but offsets never decrease"):
            dataset.__getitems__([index])


@pytest.mark.parametrize("dtype", ["<u8", ">u8", ">i4", "<i2", "u4", "i8"])
@pytest.mark.parametrize("step", [1, 3])
def test_offsets_of_any_integers(dtype, step):
    offsets = np.repeat(np.array([0, 3, 3, 20], dtype), step)[::step]
    dataset = fp.RaggedDataset(np.arange(N), offsets)
    assert [sample.tolist() for sample in dataset] == [[0, 1, 2], [], list(range(3, 20))]


def test_offsets_beyond_32_bits(tmp_path):
    with open(tmp_path / "rows", "wb") as file:
        file.truncate(2**31 + 50)  # takes no place on the disk
        file.seek(2**31)
        file.write(bytes(range(50)))
    values = np.memmap(tmp_path / "rows", np.uint8, "r")
    offsets = np.array([0, 10, 2**31 - 5, 2**31 + 5, 2**31 + 50])
    dataset = fp.RaggedDataset(values, offsets)
    last, before = fp.unpack_sequence(dataset.__getitems__([3, 2]))
    assert last.tolist() == list(range(5, 50))
    assert before.tolist() == [0, 0, 0, 0, 0, *range(5)]
    assert_same(dataset[3], last)
    for dtype in (np.int32, np.int16):
        with pytest.raises(
            ValueError, match=r"offsets is of dtype int.., which cannot count the 2147483698 rows of values: make it of int64"
        ):
            fp.RaggedDataset(values, offsets.astype(dtype))
    with pytest.raises(ValueError, match=r"offsets\[4\] is -2147483598"):
        fp.RaggedDataset(values, offsets.astype(np.int32).astype(np.int64))


def test_memory_maps_cross_to_another_process_by_their_path(tmp_path):
    array = np.random.default_rng(0).normal(size=(N, 1000))
    values, offsets = mapped(tmp_path, array), mapped(tmp_path, OFFSETS, "offsets")
    raw = np.memmap(tmp_path / "values.npy", np.uint8, "r")
    header = raw.size - array.nbytes
    for given in (values, np.asarray(values), raw[header:].view(np.float64).reshape(N, 1000)):
        sent = pickle.dumps(fp.RaggedDataset(given, offsets, label=mapped(tmp_path, np.arange(B), "label")))
        assert len(sent) < 2000
        assert_packed(pickle.loads(sent).__getitems__([2, 0])[0], packed(torch.from_numpy(array), [2, 0]))
    assert len(pickle.dumps(fp.RaggedDataset(array, offsets))) > array.nbytes  # what is in memory alone has to be copied
    private = np.load(tmp_path / "values.npy", mmap_mode="c")
    private[0] = 5
    assert (pickle.loads(pickle.dumps(fp.RaggedDataset(private, offsets)))[0][0] == 5).all()


def test_parts_of_memory_maps_are_found_in_their_file(tmp_path):
    array = np.random.default_rng(0).normal(size=(100, 30))
    array.tofile(tmp_path / "raw")
    for offset in (0, 240 * 7):  # that of the map is not that of its parts
        whole = np.memmap(tmp_path / "raw", np.float64, "r", offset).reshape(-1, 30)
        for part in (
            whole,
            whole[50:],
            whole[::-2],
            whole[::-1, ::-1],
            whole.T,
            whole[3:9, 4:5],
            np.asarray(whole)[10:20],
            whole.view(np.int32),
        ):
            found = storage.portable(part)
            assert isinstance(found, storage.Mapped)
            assert found.opened().strides == part.strides
            assert found.opened().tobytes() == part.tobytes()
    for in_memory in (array, whole + 1, whole.copy(), whole[:0], np.zeros(3)):
        assert storage.portable(in_memory) is in_memory


def test_a_memory_map_whose_file_was_truncated(tmp_path):
    dataset = fp.RaggedDataset(mapped(tmp_path, np.arange(1000)), np.arange(0, 1001, 10))
    sent = pickle.dumps(dataset)
    with open(tmp_path / "values.npy", "r+b") as file:
        file.truncate(4000)
    with pytest.raises(ValueError, match=r"values.npy has 4000 bytes, but had 8128 or more when .*: it was truncated"):
        pickle.loads(sent)


LARGE = """
import pickle, sys
import numpy as np
import fastpack.torch as fp

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

with open(sys.argv[1], "wb") as file:
    file.truncate(10 * 2**30)
fp.RaggedDataset(np.zeros((100, 64), np.float32), [0, 50, 100], label=[0, 1]).__getitems__([1, 0])
before = resident()
values = np.memmap(sys.argv[1], np.float32, "r").reshape(-1, 64)
offsets = np.linspace(0, len(values), 1_000_001).astype(np.int64)
dataset = fp.RaggedDataset(values, offsets, label=np.zeros(1_000_000, np.int64))
for k in range(20):
    assert dataset.__getitems__(list(range(k * 50_000, k * 50_000 + 64)))[0].data.shape[1] == 64
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's memory")
def test_ten_gigabytes_are_never_read_whole(child, tmp_path):
    try:
        assert float(child(LARGE, tmp_path / "large")) < 100  # MB, of which offsets and labels are 16
    finally:
        (tmp_path / "large").unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_batches_of_worker_processes(context, tmp_path):
    array = np.random.default_rng(0).normal(size=(N, 3000))  # more than a worker sends by copying
    dataset = fp.RaggedDataset(mapped(tmp_path, array), OFFSETS, label=np.arange(B), name=NAMES)
    loader = DataLoader(
        dataset, 3, collate_fn=Identity(), num_workers=2, multiprocessing_context=context, persistent_workers=True, timeout=60
    )
    for _ in range(2):
        batches = list(loader)
        for batch, indices in zip(batches, ([0, 1, 2], [3, 4, 5], [6]), strict=True):
            assert_packed(batch.values, packed(torch.from_numpy(array), indices))
            assert batch.label.tolist() == indices
            assert list(batch.name) == [NAMES[i] for i in indices]
            tensors = (*batch.values, batch.label)
            assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 3  # data, all indices, labels


def test_a_batch_through_a_plain_loader_and_parts():
    values = torch.arange(N)
    dataset = fp.RaggedDataset(values, OFFSETS, label=np.arange(B))
    for batch, indices in zip(DataLoader(Subset(dataset, [5, 2, 0]), 2, collate_fn=Identity()), ([5, 2], [0]), strict=True):
        assert_packed(batch.values, packed(values, indices))
        assert batch.label.tolist() == indices
    one, two = torch.utils.data.random_split(dataset, [3, 4], torch.Generator().manual_seed(0))
    found = [batch.label.tolist() for part in (one, two) for batch in DataLoader(part, 10, collate_fn=Identity())]
    assert sorted(functools.reduce(operator.iadd, found, [])) == list(range(B))


def test_threads_share_a_data_set():
    from concurrent.futures import ThreadPoolExecutor

    values = torch.randn(N, 100)
    dataset = fp.RaggedDataset(values, OFFSETS, label=np.arange(B), name=NAMES)
    with ThreadPoolExecutor(4) as pool:
        for indices, batch in zip(BATCHES * 20, pool.map(dataset.__getitems__, BATCHES * 20), strict=True):
            assert_packed(batch.values, packed(values, indices))
            assert list(batch.name) == [NAMES[i] for i in indices]
