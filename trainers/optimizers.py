"""The optimisers of the published recipes. Their learning rate is set from outside at every step: no scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch.nn import Parameter

from trainers.choices import STRICT, Number

Momentum = Annotated[Number, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class OptimizerOptions:
    """How gradients move weights; the defaults are torch's Adam, as RDE and STM-Cycle use it. MTMFI: amsgrad."""

    # adam adds the decay to the gradient (L2), adamw takes it off the weights; sgd has no second moments.
    name: Literal["adam", "adamw", "sgd"] = "adam"
    # Decay of first and second moments; sgd's momentum is the first one, as STM-Cycle has it.
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    epsilon: Annotated[Number, Field(gt=0)] = 1e-8
    # Divide by the greatest second moment so far.
    amsgrad: bool = False

    def __post_init__(self) -> None:
        """Refuse what the optimiser does not have."""
        if self.amsgrad and self.name == "sgd":
            raise ValueError("sgd has no second moments; leave amsgrad out, or use adam")


def make_optimizer(
    parameters: Iterable[Parameter], options: OptimizerOptions, *, weight_decay: float
) -> torch.optim.Optimizer:
    """One group of all parameters that are trained, the affine weights of batch norm included."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if options.name == "sgd":
        return torch.optim.SGD(trained, lr=0.0, momentum=options.betas[0], weight_decay=weight_decay)
    kind = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return kind(
        trained,
        lr=0.0,
        betas=options.betas,
        eps=options.epsilon,
        weight_decay=weight_decay,
        amsgrad=options.amsgrad,
    )


def restore_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> bool:
    """Go on with the moments of another optimiser's state; rates, decays and other options stay as they are.

    Returns False, and leaves the optimiser as it was, for moments of another kind or of other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in own]:
        return False
    needed = _names_of_moments(optimizer)
    if any(needed - moments.keys() for moments in saved["state"].values()):
        return False
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
    return True


def _names_of_moments(optimizer: torch.optim.Optimizer) -> set[str]:
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    second = {"max_exp_avg_sq"} if optimizer.defaults["amsgrad"] else set()
    return {"step", "exp_avg", "exp_avg_sq"} | second


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = value
