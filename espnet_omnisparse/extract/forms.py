"""In which form a size is written, decided once: slim, stock, or stock with zeros."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from espnet_omnisparse.core.layout import is_standalone
from espnet_omnisparse.core.spec import SubnetSpec
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.extract.config import (
    OURS_ONLY,
    as_stock,
    conv_norm_of,
    cut_config,
    has_stock_shape,
    is_stock,
    is_transducer,
    without_training,
)
from espnet_omnisparse.extract.cut import State, full_shape_state

SLIM, STOCK, STOCK_ZEROED = "slim", "stock", "stock-zeroed"
#: form -> whether an ESPnet without this package loads it, as a report says it
FORMS = {
    SLIM: "with espnet_omnisparse",  # physically small, needs our encoder class
    STOCK: "yes",  # physically small or full, an ESPnet alone loads it
    STOCK_ZEROED: "yes, zeros",  # the full net's shape, dropped branches zero
}


@dataclass(frozen=True)
class Form:
    """How a size is written.

    Attributes:
        name: A key of `FORMS`.
        config: The ESPnet configuration that builds it.
    """

    name: str
    config: Mapping[str, Any]

    def state(
        self, small: State, full: Mapping[str, torch.Tensor], spec: SubnetSpec
    ) -> State:
        """The tensors that the configuration loads.

        Args:
            small: What `cut_state` cut, calibrated or not.
            full: The supernet's state dict.
            spec: The size.
        """
        if self.name == STOCK_ZEROED:
            return full_shape_state(small, full, spec)
        return small


def form_of(config: Mapping[str, Any], spec: SubnetSpec, stock: bool = False) -> Form:
    """The form in which a size of a supernet is written.

    Args:
        config: The supernet's configuration.
        spec: The size.
        stock: Whether an ESPnet without this package must load it. Where it loads the
            small form anyway, that is the form.

    Raises:
        UserError: If `stock` is asked for and there is no such form: the Conv modules
            have LayerNorm or are causal, which stock ESPnet has not, a cgMLP has some
            of its channels, or the model is a transducer of the `asr` task, for which
            it needs `warprnnt_pytorch`.
    """
    standalone = is_standalone(config)
    if standalone:
        small_in_stock = has_stock_shape(config, spec)
        as_it_is = small_in_stock and spec.chunk is None
    else:
        small_in_stock = is_stock(config, spec) and not is_transducer(config)
        as_it_is = small_in_stock
    if as_it_is or not stock:
        return Form(STOCK if as_it_is else SLIM, cut_config(config, spec))
    _check_has_stock_form(config, spec)
    name = STOCK if small_in_stock else STOCK_ZEROED
    if not standalone:
        return Form(name, as_stock(without_training(config, spec)))
    whole = without_training(config, spec)
    built = cut_config(config, spec) if small_in_stock else whole
    for option in OURS_ONLY:
        built["encoder_conf"].pop(option, None)
    return Form(name, built)


def _check_has_stock_form(config: Mapping[str, Any], spec: SubnetSpec) -> None:
    if is_transducer(config):
        raise UserError(
            "A transducer has no form that stock ESPnet loads, whose own needs "
            "warprnnt_pytorch: extract without --stock."
        )
    if conv_norm_of(config) != "batch_norm":
        raise UserError(
            "A size with encoder_conf.conv_norm: layer_norm has no form that stock "
            "ESPnet loads: train with batch_norm, or extract without --stock."
        )
    if not is_standalone(config) and config["encoder_conf"].get("causal"):
        raise UserError(
            "A size with encoder_conf.causal: true has no form that stock ESPnet "
            "loads, whose own Conformer is not causal: extract without --stock."
        )
    whole = spec.space.parts.get("cgmlp")
    if any(len(row.get("cgmlp", ())) not in (0, whole) for row in spec.kept):
        raise UserError(
            "A size with some of a cgMLP's channels has no form that stock ESPnet "
            "loads, whose LayerNorm would count the dropped ones: extract without "
            "--stock."
        )
