"""The gradients of one layer by torch's own functions: its forward pass again, on what was saved, and torch's derivative of that.

So are second derivatives found, exactly, and gradients that are no dense tensors of this process, as in a transform.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastpack.torch import by_torch
from fastpack.torch.gradients import Record
from fastpack.torch.layout import lacks_memory
from fastpack.torch.panels import Settings
from fastpack.torch.rows import BATCH_FIRST, PACKED, SINGLE


def differentiate_by_torch(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    sources: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of what a layer's results are made from; as functions of it and of `gradients` where gradients are on.

    Parameters
    ----------
    run : callable
        From `sources` to the results.
    sources : sequence of Tensor
        A layer's input, initial states and weights.
    gradients : sequence of Tensor or None
        Of the results.
    wanted : sequence of bool
        Which gradients are.

    Raises
    ------
    RuntimeError
        A tensor has less memory than its shape says, which torch would read without asking.
    """
    is_recorded = torch.is_grad_enabled()
    for tensor in (*sources, *[gradient for gradient in gradients if gradient is not None]):
        if lacks_memory(tensor):
            raise RuntimeError("a tensor that was saved for backward, or a gradient, has no memory: its storage was emptied")
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        # aliases: a tensor may be there twice, or be made from another one
        used = [_alias(source, is_recorded) if wish else source.detach() for source, wish in zip(sources, wanted, strict=True)]
        results = run(used)
    reached = [(one, gradient) for one, gradient in zip(results, gradients, strict=True) if gradient is not None and one.requires_grad]
    if not reached:
        return [None] * len(wanted)
    leaves = [alias for alias, wish in zip(used, wanted, strict=True) if wish]
    ones, others = zip(*reached, strict=True)
    found = iter(torch.autograd.grad(ones, leaves, others, create_graph=is_recorded, allow_unused=True))
    return [next(found) if wish else None for wish in wanted]


def _alias(source: Tensor, is_recorded: bool) -> Tensor:
    return source.view_as(source) if is_recorded else source.detach().requires_grad_()


def run_by_torch(record: Record, sources: Sequence[Tensor]) -> list[Tensor]:
    """Return the output and states that torch makes of the input, initial states and weights of a recorded layer."""
    settings, axes, dtype = _settings(record), record.axes, sources[0].dtype
    if settings.mode == "LSTM" and dtype is torch.float32:  # by oneDNN, whose derivative has none; of float64 torch has its own
        sources = [source.double() for source in sources]
    x, states, weights = sources[0], sources[1 : 1 + record.states], sources[1 + record.states :]
    if axes == SINGLE:
        x, states = x.unsqueeze(1), [state.unsqueeze(1) for state in states]
    elif axes == BATCH_FIRST:
        x = x.transpose(0, 1)
    layout = None
    if axes == PACKED:
        B, T = record.rows.B, record.rows.T
        order, sizes = torch.frombuffer(record.rows.indices, dtype=torch.int64)[-B - T :].tensor_split([B])
        layout = sizes, order, torch.argsort(order)
    output, after = by_torch.run(settings, weights, x, layout, states, 0.0)
    results = [result.squeeze(1) if axes == SINGLE else result for result in (output, *after)]
    return [result.to(dtype) for result in results]


def _settings(record: Record) -> Settings:
    """Return the settings of the layer alone."""
    plan = record.panels.plan
    F = plan.directions[record.layer * plan.D].F
    return plan.settings._replace(input_size=F, num_layers=1)
