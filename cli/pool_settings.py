"""The settings of a run on ECS: those of its work pool, if there is one."""

import os
from typing import Any

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from splitter.settings import Settings

POOL = "biospex-ecs"
"""The work pool of the exports, by prefect.yaml."""


def planned_settings() -> tuple[Settings, str]:
    """The settings of a run, and a line with the origin of each.

    A variable of this shell overrides the pool's, to try another value.
    """
    settings = Settings.load()
    names = [name.upper() for name in Settings.model_fields]
    shell = {name: os.environ[name] for name in names if name in os.environ}
    pool = {name: value for name, value in _pool().items() if name in names and name not in shell}
    if pool:
        chosen: dict[str, Any] = {name.lower(): value for name, value in pool.items()}
        settings = Settings(**chosen)
    origins = [f"{name}={value} (this shell)" for name, value in shell.items()]
    origins += [f"{name}={value} (work pool {POOL})" for name, value in pool.items()]
    return settings, "Settings: " + ", ".join([*origins, "the others by default"])


def _pool() -> dict[str, str]:
    """The environment of the work pool's runs; empty if there is no pool."""
    with get_client(sync_client=True) as prefect:
        try:
            template = prefect.read_work_pool(POOL).base_job_template
        except ObjectNotFound:
            return {}
    env = template.get("variables", {}).get("properties", {}).get("env", {}).get("default", {})
    return {name: value for name, value in env.items() if value is not None}
