"""vLLM's errors as ours: one table for what it answers, raises, or lets pass."""

import logging
from http import HTTPStatus

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError, VLLMValidationError

from server.errors import (
    INVALID_FILE_INPUT,
    InvalidRequest,
    NotFound,
    NotSupported,
    SteersmanError,
    Unavailable,
)

logger = logging.getLogger("vllm.steersman")


class MediaFailed(VLLMValidationError):
    """Media that a client named cannot be had. One of vLLM's, for the routes whose errors vLLM writes."""

    def __init__(self, message: str, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


def translated(response: ErrorResponse) -> SteersmanError:
    """vLLM's error object as ours."""
    error = response.error
    kinds: dict[int, type[SteersmanError]] = {404: NotFound, 501: NotSupported}
    if error.code in kinds:
        return kinds[error.code](error.message, param=error.param)
    if error.code in (429, 503):
        return Unavailable(error.message, retry_after=1)
    if 400 <= error.code < 500:
        return InvalidRequest(error.message, param=error.param)
    return SteersmanError(error.message)


def as_steersman(error: Exception) -> SteersmanError:
    """Whatever was raised, as what its client is told: a defect of ours is told as no more than that."""
    if isinstance(error, SteersmanError):
        return error
    if isinstance(error, MediaFailed):
        return InvalidRequest(str(error), code=INVALID_FILE_INPUT)
    known = translated(create_error_response(error))
    if known.status == HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, VLLMError):
        return SteersmanError("internal error; the server's log has the details")
    return known


def reported(error: Exception) -> SteersmanError:
    """As `as_steersman`, for what the app's handlers never see: its traceback is logged here."""
    known = as_steersman(error)
    if known is not error and known.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("A request failed inside", exc_info=error)
    return known
