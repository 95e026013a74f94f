"""The web application: the page, its files, and what it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
import io
import mimetypes
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from braingen.explorer.access import Access
from braingen.explorer.answers import described, encoded_image, encoded_map, encoded_spread
from braingen.explorer.maps import mesh_bytes, nifti_bytes, texture_bytes, whole
from braingen.explorer.requests import ImageRequest, MapRequest, SpreadRequest
from braingen.explorer.session import Session
from braingen.runtime.errors import UserError

ASSETS = Path(__file__).parent / "assets"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " font-src data:; connect-src 'self' data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""What the page may load: nothing from elsewhere, and no script or style inside the page."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
COOKIE = "braingen_explore"
NIFTI, GIFTI = "application/octet-stream", "application/xml"
Answer = Callable[[Request], Awaitable[Response]]


def application(session: Session, access: Access) -> FastAPI:
    """The application of a session.

    Parameters
    ----------
    session : Session
        Runs and what was computed of them.
    access : Access
        What requests have to bring.
    """
    mimetypes.add_type("text/javascript", ".js")  # some systems know another type
    app = FastAPI(title="BrainGen explorer", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/assets", StaticFiles(directory=ASSETS), name="assets")
    _add_errors(app)
    _add_answers(app, session)
    _add_maps(app, session)

    @app.middleware("http")
    async def guard(request: Request, answer: Answer) -> Response:
        response = _refused(request, access) or await answer(request)
        response.headers.update(HEADERS)
        return response

    return app


def _refused(request: Request, access: Access) -> Response | None:
    """An answer to a request that is refused or has to be repeated; None for others."""
    host = request.headers.get("host", "")
    if not access.allows_host(host):
        return PlainTextResponse(
            "This address is not known. Open the one that braingen explore printed, or name it"
            " with --names.",
            status_code=403,
        )
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    opened = request.scope["path"] == "/" and request.method == "GET"
    if not access.allows_origin(origin, host) or (site == "cross-site" and not opened):
        return PlainTextResponse("Requests of other sites are refused.", status_code=403)
    if not access.token:
        return None
    if opened and access.allows_token(request.query_params.get("token")):
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(COOKIE, access.token, httponly=True, samesite="lax")
        return response
    if access.allows_token(request.cookies.get(COOKIE)):
        return None
    return PlainTextResponse(
        "The token is missing or wrong. Open the whole address that braingen explore printed.",
        status_code=401,
    )


def _add_errors(app: FastAPI) -> None:
    """Errors that a person can correct, as one sentence."""

    @app.exception_handler(UserError)
    async def sentence(_: Request, error: UserError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{where}: {first['msg']}."}, status_code=422)


def _add_answers(app: FastAPI, session: Session) -> None:
    """Page, runs, images."""

    @app.get("/")
    def page() -> Response:
        return FileResponse(ASSETS / "index.html", media_type="text/html")

    @app.get("/api/runs")
    def runs() -> dict[str, Any]:
        return described(session)

    @app.get("/api/seen/{run}/{image}.png")
    def seen(run: int, image: int) -> Response:
        chosen = session.run(run)
        if image not in chosen.image_ids():
            raise UserError(f"{chosen.name} has no test image {image}.")
        buffer = io.BytesIO()
        picture = chosen.seen(image).convert("RGB")
        picture.thumbnail((256, 256))
        picture.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    @app.post("/api/image")
    def image(asked: ImageRequest) -> dict[str, Any]:
        return encoded_image(session.image(asked))

    @app.post("/api/spread")
    def spread(asked: SpreadRequest) -> dict[str, Any]:
        return encoded_spread(session.spread(asked))


def asked_map(query: Annotated[MapRequest, Query()]) -> MapRequest:
    """A map that is asked for in an address."""
    return query


AskedMap = Annotated[MapRequest, Depends(asked_map)]


def _add_maps(app: FastAPI, session: Session) -> None:
    """Maps of the brain, as values and as files."""

    @app.get("/api/map")
    def values(asked: AskedMap) -> dict[str, Any]:
        return encoded_map(session.map(asked))

    @app.get("/api/map.nii")
    def volume(asked: AskedMap) -> Response:
        found = session.map(asked)
        return Response(nifti_bytes(session.run(asked.run), found.value_V), media_type=NIFTI)

    @app.get("/api/brain/{run}.nii")
    def brain(run: int) -> Response:
        chosen = session.run(run)
        return Response(nifti_bytes(chosen, whole(chosen)), media_type=NIFTI)

    @app.get("/api/mesh/{run}/{side}.gii")
    def mesh(run: int, side: str) -> Response:
        return Response(mesh_bytes(session.run(run), side), media_type=GIFTI)

    @app.get("/api/texture/{side}.gii")
    def texture(side: str, asked: AskedMap) -> Response:
        found = session.map(asked)
        return Response(
            texture_bytes(session.run(asked.run), side, found.value_V), media_type=GIFTI
        )
