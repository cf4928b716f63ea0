"""A model from the Hub into a folder, through huggingface_hub: resumable, verified, and under its final name only when complete.

The token is huggingface_hub's own (the environment's or the login's). It goes into request headers and nowhere else.
"""

import errno
import hashlib
import inspect
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from ..errors import SA3Error
from ..run_record import DOWNLOADED
from .checkpoint import CONFIG, WEIGHTS, sha256
from .detect import TEXT_SUBFOLDER
from .releases import RELEASES, Release

Progress = Callable[[int, int], None]  # bytes done, bytes in all

PAGES = "https://huggingface.co"
SPARE = 200_000_000  # bytes that stay free
ACCESS_SECONDS = 60.0  # how long an answer about access is believed
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # names that mean a file in its folder on every system
_access: dict[tuple[str, str], tuple[float, str]] = {}


@dataclass(frozen=True)
class RemoteFile:
    repository: str
    revision: str  # a commit
    path: str  # in the repository
    local: str  # below the model's folder
    size: int
    sha256: str | None  # known for large files


def download(release: Release, folder: str | Path, source: str = "official", progress: Progress | None = None) -> Path:
    """Download a model into folder/<its name> and return that folder; one that is complete already is left alone.

    What has arrived of a broken download lies in a hidden folder beside and is gone on with. progress(bytes done, bytes in all)
    may raise to stop. Raises SA3Error: no access, no space, a wrong hash, no connection.
    """
    target = Path(folder) / release.folder
    if target.exists():
        if (target / WEIGHTS).is_file():
            return target
        raise SA3Error(f"{target} exists and has no {WEIGHTS}; move it away, then download again.")
    token = _token()
    repository, revision, prefix = release.where(source)
    try:
        check_access(repository, revision, prefix, token)
        files = _wanted(release, repository, revision, prefix, token)
        partial = target.with_name(f".{target.name}.part")
        _check_space(partial, files)
        _fetch_all(partial, files, token, progress)
    except Exception as error:
        if not _foreseen(error):
            raise  # SA3Error, or whatever `progress` stops with
        raise explain(error, repository, token) from None  # the original may quote request headers
    weights = next(file for file in files if file.local == WEIGHTS)
    record = {"repository": repository, "revision": weights.revision, "sha256": weights.sha256, "variant": release.variant}
    (partial / DOWNLOADED).write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.rename(partial, target)
    return target


def check_access(repository: str, revision: str | None, prefix: str, token: str | None) -> None:
    """Ask once whether this user may read the repository, before anything is promised."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    key = (hashlib.sha256((token or "").encode()).hexdigest(), repository)
    asked, answer = _access.get(key, (-ACCESS_SECONDS, ""))
    if time.monotonic() - asked > ACCESS_SECONDS:
        answer = ""
        try:
            get_hf_file_metadata(hf_hub_url(repository, prefix + CONFIG, revision=revision), token=token or False)
        except Exception as error:
            if _status(error) not in (401, 403):
                raise
            answer = str(explain(error, repository, token))
        _access[key] = (time.monotonic(), answer)
    if answer:
        raise SA3Error(answer)


def _token() -> str | None:
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise SA3Error("Downloads need the package 'huggingface_hub'; install it, or put the files there by hand.") from error
    return get_token()


def _wanted(release: Release, repository: str, revision: str | None, prefix: str, token: str | None) -> list[RemoteFile]:
    """The model's files, its text encoder and its licences; the weights come last."""
    files = _listed(repository, revision, prefix, token)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise SA3Error(f"{repository} has no {prefix}{name}; the repository has changed, so this pack cannot download it.")
    if not release.is_autoencoder and not any(name.startswith(TEXT_SUBFOLDER) for name in files):
        other = RELEASES[release.variant.removesuffix("-base")]  # a base model's config names its sibling's text encoder
        check_access(other.repository, other.revision, "", token)
        found = _listed(other.repository, other.revision, "", token)
        files |= {name: file for name, file in found.items() if name.startswith(TEXT_SUBFOLDER) and name not in files}
    if revision is not None:
        weights = files[WEIGHTS]
        files[WEIGHTS] = RemoteFile(weights.repository, weights.revision, weights.path, WEIGHTS, weights.size, release.sha256)
    return sorted(files.values(), key=lambda file: (file.local == WEIGHTS, file.local))


def _listed(repository: str, revision: str | None, prefix: str, token: str | None) -> dict[str, RemoteFile]:
    """Of all files at a revision those that belong to a model, by their place in its folder."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True, token=token or False)
    found = {}
    for one in info.siblings:
        inside = one.rfilename.startswith(prefix)
        local = one.rfilename.removeprefix(prefix)
        if not (_is_licence(local) or (inside and _is_model_file(local))):
            continue
        digest = (one.lfs or {}).get("sha256") if isinstance(one.lfs, dict) or one.lfs is None else one.lfs.sha256
        found[local] = RemoteFile(repository, info.sha or revision or "main", one.rfilename, local, one.size or 0, digest)
    return found


def _is_licence(name: str) -> bool:
    return name.startswith(("LICENSE", "NOTICE")) and _PLAIN.fullmatch(name) is not None


def _is_model_file(name: str) -> bool:
    """Config, weights, or a file of the text encoder: names that stay inside the model's folder."""
    folder, _, file = name.rpartition("/")
    return name in (CONFIG, WEIGHTS) or (folder == TEXT_SUBFOLDER and _PLAIN.fullmatch(file) is not None)


def _check_space(partial: Path, files: list[RemoteFile]) -> None:
    place = next(parent for parent in partial.absolute().parents if parent.exists())
    missing = sum(max(0, file.size - _arrived(partial, file)) for file in files)
    free = shutil.disk_usage(place).free
    if free < missing + SPARE:
        raise SA3Error(
            f"{place} has {free / 1e9:.1f} GB free and the download needs {missing / 1e9:.1f} GB more; make room, or choose another folder."
        )


def _arrived(partial: Path, file: RemoteFile) -> int:
    for path in (partial / file.local, partial / f"{file.local}.part"):
        if path.is_file():
            return path.stat().st_size
    return 0


def _fetch_all(partial: Path, files: list[RemoteFile], token: str | None, progress: Progress | None) -> None:
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        place = partial / file.local
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_file():
            part = place.with_name(f"{place.name}.part")
            _fetch(file, part, token, None if progress is None else lambda n, before=done: progress(before + n, total))
            _verify(file, part, None if progress is None else lambda _, n, before=done: progress(before + n, total))
            os.replace(part, place)
        done += file.size
        if progress is not None:
            progress(done, total)


class _Counting:
    """A file that reports how much it holds; huggingface_hub's transfer writes into it."""

    def __init__(self, file, progress: Callable[[int], None] | None):
        self.file, self.progress = file, progress
        self.seek, self.tell, self.truncate, self.flush = file.seek, file.tell, file.truncate, file.flush

    def write(self, data: bytes) -> int:
        written = self.file.write(data)
        if self.progress is not None:
            self.progress(self.file.tell())
        return written


def _fetch(file: RemoteFile, part: Path, token: str | None, progress) -> None:
    """Bytes of a file into `part`, from where an earlier attempt ended."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(file.repository, file.path, revision=file.revision)
    remote = get_hf_file_metadata(url, token=token or False)
    headers = build_hf_headers(token=token or False)
    if urlparse(remote.location).netloc != urlparse(url).netloc:  # a store elsewhere has signed addresses and must not see the token
        headers.pop("authorization", None)
    have = part.stat().st_size if part.is_file() else 0
    if have > (remote.size or file.size):
        part.unlink()
        have = 0
    options = {"resume_size": have, "headers": headers, "expected_size": remote.size, "displayed_filename": file.local}
    known = inspect.signature(http_get).parameters
    with open(part, "ab") as out:
        http_get(remote.location, _Counting(out, progress), **{key: value for key, value in options.items() if key in known})


def _verify(file: RemoteFile, part: Path, progress: Progress | None) -> None:
    if file.size and part.stat().st_size != file.size:
        found = part.stat().st_size
        part.unlink()
        raise SA3Error(f"{file.path} arrived with {found} bytes, expected {file.size}; it was deleted, download again.")
    if file.sha256 is None:
        return
    found = sha256(part, progress)
    if found != file.sha256:
        part.unlink()
        raise SA3Error(
            f"{file.repository}/{file.path} has the sha256 {found[:16]}…, expected {file.sha256[:16]}…: it is not the published file. "
            "It was deleted; download again."
        )


def _foreseen(error: Exception) -> bool:
    """Errors of the disk, the network and the Hub. The libraries below huggingface_hub differ by its version."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "huggingface_hub",
        "httpx",
        "httpx2",
        "requests",
        "urllib3",
    )


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def explain(error: Exception, repository: str, token: str | None) -> SA3Error:
    """What went wrong in a sentence with a way out, and without the token."""
    kind, status = type(error).__name__, _status(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return SA3Error("The disk is full. What has arrived is kept; make room and download again to go on.")
    if status in (401, 403):
        login = "your token has no access to it" if token else "no token was found"
        return SA3Error(
            f"{repository} cannot be read ({status}): {login}. Accept the licence at {PAGES}/{repository}, then log in with "
            "'hf auth login' or set HF_TOKEN, and try again."
        )
    if kind == "RevisionNotFoundError":
        return SA3Error(f"{repository} no longer has the revision this pack was checked with; a newer version of the pack may know it.")
    if status == 404:
        return SA3Error(f"{repository} or a file in it is not there (404); the repository may have been moved. See {PAGES}/{repository}.")
    if kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
        return SA3Error("huggingface_hub is set to offline (HF_HUB_OFFLINE); unset it to download.")
    if status is not None:
        return SA3Error(f"The Hub answered {status} for {repository}; try again later. What has arrived is kept.")
    text = str(error).replace(token, "…") if token else str(error)
    return SA3Error(f"The download of {repository} broke off ({kind}: {text[:200]}). What has arrived is kept; download again to go on.")
