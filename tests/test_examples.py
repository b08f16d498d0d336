"""The example programs: what they are made of, and that they run."""

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.conftest import clean_environment

ROOT = Path(__file__).resolve().parent.parent
CHARACTERS = ROOT / "examples" / "characters.py"


@pytest.fixture(scope="module")
def characters() -> ModuleType:
    specification = importlib.util.spec_from_file_location("characters", CHARACTERS)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(CHARACTERS), *arguments]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_characters_runs() -> None:
    done = run("--minutes", "0.03", "--seeds", "2", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    by_frequency, chance = float(re.findall(r"by frequency ([\d.]+)", done.stdout)[0]), int(re.findall(r"by chance (\d+)", done.stdout)[0])
    (theirs, ours) = re.findall(
        r"(?m)^(?:torch\.nn|fastpack\.torch)\.LSTM +perplexity ([\d.]+) ± [\d.]+, trained in [\d.]+ s$", done.stdout
    )
    assert 1 < by_frequency < chance
    assert 1 < float(theirs) < chance
    assert float(ours) == pytest.approx(float(theirs), rel=0.05)
    for apart in re.findall(r"differ by ([-e\d.]+) of themselves", done.stdout):
        assert float(apart) < 1e-3
    assert len(re.findall(r"(?m)^ +[01] +\d+ +[\d.]+ +[\d.]+ s +[\d.]+ +[\d.]+ s$", done.stdout)) >= 2
    assert "times as fast. It writes:\n\n" in done.stdout


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--seeds", "0"], ["--threads", "-1"], ["--bogus"]])
def test_characters_says_what_is_wrong(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "characters.py: error: " in done.stderr


def test_no_sentence_is_in_both_parts(characters: ModuleType) -> None:
    texts, held_out = characters.sentences()
    assert not set(texts) & set(held_out)
    assert len(texts) > 1000
    assert len(held_out) == pytest.approx(len(texts) / 9, abs=1)
    assert len(set(map(len, texts))) > 100  # of unequal length
    assert min(map(len, texts)) >= characters.SHORTEST
    assert max(map(len, texts)) <= characters.LONGEST


def test_each_character_is_followed_by_the_next(characters: ModuleType) -> None:
    known = characters.Characters(["abc", "x"])
    packed, following = known.batch(["abc", "x"])
    text = lambda numbers: "".join(known.known[k] for k in numbers.tolist())  # noqa: E731
    assert packed.batch_sizes.tolist() == [2, 2, 1, 1]
    assert text(packed.data) == "\n\naxbc"
    assert text(following) == "axb\nc\n"


def test_perplexity_of_knowing_nothing_is_the_number_of_characters(characters: ModuleType) -> None:
    known = characters.Characters(["abc", "x"])
    model = characters.Model(len(known.known))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    assert characters.perplexity(model, [known.batch(["abc", "x"])] * 3) == pytest.approx(5)
    with torch.no_grad():
        model.scores.bias[known.number["x"]] = 50  # sure of what never comes
    assert characters.perplexity(model, [known.batch(["abc"])]) > math.exp(49)


def test_perplexity_by_frequency(characters: ModuleType) -> None:
    # asked are a and the end, each of which was seen 2 times among 5; and each of 3 characters counts once more
    assert characters.by_frequency(["aa", "b"], ["a"]) == pytest.approx(8 / 3)


@pytest.mark.usefixtures("one_thread")
def test_what_a_model_writes_is_repeatable(characters: ModuleType) -> None:
    known = characters.Characters(["abc", "x"])
    model = characters.Model(len(known.known))
    written = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        written.append(characters.write(model, known, 50))
    assert written[0] == written[1] != written[2]
    assert set("".join(written)) <= set(known.known)
