"""A language model of characters on the sentences of Python's own reference, trained on fastpack's LSTM and on torch's.

    python examples/characters.py --minutes 3 --seeds 1

Sentences are sequences of unequal length: a batch of them is packed, and embedding, LSTM and scores see real characters only.
Both models get packed rows, begin with the same weights and take the same steps in turns until the time is over. Perplexity is of
sentences which were held out: among how many equally likely characters the model has, on average, to choose the next one.
"""

import argparse
import copy
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastpack.torch import LSTM, pack_sequence, restore

END = "\n"  # begins and ends each sentence
SHORTEST, LONGEST = 10, 300  # characters; the longer ones are tables and grammars, mostly
BATCH, EMBEDDED, HIDDEN = 32, 64, 128
LEARNING_RATE = 3e-3
REPORTS = 6  # of each seed
NAMES = ("torch.nn.LSTM", "fastpack.torch.LSTM")


def sentences() -> tuple[list[str], list[str]]:
    """Return the sentences of the texts behind `help()`, each once: those to train with and, every tenth, those to test with."""
    paragraphs = (" ".join(part.split()) for text in topics.values() for part in re.split(r"\n\s*\n", text))
    found = dict.fromkeys(part for paragraph in paragraphs for part in re.split(r"(?<=[.:;?!]) ", paragraph))
    kept = [part for part in found if SHORTEST <= len(part) <= LONGEST]
    return [part for k, part in enumerate(kept) if k % 10], kept[::10]


class Characters:
    """Which number each character has."""

    def __init__(self, texts: list[str]) -> None:
        self.known = sorted({END, *"".join(texts)})
        self.number = {character: k for k, character in enumerate(self.known)}

    def batch(self, texts: list[str]) -> tuple[PackedSequence, Tensor]:
        """Return the packed characters of some texts, and the one that follows each of them, (N,)."""
        numbers = [torch.tensor([self.number[character] for character in f"{END}{text}{END}"]) for text in texts]
        now = pack_sequence([item[:-1] for item in numbers], enforce_sorted=False)
        return now, pack_sequence([item[1:] for item in numbers], enforce_sorted=False).data


class Model(nn.Module):
    """Scores of the next character after each character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDED)
        self.lstm = LSTM(EMBEDDED, HIDDEN)
        self.scores = nn.Linear(HIDDEN, characters)

    def forward(self, packed: PackedSequence) -> Tensor:
        """Return the scores (N, characters) of N packed characters: embedding and scores work on the packed rows as they are."""
        output, _ = self.lstm(packed._replace(data=self.embedding(packed.data)))
        scores: Tensor = self.scores(output.data)
        return scores


class Trainer:
    """A model with its optimiser and the seconds that its steps took."""

    def __init__(self, model: Model) -> None:
        self.model, self.seconds = model, 0.0
        self.optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(self, packed: PackedSequence, following: Tensor) -> float:
        """Change the weights by one batch, and return its loss."""
        begin = time.perf_counter()
        loss = nn.functional.cross_entropy(self.model(packed), following)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.seconds += time.perf_counter() - begin
        return loss.item()


def perplexity(model: Model, batches: list[tuple[PackedSequence, Tensor]]) -> float:
    """Return the model's perplexity on characters that it was not trained with."""
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(model(packed), following, reduction="sum")) for packed, following in batches]
    return math.exp(sum(losses) / sum(len(following) for _, following in batches))


def by_frequency(texts: list[str], held_out: list[str]) -> float:
    """Return the perplexity of guessing each character by how frequent it is, whatever came before."""
    seen, asked = (Counter(END.join([*some, ""])) for some in (texts, held_out))
    total = sum(seen.values()) + len(seen | asked)
    return math.exp(-sum(times * math.log((seen[character] + 1) / total) for character, times in asked.items()) / sum(asked.values()))


def batches(characters: Characters, texts: list[str]) -> Iterator[tuple[PackedSequence, Tensor]]:
    """Yield batches without end, in another order in each round."""
    while True:
        order = torch.randperm(len(texts)).tolist()
        for k in range(0, len(order), BATCH):
            yield characters.batch([texts[i] for i in order[k : k + BATCH]])


def train(seed: int, seconds: float, texts: list[str], held_out: list[str]) -> tuple[list[tuple[float, float]], Model]:
    """Train for so long from a seed, by either layer in turns; return perplexity and seconds of each, torch's first, and our model."""
    torch.manual_seed(seed)
    characters = Characters(texts + held_out)
    ours = Model(len(characters.known))
    trainers = [Trainer(restore(copy.deepcopy(ours))), Trainer(ours)]
    test = [characters.batch(held_out[k : k + BATCH]) for k in range(0, len(held_out), BATCH)]
    begin, reports, apart = time.perf_counter(), 0, 0.0
    for number, batch in enumerate(batches(characters, texts), 1):
        theirs, mine = (trainer.step(*batch) for trainer in trainers)
        if number <= 10:
            apart = max(apart, abs(mine - theirs) / theirs)
        passed = time.perf_counter() - begin
        if passed >= seconds * (reports + 1) / REPORTS:
            reports = int(passed / seconds * REPORTS)
            found = [(perplexity(trainer.model, test), trainer.seconds) for trainer in trainers]
            said = "".join(f"{value:13.3f} {took:8.1f} s" for value, took in found)
            print(f"{seed:4d} {number:6d} {said}", flush=True)
        if passed >= seconds:
            break
    print(f"In the first steps the losses differ by {apart:.1g} of themselves at most.")
    return found, ours


@torch.inference_mode()
def write(model: Model, characters: Characters, count: int) -> str:
    """Return so many characters by a model: it draws one, and goes on from there with its states."""
    text, states = [END], None
    for _ in range(count):
        embedded = model.embedding(torch.tensor([characters.number[text[-1]]]))  # a single sequence of one step
        output, states = model.lstm(embedded, states)
        odds = torch.softmax(model.scores(output[0]) / 0.7, 0)  # a little bolder than it has learnt
        text.append(characters.known[int(torch.multinomial(odds, 1))])
    return "".join(text).strip()


def main() -> None:
    """Train, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="of all trainings together")
    parser.add_argument("--seeds", type=int, default=1, help="how often to train by each layer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if not (options.minutes > 0 and options.seeds > 0 and options.threads > 0):
        parser.error("--minutes, --seeds and --threads must be more than 0")
    torch.set_num_threads(options.threads)
    texts, held_out = sentences()
    characters = Characters(texts + held_out)
    lengths = sorted(map(len, texts))
    print(f"{len(texts):,} sentences of {lengths[0]} to {lengths[-1]} characters, half of them below {lengths[len(lengths) // 2]}")
    print(f"{len(held_out)} held out; perplexity by chance {len(characters.known)}, by frequency {by_frequency(texts, held_out):.1f}")
    print(f"\n{options.threads} thread(s) {NAMES[0]:>26}{NAMES[1]:>24}\nseed   step {2 * '   perplexity   training'}")
    found = []
    for seed in range(options.seeds):
        both, model = train(seed, 60 * options.minutes / options.seeds, texts, held_out)
        found.append(both)
    print()
    for k, name in enumerate(NAMES):
        values, seconds = zip(*(both[k] for both in found), strict=True)
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        print(f"{name:20} perplexity {statistics.mean(values):.3f}{spread}, trained in {statistics.mean(seconds):.1f} s")
    print(f"{statistics.mean(both[0][1] / both[1][1] for both in found):.1f} times as fast. It writes:\n\n{write(model, characters, 300)}")


if __name__ == "__main__":
    main()
