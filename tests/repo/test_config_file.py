"""config/common.properties has every key with its default: a worker that reads it is as one that reads nothing."""

from __future__ import annotations

from pathlib import Path

import javaproperties
import pytest
from pydantic import AliasChoices, BaseModel
from remora.app import configure
from remora.config import Properties, WorkerSettings
from remora.registry import installed_doors, installed_plugins
from remora.scheduler import SchedulerSettings

_FILE = Path(__file__).parents[2] / "config/common.properties"
_MODELS = {
    "worker": WorkerSettings,
    "scheduler": SchedulerSettings,
    **{f"plugin.{name}": plugin.settings for name, plugin in installed_plugins().items() if name != "example"},
    **{f"door.{name}": door.settings for name, door in installed_doors().items()},
}


def _keys(model: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    for field in model.model_fields.values():
        alias = field.validation_alias
        keys.update(map(str, alias.choices) if isinstance(alias, AliasChoices) else [str(alias)])
    return keys


def test_it_has_every_key_and_no_other():
    written = javaproperties.loads(_FILE.read_text()).keys()

    assert written == set().union(*map(_keys, _MODELS.values()))


@pytest.mark.parametrize("model", _MODELS.values(), ids=_MODELS)
def test_what_it_says_is_the_default(model):
    nothing = Properties({}, {}, "nothing")

    assert Properties.load(_FILE, {}).settings(model) == nothing.settings(model)


def test_a_worker_takes_it_as_it_is():
    assert configure(Properties.load(_FILE, {})).doors.keys() == {"grpc"}
