"""An application of some routes, which answers errors as the whole server does."""

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError

from server.errors import InvalidBody, SteersmanError
from server.refusal import refusal


def routes_alone(*routers: APIRouter) -> FastAPI:
    app = FastAPI()
    for router in routers:
        app.include_router(router)

    async def show(request, error):
        known = InvalidBody.of(error.errors()) if isinstance(error, RequestValidationError) else error
        return refusal(request.scope, known)

    app.add_exception_handler(SteersmanError, show)
    app.add_exception_handler(RequestValidationError, show)
    return app
