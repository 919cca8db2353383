"""The OpenAPI document, made from the same declarations that decode and answer requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from ringrift_cluster.api import problems
from ringrift_cluster.api.endpoint import Endpoint, Routes
from ringrift_cluster.api.problems import ProblemDocument
from ringrift_cluster.api.views import Cursor, View
from statemachine.errors import Code

_REF = "#/components/schemas/{name}"
_PATH_ARGUMENT = re.compile(r"\{([a-z_]+)(:any)?\}")
#: what any route may answer
_EVERYWHERE = ("request_timeout", "uri_too_long", "headers_too_large", "stale", "halted", "unexpected")
_GUARDED = ("unauthorized", "token_over", "forbidden", "not_ready")
_WRITES = ("too_large", "no_leader", "busy", "outcome_unknown", "read_only", "invalid")


def document(groups: Sequence[Routes], *, title: str, version: str, description: str) -> dict[str, Any]:
    """The whole document (OpenAPI 3.1)."""
    endpoints = [endpoint for group in groups for endpoint in group.endpoints]
    schemas, components = _schemas(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, schemas, components)
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = operation
    for kind in {endpoint.query for endpoint in endpoints if endpoint.query is not None}:
        # Its fields are shown as parameters; nothing refers to it as a whole.
        del components[_component(schemas[kind])]
    about = {group.tag: group.about for group in groups if group.about}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "tags": [{"name": name, "description": text} for name, text in about.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types(endpoint: Endpoint) -> Iterable[Any]:
    yield from endpoint.bodies
    yield from endpoint.answers
    if endpoint.query is not None:
        yield endpoint.query


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Schema by type, and the named components they refer to."""
    kinds: dict[Any, None] = dict.fromkeys(kind for e in endpoints for kind in _types(e))
    kinds[ProblemDocument] = None
    made, components = msgspec.json.schema_components(list(kinds), ref_template=_REF)
    for schema in components.values():
        # A body that is one command is known by its path; its tag may be left out.
        if "kind" in schema.get("required", ()) and "enum" in schema["properties"]["kind"]:
            schema["required"] = [name for name in schema["required"] if name != "kind"]
    return dict(zip(kinds, made, strict=True)), components


def _operation(endpoint: Endpoint, schemas: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    name = re.sub(r"[^a-z0-9]+", "_", f"{endpoint.method} {endpoint.template}".lower()).strip("_")
    operation: dict[str, Any] = {
        "operationId": name,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": endpoint.description or endpoint.summary,
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint.query, schemas, components)],
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.bodies:
        content: dict[str, Any] = {"schema": _any_of(endpoint.bodies, schemas)}
        if endpoint.example is not None:
            content["example"] = _plain(endpoint.example)
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    elif endpoint.consumes:
        schema = {"type": "string", "format": "binary"}
        operation["requestBody"] = {"required": True, "content": {endpoint.consumes: {"schema": schema}}}
    if endpoint.scope is not None:
        operation["security"] = [{}, {"token": []}]
        operation["x-scope"] = endpoint.scope
        operation["description"] += f"\n\nWhere tokens are asked for: scope `{endpoint.scope}`."
    return operation


def _plain(value: object) -> Any:
    """As JSON would show it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _any_of(kinds: Sequence[Any], schemas: dict[Any, Any]) -> Any:
    return schemas[kinds[0]] if len(kinds) == 1 else {"anyOf": [schemas[kind] for kind in kinds]}


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name, _ in _PATH_ARGUMENT.findall(endpoint.path)
    ]


def _component(reference: dict[str, Any]) -> str:
    return str(reference["$ref"].rpartition("/")[2])


def _query_parameters(
    kind: type[Struct] | None, schemas: dict[Any, Any], components: dict[str, Any]
) -> list[dict[str, Any]]:
    if kind is None:
        return []
    parameters = []
    for name, schema in components[_component(schemas[kind])]["properties"].items():
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": False, "schema": schema}
        if "description" in schema:
            parameter["description"] = schema["description"]
        parameters.append(parameter)
    return parameters


_HEADERS = {
    "Ringrift-Index": {
        "description": "The applied index that the answer was computed at.",
        "schema": {"type": "integer"},
    },
    "Ringrift-Leader": {"description": "Who leads, where it is known.", "schema": {"type": "string"}},
}


def _responses(endpoint: Endpoint, schemas: dict[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in endpoint.statuses:
        content: dict[str, Any] = {}
        if endpoint.answers:
            body: dict[str, Any] = {"schema": _any_of(endpoint.answers, schemas)}
            if endpoint.answer is not None:
                body["example"] = _plain(endpoint.answer)
            content["application/json"] = body
        for media, text in endpoint.produces.items():
            shape = "object" if media == "application/json" else "string"
            content[media] = {"schema": {"type": shape, "description": text}}
        responses[str(status)] = {"description": endpoint.summary, "headers": _HEADERS, "content": content}
    codes = [*endpoint.errors, *_EVERYWHERE, *(_GUARDED if endpoint.scope is not None else ())]
    if endpoint.method not in ("GET", "HEAD"):
        codes += _WRITES
    if endpoint.query is not None:
        codes.append("invalid")
        if issubclass(endpoint.query, View):
            codes.append("too_many_waits")
        if issubclass(endpoint.query, Cursor):
            codes.append(Code.EXPIRED)
    by_status: dict[int, dict[str, None]] = {}
    for code in codes:
        by_status.setdefault(problems.TABLE[code].status, {})[str(code)] = None
    for status, named in sorted(by_status.items()):
        problem = {
            "description": "; ".join(f"`{code}`: {problems.TABLE[code].title}" for code in named),
            "content": {problems.MEDIA_TYPE: {"schema": schemas[ProblemDocument]}},
        }
        # A probe answers 503 with its own body as well.
        known = responses.get(str(status))
        if known is not None:
            known["content"].update(problem["content"])
        else:
            responses[str(status)] = problem
    return responses
