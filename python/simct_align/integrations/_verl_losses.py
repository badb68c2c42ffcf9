"""Internal: the distillation losses of the verl adapter, which verl calls by their names."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.trainer.ppo.core_algos import kl_penalty
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from simct_align.integrations._tensors import spread_estimates

if TYPE_CHECKING:
    import torch

#: verl's names of the estimators, by the names of the losses.
ESTIMATORS = {"simct_k1": "k1", "simct_k2": "k2", "simct_k3": "k3"}


@register_distillation_loss(  # type: ignore[untyped-decorator]
    DistillationLossSettings(names=[*ESTIMATORS], use_estimator=True)
)
def unit_loss(
    config: Any, distillation_config: Any, model_output: Any, data: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Estimate KL(student ‖ teacher) from whole units, as verl's estimators do from tokens.

    The estimator of a unit is computed from both models' sums over the unit, and shared by the
    unit's tokens.

    Returns:
        The loss of every token, `[B, response length]`, and metrics.
    """
    del config
    settings = distillation_config.distillation_loss
    mode = ESTIMATORS[settings.loss_mode]
    if mode == "k1" and not settings.use_policy_gradient:
        raise ValueError("loss_mode 'simct_k1': expected use_policy_gradient=True, as for 'k1'")
    own, teacher, units = (
        no_padding_2_padding(values, data)
        for values in (model_output["log_probs"], data["teacher_logprobs"], data["teacher_ids"])
    )
    mask = data["response_mask"]
    mask = mask.to_padded_tensor(0) if mask.is_nested else mask
    estimate = partial(kl_penalty, kl_penalty=mode)
    losses, share = spread_estimates(estimate, own, teacher[..., 0], units=units[..., 0], mask=mask)
    return losses, {"distillation/tokens_in_units": Metric(AggregationType.MEAN, share)}
