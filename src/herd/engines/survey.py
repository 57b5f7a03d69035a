"""One look at an engine, as the report that the fleet gets of it."""

from __future__ import annotations

import msgspec

from herd.core.fleet import EngineReport
from herd.engines.adapter import Adapter, SurveyCache
from herd.engines.http import EngineError, Http


async def survey_engine(
    http: Http,
    adapter: Adapter,
    url: str,
    *,
    engine_id: str,
    public_url: str,
    slots: int | None = None,
    cache: SurveyCache | None = None,
) -> EngineReport:
    """Survey the engine at `url`; never raises.

    An engine that does not answer as it should is reported as not up, with the reason and without
    anything that it said before. `public_url` is where the router reaches it; `slots` replaces
    what the engine says of its replicas, or does not say.
    """
    try:
        survey = await adapter.survey(http, url, cache)
    except EngineError as error:
        if cache is not None:
            cache.clear()
        return EngineReport(
            id=engine_id, kind=adapter.kind, url=public_url, up=False, error=str(error)
        )
    replicas = survey.replicas
    if slots is not None:
        replicas = tuple(msgspec.structs.replace(each, slots=slots) for each in replicas)
    return EngineReport(
        id=engine_id,
        kind=adapter.kind,
        url=public_url,
        version=survey.version,
        replicas=replicas,
        running=survey.running,
        waiting=survey.waiting,
    )
