"""Scoring on a cluster: Ray Data reads, moves and writes, and each worker runs the layer along its block. Nobody needs torch.

    import fastpack, fastpack.ray, numpy, ray.data

    layer = fastpack.LSTM.from_state_dict(numpy.load("model.npz"))
    sequences = ray.data.read_parquet("sequences/")
    fastpack.ray.score(sequences, Scorer(layer, "values", keep=("id",))).write_parquet("scores/")

fastpack, with its extra `ray`, is installed on all machines.
"""

import functools
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import ray
except ModuleNotFoundError as error:
    raise ImportError("fastpack.ray needs ray: pip install 'fastpack[ray]'") from error

from fastpack import parts
from fastpack.parts import Job, Part
from fastpack.scoring import Scorer

RETRIES = 5  # of a part whose worker dies: Ray Data's own are without end, also where the part itself kills it
PATIENCE = 10  # seconds for a cluster to answer

__all__ = ["Scorer", "check_address", "score", "write_parts"]


def score(dataset: Any, scorer: Scorer) -> Any:
    """Score each block of a data set: as many rows, in the same order.

    Parameters
    ----------
    dataset : ray.data.Dataset
        With the scorer's columns. The order is kept in all that is done with it until it is written.
    scorer : Scorer
        What to make of each row. It takes a processor for each of its `num_threads`.

    Returns
    -------
    ray.data.Dataset
        Not yet computed. A block whose worker dies is computed again, by another one.

    Raises
    ------
    TypeError
        `scorer` is none.
    """
    if not isinstance(scorer, Scorer):
        raise TypeError(f"scorer is a {type(scorer).__name__}, not a fastpack.scoring.Scorer: it holds the layer and the column")
    scored = dataset.map_batches(
        scorer.__call__, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=scorer.num_threads
    )
    scored.context.execution_options.preserve_order = True
    return scored


def check_address(address: str) -> None:
    """Check that something answers where a cluster should be. Ray itself tries for minutes, and tells no more than its log.

    Raises
    ------
    ValueError
        `address` is none.
    ConnectionError
        Nothing answers.
    """
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"the cluster's address is {address!r}, but can be host:port, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster is at {address}: {error}") from error


def write_parts(job: Job, missing: list[Part], address: str) -> Iterator[int]:
    """Make parts on a cluster, of which all machines see the job's files and folder by the same paths.

    Parameters
    ----------
    job : Job
        As :func:`fastpack.parts.plan` makes it.
    missing : list of Part
        The parts to make. One whose worker dies is made again, by another one.
    address : str
        The cluster's, as ``ray.init`` takes it.

    Yields
    ------
    int
        The number of rows of a part that is complete.

    Raises
    ------
    InputError
        One could not be made from its input, for the reason that is given.
    RuntimeError
        One could not be made for another reason, such as a full disk.
    OSError
        There is no such cluster.
    """
    if not missing:
        return
    job = job._replace(folder=str(Path(job.folder).absolute()))  # workers stand elsewhere
    from ray import data  # takes a second, and warns of Ray's own doings

    own = not ray.is_initialized()
    if own:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        dataset = data.from_items([{"part": k} for k in range(len(missing))], override_num_blocks=len(missing))
        dataset.context.enable_progress_bars = False
        made = dataset.map(functools.partial(_write_one, job=job, missing=missing), num_cpus=job.scorer.num_threads, max_retries=RETRIES)
        for row in made.iter_rows():
            if row["error"]:
                raise (parts.InputError if row["is_of_input"] else RuntimeError)(row["error"])
            yield row["rows"]
    finally:
        if own:
            ray.shutdown()


def _write_one(row: dict[str, int], job: Job, missing: list[Part]) -> dict[str, Any]:
    """Make one part; what goes wrong is told as a value, for an exception would end what other workers do at this time."""
    try:
        return {"rows": sum(parts.write(job, missing[row["part"]])), "error": "", "is_of_input": False}
    except Exception as error:
        return {"rows": 0, "error": parts.said(error), "is_of_input": isinstance(error, parts.InputError)}
