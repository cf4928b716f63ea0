"""Models from the Hugging Face Hub through huggingface_hub: resumable, verified downloads with an atomic rename at the end.

The token is huggingface_hub's own (environment or login) and is used in request headers only.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse

from ..errors import SA3Error
from ..models.t5gemma import encoder_config
from .checkpoint import CONFIG, WEIGHTS
from .detect import TEXT_SUBFOLDER
from .releases import DOWNLOADED, RELEASES, Release, find
from .tensors import check_file, sha256

PAGES = "https://huggingface.co"
RESERVE = 200_000_000  # bytes of disk space that stay free
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a file in its own folder on every system


@dataclass(frozen=True)
class RemoteFile:
    repository: str
    revision: str  # a commit
    path: str  # in the repository
    local: str  # below the model's folder
    size: int
    sha256: str | None  # published for large files only


def download(
    release: Release, folder: str | Path, source: str = "official", progress: Callable[[int, int], None] | None = None
) -> Path:  # fmt: skip
    """Download a model into folder/<release.folder> and return that folder; a complete one is not downloaded again.

    An interrupted download stays in a hidden folder next to the target and is resumed. progress(bytes done, bytes in total) may raise
    to stop. Raises SA3Error without access, disk space or connection, and for a wrong hash.
    """
    from huggingface_hub import get_token

    target = Path(folder) / release.folder
    if target.exists():
        if (target / WEIGHTS).is_file():
            return target
        raise SA3Error(f"{target} exists and has no {WEIGHTS}; move it away, then download again.")
    token = get_token()
    repository, revision, prefix = release.location(source)
    try:
        _check_access(repository, revision, prefix, token)
        files = _files_of(release, repository, revision, prefix, token)
        partial = target.with_name(f".{target.name}.part")
        _check_space(partial, files)
        _fetch_all(partial, files, token, progress or (lambda done, total: None))
    except Exception as error:
        if not _is_download_error(error):
            raise  # SA3Error, or what `progress` raised to stop
        raise _explain(error, repository, token) from None  # the original may quote request headers
    weights = files[-1]
    record = {"repository": repository, "revision": weights.revision, "sha256": weights.sha256, "variant": release.variant}
    (partial / DOWNLOADED).write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.rename(partial, target)
    return target


def verify(path: Path, model: str | None = None) -> str:
    """The release whose published sha256 a weights file has. Raises SA3Error for no release, or another one than `model`."""
    check_file(path)
    digest = sha256(path)
    published = next((release for release in RELEASES.values() if release.sha256 == digest), None)
    if published is None or (model is not None and published is not find(model)):
        wanted = "that of no published release" if model is None else f"not that of {model}, {find(model).sha256}"
        raise SA3Error(f"{path} has sha256 {digest}, {wanted}; the file is damaged, converted or another model. Download it again.")
    return f"{path} is {published.repository} at revision {published.revision}, byte for byte."


def cached_text_encoder(width: int) -> Path | None:
    """A T5Gemma folder of this width in the Hub's local cache. Makes no network request."""
    from huggingface_hub import try_to_load_from_cache

    for release in RELEASES.values():
        for revision in (None, release.revision):
            config = try_to_load_from_cache(release.repository, f"{TEXT_SUBFOLDER}/config.json", revision=revision)
            if not isinstance(config, str):
                continue
            folder = Path(config).parent
            complete = all((folder / name).is_file() for name in (WEIGHTS, "tokenizer.json"))
            try:
                if complete and encoder_config(folder).encoder.hidden_size == width:
                    return folder
            except SA3Error:
                continue
    return None


def _check_access(repository: str, revision: str | None, prefix: str, token: str | None) -> None:
    """Raise SA3Error where this user cannot read the repository."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repository, prefix + CONFIG, revision=revision), token=token or False)
    except Exception as error:
        if _status(error) not in (401, 403):
            raise
        raise _explain(error, repository, token) from None  # the original may quote request headers


def _files_of(release: Release, repository: str, revision: str | None, prefix: str, token: str | None) -> list[RemoteFile]:
    """The model's files, its text encoder and its licences; the weights come last."""
    files = _list_files(repository, revision, prefix, token)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise SA3Error(f"{repository} has no {prefix}{name}; the repository has changed. Update the pack, or copy the model by hand.")
    if not release.is_autoencoder and not any(name.startswith(TEXT_SUBFOLDER) for name in files):
        other = RELEASES[release.variant.removesuffix("-base")]  # a base model's config names its sibling's text encoder
        _check_access(other.repository, other.revision, "", token)
        found = _list_files(other.repository, other.revision, "", token)
        files |= {name: file for name, file in found.items() if name.startswith(TEXT_SUBFOLDER) and name not in files}
    if revision is not None:
        files[WEIGHTS] = replace(files[WEIGHTS], sha256=release.sha256)
    return sorted(files.values(), key=lambda file: (file.local == WEIGHTS, file.local))


def _list_files(repository: str, revision: str | None, prefix: str, token: str | None) -> dict[str, RemoteFile]:
    """The files at a revision that belong to a model, by their path below its folder."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True, token=token or False)
    files = {}
    for entry in info.siblings:
        local = entry.rfilename.removeprefix(prefix)
        if _is_licence(local) or (entry.rfilename.startswith(prefix) and _is_model_file(local)):
            digest = entry.lfs.sha256 if entry.lfs else None
            files[local] = RemoteFile(repository, info.sha or revision or "main", entry.rfilename, local, entry.size or 0, digest)
    return files


def _is_licence(name: str) -> bool:
    return name.startswith(("LICENSE", "NOTICE")) and _SAFE_NAME.fullmatch(name) is not None


def _is_model_file(name: str) -> bool:
    """Whether a name is the config, the weights, or a file of the text encoder that stays inside the model's folder."""
    folder, _, file = name.rpartition("/")
    return name in (CONFIG, WEIGHTS) or (folder == TEXT_SUBFOLDER and _SAFE_NAME.fullmatch(file) is not None)


def _check_space(partial: Path, files: list[RemoteFile]) -> None:
    place = next(parent for parent in partial.absolute().parents if parent.exists())
    received = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    missing = sum(file.size for file in files) - received
    free = shutil.disk_usage(place).free
    if free < missing + RESERVE:
        raise SA3Error(f"{place} has {free / 1e9:.1f} GB free, the download needs {missing / 1e9:.1f} GB; make room or use another folder.")


def _fetch_all(partial: Path, files: list[RemoteFile], token: str | None, progress: Callable[[int, int], None]) -> None:
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        place = partial / file.local
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_file():
            part = place.with_name(f"{place.name}.part")
            _fetch(file, part, token, lambda size, before=done: progress(before + size, total))
            _verify(file, part, lambda _, size, before=done: progress(before + size, total))
            os.replace(part, place)
        done += file.size
        progress(done, total)


class _Counting:
    """A file that reports its size after each write of huggingface_hub's transfer."""

    def __init__(self, file, progress: Callable[[int], None]):
        self.file, self.progress = file, progress
        self.seek, self.tell, self.truncate, self.flush = file.seek, file.tell, file.truncate, file.flush

    def write(self, data: bytes) -> int:
        written = self.file.write(data)
        self.progress(self.file.tell())
        return written


def _fetch(file: RemoteFile, part: Path, token: str | None, progress: Callable[[int], None]) -> None:
    """Append the missing bytes of a file to `part`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(file.repository, file.path, revision=file.revision)
    remote = get_hf_file_metadata(url, token=token or False)
    headers = build_hf_headers(token=token or False)
    if urlparse(remote.location).netloc != urlparse(url).netloc:  # a storage host has signed addresses and must not see the token
        headers.pop("authorization", None)
    received = part.stat().st_size if part.is_file() else 0
    if received > (remote.size or file.size):
        part.unlink()
        received = 0
    with open(part, "ab") as out:
        http_get(
            remote.location, _Counting(out, progress), resume_size=received, headers=headers, expected_size=remote.size,
            displayed_filename=file.local,
        )  # fmt: skip


def _verify(file: RemoteFile, part: Path, progress: Callable[[int, int], None]) -> None:
    """Delete a file of the wrong size or hash and raise SA3Error."""
    size = part.stat().st_size
    if file.size and size != file.size:
        part.unlink()
        raise SA3Error(f"{file.path} arrived with {size} bytes, expected {file.size}; it was deleted, download again.")
    if file.sha256 is not None and (digest := sha256(part, progress)) != file.sha256:
        part.unlink()
        raise SA3Error(
            f"{file.repository}/{file.path} has the sha256 {digest[:16]}…, expected {file.sha256[:16]}…: it is not the published file. "
            "It was deleted; download again."
        )


def _is_download_error(error: Exception) -> bool:
    """Whether an error is of the disk, the network or the Hub. The HTTP library depends on huggingface_hub's version."""
    packages = ("huggingface_hub", "httpx", "httpx2", "requests", "urllib3")
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in packages


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(error: Exception, repository: str, token: str | None) -> SA3Error:
    """The SA3Error for a failed download: its cause and the way out, without the token."""
    kind, status = type(error).__name__, _status(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return SA3Error("The disk is full. What has arrived is kept; make room and download again to resume.")
    if status in (401, 403):
        login = "your token has no access to it" if token else "no token was found"
        return SA3Error(
            f"{repository} cannot be read ({status}): {login}. Accept the licence at {PAGES}/{repository}, then log in with "
            "'hf auth login' or set HF_TOKEN, and try again."
        )
    if kind == "RevisionNotFoundError":
        return SA3Error(f"{repository} no longer has the revision that this pack was tested with; update to a newer version of the pack.")
    if status == 404:
        return SA3Error(f"{repository} or a file in it was not found (404); the repository may have moved. See {PAGES}/{repository}.")
    if kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
        return SA3Error("huggingface_hub is set to offline (HF_HUB_OFFLINE); unset it to download.")
    if status is not None:
        return SA3Error(f"The Hub answered {status} for {repository}; try again later. What has arrived is kept.")
    text = str(error).replace(token, "…") if token else str(error)
    return SA3Error(f"The download of {repository} broke off ({kind}: {text[:200]}). What has arrived is kept; download again to resume.")
