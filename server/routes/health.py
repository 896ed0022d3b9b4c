"""What probes and routers ask, without a key. vLLM's own /health says whether the process should live."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.probe import Probe, Serving

router = APIRouter(tags=["Operation"])


@router.get("/readyz", responses={503: {"description": "The status says why: loading, draining or broken."}})
async def readyz(raw_request: Request) -> JSONResponse:
    """200 where requests would be answered. No name is disclosed."""
    server = getattr(raw_request.app.state, "steersman", None)
    probe: Probe | None = getattr(server, "probe", None)
    serving = Serving.LOADING if probe is None else probe.serving()
    return JSONResponse({"status": serving}, 200 if serving is Serving.READY else 503)
