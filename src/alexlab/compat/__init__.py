"""Every private name of another library that alexlab uses, each behind one function.

Checked with lightning 2.6.6, torch 2.11 and 2.15, torchvision 0.26 and 0.29, torchmetrics 1.9, hydra 1.3.8, optuna 5.0,
ray 2.60 and huggingface_hub 2.4. A minor release may rename any of them: `tests/compat/test_compat.py` then fails, and the fix
belongs here. `tests/project/test_private_names.py` keeps private names out of all other modules. Libraries are imported
inside the functions, since the command line reads these modules before it imports torch.
"""

from alexlab.compat.huggingface import offline_if_unreachable
from alexlab.compat.hydra import ConfigRepository, config_file, hook_hydra, job_error, load_default
from alexlab.compat.lightning import (
    await_validation,
    disable_signal_handlers,
    finish_steps,
    loop_progress,
    reopen_batch,
    repeat_validation,
    resume_by_epochs,
    validation_is_due,
    validation_is_scheduled,
)
from alexlab.compat.optuna import reopen_trial
from alexlab.compat.python import python3_name
from alexlab.compat.ray import local_ray_options
from alexlab.compat.torch import foreach_norms, pickled_module, shut_down_workers, summary_writer
from alexlab.compat.torchmetrics import light_torchmetrics
from alexlab.compat.torchvision import pet_item

__all__ = [
    "ConfigRepository",
    "await_validation",
    "config_file",
    "disable_signal_handlers",
    "finish_steps",
    "foreach_norms",
    "hook_hydra",
    "job_error",
    "light_torchmetrics",
    "load_default",
    "local_ray_options",
    "loop_progress",
    "offline_if_unreachable",
    "pet_item",
    "pickled_module",
    "python3_name",
    "reopen_batch",
    "reopen_trial",
    "repeat_validation",
    "resume_by_epochs",
    "shut_down_workers",
    "summary_writer",
    "validation_is_due",
    "validation_is_scheduled",
]
