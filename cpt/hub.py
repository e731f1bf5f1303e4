"""A model directory to the Hugging Face Hub, through `huggingface_hub`; what can fail without the Hub fails before."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt.errors import ConfigError, RunError

# Files of an earlier push, of which this one may have fewer: what is left would be loaded with the new ones.
REPLACED = ["*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Hub:
    """A repository to push to.

    Attributes:
      repository: `owner/name`.
      private: whether one that is made now is private.
      api: a `huggingface_hub.HfApi` with the token of the user.
    """

    repository: str
    private: bool
    api: Any

    def push(self, folder: Path, message: str, say: Callable[[str], None]) -> str:
        """Upload a folder as one commit; makes the repository where it is not there. Returns its address.

        Raises:
          RunError: the Hub cannot be reached, or refuses; the folder stays as it is.
        """
        say(f"pushing {folder} to {self.repository}")
        try:
            made = self.api.create_repo(self.repository, private=self.private or None, exist_ok=True)
            self.api.upload_folder(
                repo_id=self.repository, folder_path=str(folder), commit_message=message, delete_patterns=REPLACED
            )
        except Exception as e:  # its errors are those of its HTTP client, which another version replaced
            why = next((line for line in map(str.strip, str(e).splitlines()) if line), type(e).__name__)
            raise RunError(
                f"--push={self.repository}: not pushed ({why}); the model is in {folder}, and the same command with "
                "--overwrite tries again"
            ) from e
        return str(made)


def opened(repository: str, private: bool = False) -> Hub:
    """The repository `owner/name`, with the token of the environment (`HF_TOKEN`) or of the stored login.

    Nothing is asked of the Hub yet.

    Raises:
      ConfigError: the package is not installed, there is no token, or that is no name of a repository.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as e:
        raise ConfigError(f"--push: needs the package huggingface_hub: pip install 'cpt[hub]' ({e})") from e
    try:
        if not re.fullmatch(r"[^/]+/[^/]+", repository):
            raise ConfigError(f"--push={repository}: name a repository as owner/name")
        validate_repo_id(repository)
    except HFValidationError as e:
        raise ConfigError(f"--push={repository}: {str(e).splitlines()[0]}") from e
    if not (token := huggingface_hub.get_token()):
        raise ConfigError(
            f"--push={repository}: no token of the Hub; set HF_TOKEN to one that may write, or log in with "
            "`hf auth login`"
        )
    return Hub(repository, private, huggingface_hub.HfApi(token=token, library_name="cpt"))
