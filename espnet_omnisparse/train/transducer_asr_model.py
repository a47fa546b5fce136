"""The `asr` task's RNN transducer on a plain installation.

ESPnet's own model imports `warprnnt_pytorch`, which PyPI has not, as soon as there is
a joint network, even if only to decode.
"""

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.transducer.error_calculator import ErrorCalculatorTransducer
from espnet2.asr_transducer.utils import get_transducer_task_io
from espnet2.legacy.nets.e2e_asr_common import ErrorCalculator

from espnet_omnisparse.errors import UserError
from espnet_omnisparse.losses.rnnt import Lattice, make_criterion


class TransducerASRModel(ESPnetASRModel):
    """ESPnet's ASR model, whose transducer needs nothing that PyPI has not.

    Without a joint network it is ESPnet's model, with CTC or attention.

    Args:
        token_list: The vocabulary.
        decoder: ESPnet's transducer decoder, or any other if no joint network is given.
        joint_network: ESPnet's joint network, or `None`.
        ctc_weight: As in ESPnet.
        report_cer: As in ESPnet.
        report_wer: As in ESPnet.
        sym_space: As in ESPnet.
        sym_blank: As in ESPnet.
        **model_conf: Everything else that ESPnet's model takes.

    Raises:
        UserError: If a transducer with several blanks is asked for.
    """

    def __init__(
        self,
        *,
        token_list: list[str],
        decoder: AbsDecoder | None,
        joint_network: torch.nn.Module | None,
        ctc_weight: float = 0.5,
        report_cer: bool = True,
        report_wer: bool = True,
        sym_space: str = "<space>",
        sym_blank: str = "<blank>",
        **model_conf,
    ):
        if joint_network is not None:
            _refuse_multi_blank(model_conf)
        is_transducer = joint_network is not None
        super().__init__(
            token_list=token_list,
            decoder=decoder,
            joint_network=None,
            ctc_weight=ctc_weight,
            report_cer=report_cer and not is_transducer,
            report_wer=report_wer and not is_transducer,
            sym_space=sym_space,
            sym_blank=sym_blank,
            **model_conf,
        )
        if not is_transducer:
            return
        # from here on what ESPnet's constructor does with a joint network
        del self.criterion_att
        self.use_transducer_decoder = True
        self.decoder = decoder
        self.joint_network = joint_network
        self.criterion_transducer = make_criterion(self.blank_id)
        self.error_calculator_trans = None
        if report_cer or report_wer:
            self.error_calculator_trans = ErrorCalculatorTransducer(
                decoder,
                joint_network,
                token_list,
                sym_space,
                sym_blank,
                report_cer=report_cer,
                report_wer=report_wer,
            )
        elif ctc_weight != 0.0:  # ESPnet has CTC's error rate in this case alone
            self.error_calculator = ErrorCalculator(
                token_list, sym_space, sym_blank, report_cer, report_wer
            )

    def lattice(
        self,
        encoder_out: torch.Tensor,
        encoder_lens: torch.Tensor,
        labels: torch.Tensor,
    ) -> Lattice:
        """Decoder and joint network, once for all losses that need them.

        Args:
            encoder_out: `[B, T, D]`.
            encoder_lens: `[B]`.
            labels: `[B, U]`, padded with the ignore id.

        Returns:
            What `criterion_transducer` and `distillation.lattice_loss` take.
        """
        decoder_in, target, t_len, u_len = get_transducer_task_io(
            labels, encoder_lens, ignore_id=self.ignore_id, blank_id=self.blank_id
        )
        self.decoder.set_device(encoder_out.device)
        joint = self.joint_network(
            encoder_out[:, : int(t_len.max())].unsqueeze(2),
            self.decoder(decoder_in).unsqueeze(1),
        )
        return Lattice(joint, target, t_len, u_len)


def _refuse_multi_blank(model_conf: dict) -> None:
    if model_conf.get("transducer_multi_blank_durations"):
        raise UserError(
            "model_conf.transducer_multi_blank_durations is not supported here: remove "
            "it, or use model: espnet, which needs numba and a GPU."
        )
