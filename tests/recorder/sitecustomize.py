"""Put on a process's PYTHONPATH, it notes each call to AWS in the file that AWS_CALLS names."""

import os
from pathlib import Path
from typing import Any

from botocore.session import Session

PATH = os.environ.get("AWS_CALLS")


def _note(model: Any, **_: Any) -> None:
    with Path(str(PATH)).open("a", encoding="ascii") as calls:
        calls.write(f"{model.service_model.service_name}:{model.name}\n")


def _init(session: Any, *arguments: Any, **options: Any) -> None:
    _original(session, *arguments, **options)
    session.register("before-call", _note)


_original: Any = Session.__init__
if PATH:
    Session.__init__ = _init  # type: ignore[method-assign, assignment]
