"""An export on the hub: asked for, looked at before anything is made, and private unless said otherwise.

Who pushes, and with which right, is huggingface_hub's: a token from `hf auth login` or HF_TOKEN, and HF_ENDPOINT for
another hub. An error here never touches the directory of the export.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from ts2_lightning.types import UserError

_OF_A_NEW_REPOSITORY = {".gitattributes"}
_STALE = ["*.safetensors", "*.safetensors.index.json", "export.json", "training.png"]
"""Patterns of files of an earlier export, which would be read beside those of a later one."""
_TEXTS = (".json", ".md", ".jinja", ".txt")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_LONGEST = 200  # characters of what the hub says


@dataclass(frozen=True)
class Repository:
    """A model repository on the hub to push to.

    Attributes:
        name: `owner/name`.
        private: whether others cannot see it.
        exists: whether it is there.
    """

    name: str
    private: bool
    exists: bool


def find_repository(name: str, public: bool = False, update: bool = False) -> Repository:
    """Where a push would go. Nothing is made, and nothing is sent but questions.

    Args:
        name: `owner/name`, or a name of one's own.
        public: whether everybody is to see it.
        update: whether a repository with files in it may get this export on top.

    Raises:
        UserError: the name is none, nobody is logged in, the token cannot write, the repository holds files, or is
            not as private as asked for; or the hub cannot be reached.
    """
    with _told(name):
        validate_repo_id(name)
        api = HfApi()
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"--push {name}: the token of {user['name']} can only read; log in with one that can write")
        whole = name if "/" in name else f"{user['name']}/{name}"
        try:
            info = api.model_info(whole)
        except RepositoryNotFoundError:
            return Repository(whole, not public, False)
    if info.private == public:
        advice = "leave --public out, or make it public on the hub" if public else "add --public, or another name"
        raise UserError(f"--push {name}: {whole} is there and {'private' if public else 'public'}: {advice}")
    files = {file.rfilename for file in info.siblings or ()} - _OF_A_NEW_REPOSITORY
    if files and not update:
        raise UserError(
            f"--push {name}: {whole} is there, with {len(files)} files; add --push-update to put this export on top of "
            "them, as a commit, or choose another name"
        )
    return Repository(whole, bool(info.private), True)


def push(directory: Path, repository: Repository) -> str:
    """Puts an export on the hub, as a commit.

    Args:
        directory: directory of the export; it stays as it is.
        repository: repository to push to, which is made if it is not there.

    Returns:
        The address of the model.

    Raises:
        UserError: a file names a place of this machine or holds a token; the hub refuses it, or was not reached.
    """
    check_texts(directory)
    again = f"; {directory} is whole: give the same command again"
    with _told(repository.name, again), _bars_on_a_terminal():
        api = HfApi()
        url = api.create_repo(repository.name, private=repository.private, exist_ok=repository.exists)
        api.upload_folder(
            repo_id=repository.name,
            folder_path=directory,
            commit_message="An export by ts2_lightning",
            delete_patterns=_STALE if repository.exists else None,
        )
    return str(url)


def check_texts(directory: Path) -> None:
    """Refuses to publish a text that names a place of this machine, or holds a token of the hub.

    Raises:
        UserError: naming the file; the token itself is not repeated.
    """
    places = {f"{place}/" for place in (Path.home(), Path.cwd()) if len(place.parts) > 1}
    token = get_token()
    for file in sorted(directory.iterdir()):
        if file.suffix not in _TEXTS or file.name == "tokenizer.json":
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if _TOKEN.search(text) or (token and token in text):
            raise UserError(f"--push: {file} holds a token of the hub; take it out, nothing was pushed")
        if place := next((place for place in places if place in text), None):
            raise UserError(
                f"--push: {file} names a place of this machine ({place}...), which others need not know; change it, "
                f"then `hf upload NAME {directory} --private`; nothing was pushed"
            )


@contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """Progress bars on a terminal alone; one that was left off ends its line, so that the error has one of its own."""
    if not sys.stderr.isatty():
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                enable_progress_bars()
        return
    try:
        yield
    except BaseException:
        print(file=sys.stderr)
        raise


@contextmanager
def _told(name: str, again: str = "") -> Iterator[None]:
    """Tells what goes wrong between here and the hub in one line."""
    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"--push {name}: no name for a repository: {_one_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push {name}: nobody is logged in: `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"--push {name}: HF_HUB_OFFLINE is set, so the hub is not asked{again}") from error
    except HfHubHTTPError as error:
        raise UserError(f"--push {name}: {_refusal(error)}{again}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # hf_xet raises the last two
        reason = ": ".join(filter(None, [_one_line(error), _one_line(error.__cause__ or "")])) or type(error).__name__
        raise UserError(f"--push {name}: the hub was not reached, or left off ({reason}){again}") from error


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = _one_line(error.server_message or "")
    reasons = {
        400: "the hub does not take it",
        401: "the hub does not accept the token (HF_TOKEN, or that of `hf auth login`)",
        403: "the token has no right to write there",
        409: "the name is taken",
        413: "it is too large for the hub",
        429: "the hub asks to wait",
    }
    reason = reasons.get(status, f"the hub answers {status}")
    return f"{reason} ({said})" if said else reason


def _one_line(said: object) -> str:
    return " ".join(str(said).split())[:_LONGEST]
