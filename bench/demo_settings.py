"""How the demo's training settings were chosen: cross-validation inside the training set. The test set is never touched.

    python bench/demo_settings.py

Each candidate is trained on four fifths of the training utterances and judged on the fifth left out, for each fifth and seed.
A fifth is a block of consecutive recordings of every speaker: neighbours sound alike, and would make the task too easy.
Accuracy on 270 utterances is coarse (many candidates tie), so the lowest mean loss wins.
Takes about fifteen minutes on one core.
"""

import time
from itertools import product

import torch

from fastpack.demo import speakers

FOLDS = 5
SEEDS = (1, 2, 3)
CANDIDATES = [
    speakers.Settings(hidden_size=H, pooling=pooling, dropout=0.2, noise=noise, learning_rate=1e-2, epochs=epochs, batch_size=30)
    for H, pooling, noise, epochs in product((32, 64), ("mean", "last"), (0.0, 0.3, 0.6, 1.2), (20, 40))
]


def folds(training: speakers.Utterances) -> torch.Tensor:
    """Return the fold of each training utterance, in blocks of consecutive recordings of each speaker."""
    who = training.speaker[training.chosen]
    fold = torch.empty_like(who)
    for speaker in range(speakers.SPEAKERS):
        (mine,) = torch.where(who == speaker)
        fold[mine] = torch.arange(len(mine)) * FOLDS // len(mine)
    return fold


def judge(training: speakers.Utterances, settings: speakers.Settings) -> tuple[float, float]:
    """Return the cross-validated accuracy and loss of `settings`."""
    fold = folds(training)
    loss, right = 0.0, 0
    for seed, k in product(SEEDS, range(FOLDS)):
        torch.manual_seed(seed)
        fitted, held_out = training.only(fold != k), training.only(fold == k)
        model = speakers.SpeakerNamer(fitted.frames(), settings)
        for _ in speakers.train([model], speakers.Loader(fitted, settings.batch_size, shuffle=True)):
            pass
        mean, named = speakers.evaluate(model, speakers.Loader(held_out, len(held_out)))
        loss += mean * len(held_out)
        right += int(named.sum())
    return right / len(training) / len(SEEDS), loss / len(training) / len(SEEDS)


def main() -> None:
    torch.set_num_threads(1)  # the same bits whatever the machine's number of cores
    training, _ = speakers.load()
    print(f"{len(CANDIDATES)} candidates, {len(training)} training utterances in {FOLDS} folds, seeds {SEEDS}")
    print(f"{'accuracy':>8}  {'loss':>6}  {'seconds':>7}  settings")
    found = []
    for settings in CANDIDATES:
        begin = time.perf_counter()
        accuracy, loss = judge(training, settings)
        found.append((loss, settings))
        described = ", ".join(f"{name}={value}" for name, value in settings._asdict().items())
        print(f"{accuracy:8.1%}  {loss:6.4f}  {time.perf_counter() - begin:7.1f}  {described}", flush=True)
    print(f"\nchosen: {min(found)[1]}")


if __name__ == "__main__":
    main()
