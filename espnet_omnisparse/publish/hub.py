"""The Hugging Face Hub, by its own library; its errors in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from espnet_omnisparse.errors import UserError


def check_name(repo: str) -> None:
    """Refuses what is no `user/name` of a repository.

    Raises:
        UserError: Saying so.
    """
    try:
        validate_repo_id(repo)
        wrong = repo.count("/") != 1
    except HFValidationError:
        wrong = True
    if wrong:
        raise UserError(
            f"--repo {repo}: give it as USER/NAME, of letters, digits and single "
            "- _ . between them."
        )


class Hub:
    """Uploads with the user's token.

    Args:
        private: Whether repositories that are not there yet become private.

    Raises:
        UserError: If the user has no token.
    """

    def __init__(self, private: bool):
        if get_token() is None:
            raise UserError(
                "There is no Hugging Face token: log in with hf auth login, or put a "
                "token that may write into HF_TOKEN."
            )
        self._api = HfApi(library_name="espnet-omnisparse")
        self._private = private

    def upload(self, repo: str, folder: Path) -> str:
        """Brings a repository up to a folder; what is there already is not sent again.

        Args:
            repo: Its name; it is made if need be.
            folder: What it shall hold.

        Returns:
            Its address.

        Raises:
            UserError: If the Hub cannot be reached, or refuses.
        """
        with _in_a_sentence(repo):
            self._api.create_repo(
                repo, private=self._private or None, exist_ok=True, repo_type="model"
            )
            self._api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Publish with omnisparse publish",
            )
        return f"{self._api.endpoint}/{repo}"


@contextmanager
def _in_a_sentence(repo: str) -> Iterator[None]:
    again = "run the same command again, which sends only what is missing"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise UserError(
                f"The Hub refuses to write {repo} (status {status}): check that the "
                "token may write and that user or organisation is spelt right."
            ) from error
        raise UserError(
            f"The Hub could not take {repo} (status {status}): {again}."
        ) from error
    # the library wraps what failed between retries in errors of its own
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        if constants.HF_HUB_OFFLINE:
            again = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
        raise UserError(
            f"{constants.ENDPOINT} cannot be reached, or broke off, while {repo} was "
            f"uploaded: mend the network and {again}."
        ) from error
