"""The API's own description, and errors that come from outside the routes."""

from __future__ import annotations

import httpx
from test_gateway_market import problem_of

from qmt_gateway.app import create_app
from qmt_gateway.settings import GatewaySettings

INCUMBENT = {
    ("/api/history", "get"): ({"stock"}, {"period", "count", "fields"}),
    ("/api/batch_history", "get"): ({"stocks"}, {"period", "count", "fields"}),
    ("/api/full_tick", "get"): ({"stocks"}, set()),
    ("/api/sector_stocks", "get"): ({"sector"}, set()),
    ("/api/instrument_detail", "get"): ({"stock"}, set()),
}


def test_every_route_is_described_with_its_errors(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    described = {
        (path, method): operation
        for path, of_path in document["paths"].items()
        for method, operation in of_path.items()
    }
    assert described.keys() == {
        *INCUMBENT,
        ("/api/download", "post"),
        ("/api/v1/jobs/{name}", "post"),
        ("/api/v1/jobs/{id}", "get"),
        ("/api/v1/jobs/{id}", "delete"),
        ("/api/v1/jobs/{id}/result", "get"),
        ("/api/v1/latest", "get"),
        ("/api/v1/status", "get"),
        ("/api/v1/stored/ticks", "get"),
        ("/api/v1/stored/bars", "get"),
        ("/api/v1/archive", "get"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
    }
    problem = {"$ref": "#/components/schemas/Problem"}
    assert document["components"]["schemas"]["Problem"]["properties"].keys() >= {"type", "hint"}
    for (path, method), operation in described.items():
        assert operation["summary"], path
        assert operation["tags"], path
        if path in ("/healthz", "/readyz"):
            continue
        assert {"401", "403", "422", "429", "500"} <= operation["responses"].keys(), path
        assert operation["security"], path
        assert operation["x-scope"] in ("read", "download", "admin"), path
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == problem, (path, method, status)
    for key, (required, optional) in INCUMBENT.items():
        told = {one["name"]: one["required"] for one in described[key]["parameters"]}
        assert required == {name for name, needed in told.items() if needed}
        assert optional <= told.keys()


def test_every_reference_in_the_description_leads_somewhere(http: httpx.Client) -> None:
    text = http.get("/openapi.json").text
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= schemas.keys()


def test_the_page_is_there(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text


async def test_an_unforeseen_error_tells_nothing_of_the_inside() -> None:
    app = create_app(GatewaySettings())

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("the inside")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await client.get("/fails")
    problem_of(response, 500, "unexpected")
    assert "the inside" not in response.text


def test_unknown_paths_and_methods_are_problems_too(http: httpx.Client) -> None:
    problem_of(http.get("/api/orders"), 404, "not-found")
    response = http.delete("/api/history")
    assert problem_of(response, 405, "http")["title"] == "Method Not Allowed"
