"""The benchmarks' own guards: what is timed gives the same results, and a contender that does not is noticed."""

import pytest
import torch

from bench import bench_loader
from bench.cases import Case
from bench.contests import Contest
from bench.rnn_cases import LAYERS, LayerCase
from bench.rnn_contests import by_stretches, close, contenders, inference, layer_contest, rows_of

SMALL = [case for case in LAYERS if case.flops < 3e8]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_contenders_agree(case: LayerCase) -> None:
    contest = layer_contest(case, 1)
    with inference(threads=1):
        contest.check()


def test_registry_reaches_every_kind_of_layer() -> None:
    assert {case.cell for case in SMALL} == {"LSTM", "GRU", "RNN"}
    assert {case.D for case in LAYERS} == {case.L for case in LAYERS} == {1, 2}
    assert {case.dtype for case in LAYERS} == {"float32", "float64"}
    assert len({case.name for case in LAYERS}) == len(LAYERS)
    assert {len(contenders(case)) for case in LAYERS} == {3, 4, 5}


def test_another_result_is_noticed() -> None:
    contest = layer_contest(SMALL[0], 1)
    with inference(threads=1):
        right = contest.contenders["fastpack"]().data
    wrong = right.clone()
    wrong[-1, -1] += 1e-3
    for given, is_right in ((right, True), (wrong, False), (right[:-1], False), (right.double(), False), (right * float("nan"), False)):
        assert close(right, given) is is_right
    with pytest.raises(RuntimeError, match="torch gives another result than fastpack"):
        Contest("a layer", {"fastpack": lambda: right, "torch": lambda: wrong}, close).check()
    with pytest.raises(RuntimeError, match="NumPy gives another result than fastpack"):
        Contest("bits", {"fastpack": lambda: right, "copy": lambda: wrong, "NumPy": lambda: right + 1e-7}).check()


def test_padded_rows_are_compared_without_their_padding() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.tensor([[9.0]]), torch.tensor([[1.0], [2.0], [3.0]])], enforce_sorted=False)
    padded = torch.tensor([[[9.0], [1.0]], [[7.0], [2.0]], [[7.0], [3.0]]])
    assert torch.equal(rows_of(padded, packed), packed.data)
    running_sum = torch.nn.RNN(1, 1, bias=False, nonlinearity="relu")
    for weight in running_sum.parameters():
        torch.nn.init.ones_(weight)
    assert by_stretches(running_sum, packed).data.tolist() == [[1.0], [9.0], [3.0], [6.0]]


def test_operations_are_those_of_real_rows() -> None:
    case = LayerCase("LSTM", 3, 5, 4, "ones")
    assert case.flops == 2 * 4 * (4 * 5 * 3 + 4 * 5 * 5)
    assert case._replace(D=2).flops == 2 * case.flops
    assert case._replace(proj_size=2).flops == 2 * 4 * (4 * 5 * 3 + 4 * 5 * 2 + 2 * 5)
    assert case._replace(cell="GRU", L=2).flops == 2 * 4 * 3 * 5 * (3 + 5 + 5 + 5)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_agree(workers: int) -> None:
    data = bench_loader.synthetic(Case("sentences", 150, (3,), "float32"))
    loaders = bench_loader.contenders(data, workers)
    bench_loader.check(loaders)
    assert {bench_loader.steps_of(loaded) for loaded in loaders.values()} == {len(data.values)}
    assert ["RaggedDataset, a thread"] * workers == [name for name in loaders if name.endswith("thread")]
    wrong = bench_loader.contenders(data._replace(label=data.label + 1), 0)["RaggedDataset"]
    with pytest.raises(RuntimeError, match="RaggedDataset gives other batches than torch"):
        bench_loader.check(loaders | {"RaggedDataset": wrong})


def test_the_loaders_cases_are_real() -> None:
    for case, data in bench_loader.CASES.items():
        values, offsets, label = data()
        assert len(label) == len(offsets) - 1 == int(case.split()[0])
        assert offsets[-1] == len(values)
        assert values.ndim == 1 or case.endswith(f"x {values.shape[1]} floats")
