"""Hydra sweeper for jobs that are not a grid. Hydra imports it at every start: no heavy imports."""

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from alexlab.sweeps.job_list import read_jobs


class ListSweeper(Sweeper):
    """Sweeper whose jobs, each with its own overrides and folder, are listed in `jobs.json` in the sweep folder."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the config and create the launcher."""
        self.sweep_config = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the listed jobs, each with the overrides of the command line before its own."""
        jobs = read_jobs(Path(self.sweep_config.hydra.sweep.dir))
        self.launcher.launch([[*arguments, *job.overrides, f"hydra.sweep.subdir={job.name}"] for job in jobs], 0)
