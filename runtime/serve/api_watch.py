"""Health, models, inventory, metrics, and the way to a new version."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from edgelm import __version__
from edgelm.runtime.errors import EdgelmError, RequestRefused
from edgelm.runtime.serve import requests
from edgelm.runtime.serve.figures import CONTENT_TYPE
from edgelm.runtime.serve.http import Call
from edgelm.runtime.serve.lane import Lane
from edgelm.runtime.serve.openapi import document
from edgelm.runtime.serve.site import Site

RELOAD = frozenset({"model"})


async def live(site: Site, call: Call) -> None:
    """The web process answers."""
    await call.answer({"status": "live"})


async def ready(site: Site, call: Call) -> None:
    """Every model passed its golden answers and takes requests; 503 else, or while draining."""
    is_ready = all_ready(site)
    await call.answer({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


def all_ready(site: Site) -> bool:
    """Whether new requests should come here."""
    return not site.draining and all(lane.is_ready for lane in site.lanes.values())


async def models(site: Site, call: Call) -> None:
    """All served models."""
    await call.answer({"object": "list", "data": [_model(lane) for lane in site.lanes.values()]})


async def model(site: Site, call: Call) -> None:
    """One of them."""
    await call.answer(_model(site.lane(call.scope["path_params"]["name"], call)))


def _model(lane: Lane[Any]) -> dict[str, Any]:
    task = lane.manifest.task
    return {
        "id": lane.name,
        "object": "model",
        "created": lane.created_s,
        "owned_by": "edgelm",
        "task": task.kind,
        "version": lane.manifest.version,
        "ready": lane.is_ready,
        **({"labels": list(task.labels)} if task.labels else {}),
    }


async def inventory(site: Site, call: Call) -> None:
    """What runs here: digests and versions of models, engines and packages."""
    await call.answer(
        {
            "edgelm": __version__,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "models": [_files(lane) for lane in site.lanes.values()],
            "sbom": {
                "bomFormat": "CycloneDX",
                "specVersion": "1.6",
                "components": _components(),
            },
        }
    )


def _files(lane: Lane[Any]) -> dict[str, Any]:
    manifest, facts = lane.manifest, lane.facts()
    chosen = [v for v in manifest.variants if v.name == facts["variant"]]
    entries = [*manifest.files, *(f for v in chosen for f in v.files)]
    return {**facts, "files": [{"path": f.path, "sha256": f.sha256} for f in entries]}


def _components() -> list[dict[str, str]]:
    found = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name.lower()}@{version}",
        }
        for name, version in sorted(found.items(), key=lambda pair: str(pair[0]).lower())
        if name
    ]


async def metrics(site: Site, call: Call) -> None:
    """All figures, for Prometheus."""
    figures = site.figures
    figures.model_info.clear()
    for lane in site.lanes.values():
        facts = lane.facts()
        figures.queue_depth.set(lane.queue.n_requests, lane.name)
        figures.queue_tokens.set(lane.queue.n_tokens, lane.name)
        figures.running.set(lane.n_answering, lane.name)
        figures.ready.set(int(lane.is_ready), lane.name)
        memory = None if lane.worker is None else lane.worker.memory_bytes()
        if memory is not None:
            figures.memory.set(memory, lane.name)
        info = [str(facts[name]) for name in ("digest", "version", "release", "variant")]
        figures.model_info.set(1, lane.name, *info)
    await call.answer(figures.text().encode(), kind=CONTENT_TYPE.encode())


async def reload(site: Site, call: Call) -> None:
    """Serve what now stands at the models' paths; answers when it does. 409 where it does not."""
    body = await call.json()
    requests.check_keys(body, RELOAD)
    name = body.get("model")
    lanes = list(site.lanes.values()) if name is None else [site.lane(name, call)]
    for lane in lanes:
        try:
            await lane.reload()
        except (EdgelmError, OSError) as err:
            said = f"{lane.name}: the old version stays: {err}"
            raise RequestRefused(409, "not_reloaded", said) from err
    await call.answer({"models": [lane.facts() for lane in lanes]})


async def openapi(site: Site, call: Call) -> None:
    """The OpenAPI document of all routes."""
    await call.answer(document())
