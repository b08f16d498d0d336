"""The training benchmarks' own guards: what is timed gives the same gradients, and a contender that does not is noticed."""

import subprocess
from pathlib import Path

import pytest
import torch

from bench import bench_long_sequences, sweep, training_step
from bench.contests import Contest
from bench.rnn_cases import GATES, LayerCase
from bench.training_contests import TRAINED, Gradients, same_gradients, trainers, training, training_contest

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SMALL = [case for case in TRAINED if case.flops < 3e8]
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's memory")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_contenders_agree(case: LayerCase) -> None:
    contest = training_contest(case)
    with training(threads=1):
        contest.check()


def test_cases_reach_every_kind_of_layer() -> None:
    assert {case.cell for case in SMALL} == {"LSTM", "GRU", "RNN"}
    assert {case.D for case in TRAINED} == {case.L for case in TRAINED} == {1, 2}
    assert {case.dtype for case in TRAINED} == {"float32", "float64"}
    assert any(case.proj_size for case in SMALL)
    assert len({case.name for case in TRAINED}) == len(TRAINED)
    assert {len(trainers(case)) for case in TRAINED} == {2, 3, 4}
    assert all(case.kind != "reviews" for case in TRAINED)


def test_gradients_of_a_contest_are_those_of_a_layer_of_its_own() -> None:
    case = LayerCase("GRU", 3, 5, 4, "x 1..4")
    found = training_contest(case).contenders["fastpack"]()
    layer = torch.nn.GRU(3, 5)
    layer.load_state_dict({name: torch.from_numpy(weight) for name, weight in case.weights().items()})
    upstream = torch.randn(len(found.packed.data), 5, generator=torch.Generator().manual_seed(0))
    layer(found.packed)[0].data.backward(upstream)
    assert same_gradients(found, Gradients(found.packed, found.input, [weight.grad for weight in layer.parameters()]))
    assert found.packed.data.grad is found.input
    assert float(found.input.abs().max()) > 0


@pytest.mark.parametrize("part", ["input", "weights", "padded"])
def test_another_gradient_is_noticed(part: str) -> None:
    contest = training_contest(LayerCase("LSTM", 3, 5, 4, "x 1..4"))
    right, padded = contest.contenders["fastpack"](), contest.contenders["torch, padded"]()
    assert same_gradients(right, padded)
    wrong = padded if part == "padded" else contest.contenders["torch, packed"]()
    longest = int(padded.packed.sorted_indices[0])
    entry = wrong.weights[1][2] if part == "weights" else wrong.input[-1, longest] if part == "padded" else wrong.input[-1]
    for change in (1e-2, float("nan")):
        before = entry.clone()
        entry += change
        assert not same_gradients(right, wrong)
        entry[:] = before
    assert same_gradients(right, wrong)
    assert not same_gradients(right, wrong._replace(weights=[weight.double() for weight in wrong.weights]))
    broken = Contest("a layer", {"fastpack": lambda: right, "torch": lambda: wrong._replace(input=2 * wrong.input)}, same_gradients)
    with pytest.raises(RuntimeError, match="torch gives another result than fastpack"):
        broken.check()


# --- the sweep


@pytest.mark.parametrize("cell", GATES)
def test_shapes_reach_every_size_and_begin_with_one_of_everything(cell: str) -> None:
    cases = list(sweep.shapes(cell))
    first = cases[0]
    assert (first.F, first.H, first.B, first.batch.lengths.tolist()) == (1, 1, 1, [1])
    assert {case.B for case in cases} == set(sweep.SIZES["B"])
    assert {case.F for case in cases} == set(sweep.SIZES["F"])
    assert {case.H for case in cases} == set(sweep.SIZES["H"])
    assert {max(case.batch.lengths) for case in cases} >= set(sweep.SIZES["T"])
    assert len(set(cases)) == len(cases) > 100
    unequal = [case for case in cases if len(set(case.batch.lengths)) > 1]
    assert 30 < len(unequal) < len(cases) - 30


def test_a_sweep_puts_the_worst_first_and_races_slow_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [LayerCase("RNN", F, 1, 1, "x 1") for F in (4, 1, 2, 3)]
    asked: list[tuple[int, float]] = []

    def race(contest: Contest, rival: str, seconds: float) -> tuple[float, float]:
        F = int(contest.name.split()[1])
        asked.append((F, seconds))
        return 1.0, F / 3 + (1.5 if F == 1 and seconds == 7 else 0)  # the first seemed to be the worst

    monkeypatch.setattr(sweep, "shapes", lambda cell: cases)
    monkeypatch.setattr(sweep, "race", race)
    found = sweep.sweep("RNN", "torch, packed", quick=3, long=7)
    assert [(item.case.F, item.ratio) for item in found] == [(2, 2 / 3), (3, 1), (4, 4 / 3), (1, 1 / 3 + 1.5)]
    assert asked == [(4, 3), (1, 3), (2, 3), (3, 3), (1, 7), (2, 7)]


def test_a_sweep_compares_before_it_races(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Contest("a layer", {"fastpack": lambda: 1, "torch, packed": lambda: 2}, lambda a, b: a == b)
    monkeypatch.setattr(sweep, "training_contest", lambda case: wrong)
    with pytest.raises(RuntimeError, match="torch, packed gives another result than fastpack"):
        sweep.raced(LayerCase("RNN", 1, 1, 1, "x 1"), "torch, packed", 0.1)


# --- long sequences


@LINUX
def test_a_long_step_is_taken_by_every_contender() -> None:
    found = bench_long_sequences.race_of(30, training_step.CONTENDERS)
    assert list(found) == ["fastpack", "torch, packed", "torch, padded"]
    for step in found.values():
        assert step is not None
        assert step.loss_after < step.loss_before
        assert step.seconds > 0
        assert step.bytes >= 0


def test_padding_is_no_part_of_the_loss() -> None:
    formed = {contender: training_step.Task(contender).form(training_step.batch(12)) for contender in training_step.CONTENDERS}
    losses = [float(training_step.Task(contender).loss(*given).detach()) for contender, given in formed.items()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    share = formed["torch, padded"][2]
    assert float(share.sum()) == pytest.approx(1)
    assert int((share == 0).sum()) == 12 * 8 - len(formed["fastpack"][1])


def test_who_runs_out_of_time_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def run(command: list[str], *, timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        contender, T = command[-2:]
        asked.append((contender, T))
        if contender == "torch, packed" and int(T) > 1000:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, "1.5 2000 1.0 0.9", "")

    monkeypatch.setattr(bench_long_sequences.subprocess, "run", run)
    found = bench_long_sequences.all_steps()
    assert found[1000]["torch, packed"] == (1.5, 2000, 1.0, 0.9)
    assert found[2000]["torch, packed"] is None
    assert "torch, packed" not in found[4000]
    assert [T for contender, T in asked if contender == "torch, packed"] == ["500", "1000", "2000"]
    assert [T for contender, T in asked if contender == "fastpack"] == ["500", "1000", "2000", "4000", "10000"]


@pytest.mark.parametrize(
    ("printed", "message"), [("1 2 1.0 1.0", "the loss was 1.0 and is 1.0"), ("1 2 1.0 nan", "the loss was 1.0 and is nan")]
)
def test_a_step_that_learns_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch, printed: str, message: str) -> None:
    done = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr(bench_long_sequences.subprocess, "run", lambda *_, **options: done)
    with pytest.raises(RuntimeError, match=message):
        bench_long_sequences.take("fastpack", 10)


def test_other_losses_and_failures_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"fastpack": bench_long_sequences.Step(1, 1, 1.0, 0.9), "torch, packed": bench_long_sequences.Step(1, 1, 1.0, 0.91), "x": None}
    with monkeypatch.context() as patch:
        patch.setattr(bench_long_sequences, "take", lambda contender, T, limit: steps[contender])
        with pytest.raises(RuntimeError, match=r"10 steps: the losses are \(0\.9, 0\.91\)"):
            bench_long_sequences.race_of(10, list(steps))
    with pytest.raises(RuntimeError, match="failed:\n"):
        bench_long_sequences.take("fastpack", -1)


def test_memory_that_grows_faster_than_the_steps_is_noticed() -> None:
    def steps(bytes_along_10_000: float) -> dict[int, dict[str, bench_long_sequences.Step | None]]:
        return {T: {"fastpack": bench_long_sequences.Step(1, size, 1.0, 0.9)} for T, size in ((500, 100), (10_000, bytes_along_10_000))}

    bench_long_sequences.check_linear(steps(2100), 10_000)
    with pytest.raises(MemoryError, match=r"bytes=100.* along 500 steps.*bytes=2500.* along 10,000"):
        bench_long_sequences.check_linear(steps(2500), 10_000)
    with pytest.raises(MemoryError, match="None along 10,000"):
        bench_long_sequences.check_linear(steps(2000) | {10_000: {"fastpack": None}}, 10_000)
