"""Where Hydra looks for a launcher: its class must be of the namespace hydra_plugins. Without submitit there is none."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from diffusion.sweeps.beside import begun_beside

with suppress(ImportError):
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher  # type: ignore[import-untyped]

    class Local(LocalLauncher):  # type: ignore[misc]
        """launcher=submitit_local: submitit's, whose processes are those of this sweep alone."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
            """Hydra's hook."""
            with begun_beside():
                return super().launch(job_overrides, initial_job_idx)
