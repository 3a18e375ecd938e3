"""The objectives: tensors in, scalar and named terms out. They know torch and nothing else.

Every `…_terms` returns the parts whose weighted sum (weights in its docstring) is the loss. On
several ranks the value is that of the global batch; gradients follow `solo_minent.distributed`.
Those of MEC, TWIST and CorInfoMax are closed forms, without a second derivative (an error).
"""

from solo_minent.losses.corinfomax import CorInfoMaxLoss
from solo_minent.losses.mec import mec_coding_length, mec_loss_func, mec_loss_terms
from solo_minent.losses.minent import (
    minent_loss_func,
    minent_loss_terms,
    minent_targets,
    target_entropy,
)
from solo_minent.losses.twist import (
    twist_loss_func,
    twist_loss_terms,
    twist_multicrop_loss_func,
    twist_multicrop_loss_terms,
    twist_self_label_loss_func,
    twist_teacher_loss_func,
    twist_teacher_loss_terms,
)

__all__ = [
    "CorInfoMaxLoss",
    "mec_coding_length",
    "mec_loss_func",
    "mec_loss_terms",
    "minent_loss_func",
    "minent_loss_terms",
    "minent_targets",
    "target_entropy",
    "twist_loss_func",
    "twist_loss_terms",
    "twist_multicrop_loss_func",
    "twist_multicrop_loss_terms",
    "twist_self_label_loss_func",
    "twist_teacher_loss_func",
    "twist_teacher_loss_terms",
]
