"""Process-wide state of Hydra: our resolver and checks, and a copy of it for jobs on other machines."""

import sys
from dataclasses import dataclass
from typing import Any

from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from alexlab.cli import composition
from alexlab.config import allowlist, own_code
from alexlab.config.grammar import raw_overrides
from alexlab.records.layout import tag


def register() -> None:
    """Install the `tag` resolver and our checks of overrides in Hydra."""
    OmegaConf.register_new_resolver("tag", lambda overrides: tag(raw_overrides(overrides)), replace=True)
    composition.install()


@dataclass(frozen=True)
class ProcessState:
    """Process-wide state of a command that its jobs on other machines need.

    Args:
        hydra: state of Hydra's singletons and resolvers.
        trusted: packages that the command line trusts.
        folders: folders of the user's code.
        program: name of the command.
    """

    hydra: Any
    trusted: tuple[str, ...]
    folders: tuple[str, ...]
    program: str

    @classmethod
    def capture(cls) -> "ProcessState":
        """Return the state of this process."""
        return cls(Singleton.get_state(), allowlist.trusted(), own_code.folders(), sys.argv[0])

    def restore(self) -> None:
        """Give this process the captured state."""
        register()
        allowlist.trust(*self.trusted)
        for folder in self.folders:
            own_code.add_folder(folder)
        Singleton.set_state(self.hydra)
        sys.argv[:] = [self.program]
