"""Autoencoders published on the Hugging Face Hub: which folders a repository has, and one of them."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from steering.sae.load import FORMATS

_SHOWN: Final = 12
_BESIDE: Final = ("cfg.json", "config.json")  # never a pickle, whatever else lies there


class HubError(Exception):
    """A repository cannot be read; the message says why, and what would help."""


def fetch(repository: str, *, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The local folder of a repository's autoencoder, fetched first where it is not there yet.

    Only the files of the known formats are. Raises HubError.
    """
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415  # seconds to import
    from huggingface_hub.errors import (  # noqa: PLC0415
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        names = HfApi().list_repo_files(repository, revision=revision)
        place = chosen(repository, names, subfolder)
        root = snapshot_download(repository, revision=revision, allow_patterns=_wanted(place))
        return Path(root, place)
    except HFValidationError as error:
        raise HubError(f"{repository!r} is neither a local folder nor an id of the Hub: {error}") from error
    except GatedRepoError as error:
        raise HubError(
            f"{repository} is gated: ask for access on its page, and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is no {repository!r} on the Hub, or it is private (`hf auth login`)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubError(_unreachable(repository, error)) from error
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise HubError(f"the Hub answers for {repository}: {error}") from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise HubError(_unreachable(repository, error)) from error
    except Exception as error:  # the Hub's client raises its HTTP library's errors, whichever that is
        if type(error).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2"}:
            raise HubError(_unreachable(repository, error)) from error
        raise


def _unreachable(repository: str, error: Exception) -> str:
    return (
        f"the Hugging Face Hub cannot be reached for {repository} ({type(error).__name__}): fetch its files "
        "on a machine that can, and give the local folder"
    )


def chosen(repository: str, names: Sequence[str], subfolder: str | None) -> str:
    """The folder within the repository, "" for its root. Raises HubError where several could be meant."""
    places = sorted(
        {str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name in FORMATS}
    )
    places = ["" if place == "." else place for place in places]
    if subfolder is not None:
        wanted = subfolder.strip("/")
        if wanted in places:
            return wanted
        places = [place for place in places if place.startswith(f"{wanted}/")] or places
        raise HubError(f"{repository} has no autoencoder in {subfolder!r}; {_listed(places)}")
    if len(places) == 1:
        return places[0]
    if not places:
        raise HubError(
            f"{repository} holds none of {', '.join(FORMATS)}: other formats are not read, pickles (.pt, "
            ".bin) least of all"
        )
    raise HubError(
        f"{repository} has {len(places)} autoencoders, name one with --subfolder; {_listed(places)}"
    )


def _listed(places: Sequence[str]) -> str:
    shown = ", ".join(place or "its root" for place in places[:_SHOWN])
    return f"there are {shown}{f' and {len(places) - _SHOWN} more' if len(places) > _SHOWN else ''}"


def _wanted(place: str) -> list[str]:
    head = f"{place}/" if place else ""
    wanted = [f"{head}{name}" for name in (*FORMATS, *_BESIDE)]
    # sparsify tells the model in the run's own configuration, one folder up.
    above = str(PurePosixPath(place).parent) if place else "."
    return [*wanted, "config.json" if above == "." else f"{above}/config.json"]
