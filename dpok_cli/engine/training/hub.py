"""A run's adapter on the Hugging Face hub, with its card and images before and after training."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpok_cli.config import TINY, TrainingConfig
from dpok_cli.config.fields import settings_of
from dpok_cli.engine.bases.source import loading_code
from dpok_cli.engine.lora.files import ADAPTER_FILE
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.errors import DpokError, InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PICTURES = """\
| before training | after training |
|---|---|
| ![before](before.png) | ![after](after.png) |

"""


def check_repo(repo: str) -> None:
    """Raise InputError unless ``repo`` is a name on the hub, as USER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("it has no USER/ before the name")
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no name on the hub: {error}. Give USER/NAME.") from error


def push(
    run: RunFolder, config: TrainingConfig, repo: str, private: bool = False, base: str = ""
) -> str:
    """Upload a run's adapter, card and images in one commit; returns the page's address.

    ``repo`` is made if it does not exist. ``base`` is the base model's hub id, for a run on a local
    copy of it. The token is huggingface_hub's. Raises InputError for a name, token or visibility
    that the hub refuses, DpokError if it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_repo(repo)
    if not (run.adapter / ADAPTER_FILE).is_file():
        raise InputError(f"{run.path} has no adapter yet: train it first.")
    if not get_token():
        raise InputError("There is no token for the hub: run `hf auth login`, or set HF_TOKEN.")
    contents = files(run, config, repo, base)
    changes = [CommitOperationAdd(name, content) for name, content in contents.items()]
    api = HfApi()
    try:
        _make(api, repo, private)
        api.create_commit(repo, changes, commit_message=f"Adapter of the run {run.path.name}")
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise InputError(
                f"The hub refuses to write to {repo} ({code}): your token needs write access to it."
            ) from error
        raise DpokError(f"The hub answered {code} for {repo}: {_one_line(error)}") from error
    except DpokError:
        raise
    except Exception as error:  # of the network, in each library's own kinds
        raise DpokError(f"Cannot upload to {api.endpoint}: {_one_line(error)}") from error
    return f"{api.endpoint}/{repo}"


def files(run: RunFolder, config: TrainingConfig, repo: str, base: str = "") -> dict[str, Any]:
    """Return what is uploaded: paths or bytes, by their names on the hub."""
    grids = pictures(run)
    card = hub_card((run.adapter / "README.md").read_text("utf-8"), config, repo, base, bool(grids))
    return {
        "README.md": card.encode(),
        ADAPTER_FILE: run.adapter / ADAPTER_FILE,
        **{f"{name}.png": path for name, path in grids.items()},
    }


def pictures(run: RunFolder) -> dict[str, Path]:
    """Return the first and the last sample grid, as "before" and "after"; {} without a pair."""
    grids = sorted(run.samples.glob("*-[0-9]*.png"), key=lambda file: int(file.stem.split("-")[-1]))
    return {"before": grids[0], "after": grids[-1]} if len(grids) > 1 else {}


def hub_card(card: str, config: TrainingConfig, repo: str, base: str, with_pictures: bool) -> str:
    """Return a run's card as it is on the hub: it names no folder of this machine."""
    if base:
        other = replace(config, model=base, model_config="")
        kind = re.findall(r"^pipe = (\w+)\.from_", card, re.MULTILINE)[-1]
        card = card.replace(loading_code(config, kind), loading_code(other, kind))
        card = re.sub(r"\A---\n(base_model: .*\n)?", f"---\nbase_model: {base}\n", card)
    for place in sorted(_places(config), key=len, reverse=True):
        card = card.replace(place, base if base and place == config.model else Path(place).name)
    card = card.replace('load_lora_weights(".",', f"load_lora_weights({json.dumps(repo)},")
    if with_pictures:
        card = card.replace("```python\n", f"{PICTURES}```python\n", 1)
        prompt = json.dumps(config.prompts[0], ensure_ascii=False)
        widget = f"widget:\n- text: {prompt}\n  output:\n    url: after.png\n"
        card = card.replace("\n---\n", f"\n{widget}---\n", 1)
    return card


def _places(config: TrainingConfig) -> Iterator[str]:
    """Yield the absolute paths in the settings, those of rewards among them."""
    from dpok_cli.rewards.spec import parse_spec

    values = [
        getattr(config, name) for name, known in settings_of(type(config)).items() if known.path
    ]
    values += [each for text in config.rewards for each in parse_spec(text).options.values()]
    yield from (value for value in values if value and value != TINY and os.path.isabs(value))


def _make(api: HfApi, repo: str, private: bool) -> None:
    """Make the repository; one that exists stays as visible as it is."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        return
    if private and not there.private:
        raise InputError(f"{repo} exists and is public: leave out --private, or give another name.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
