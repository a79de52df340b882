"""Rule fetch_model: a model of the hub, its files checked, into the hub's cache."""

import json

from job import job

with job(snakemake):
    from lora_atlas.hub.models import fetch
    from lora_atlas.tables import replacing

    p = snakemake.params
    model = dict(p.model)
    found = fetch(model.pop("repository"), model.pop("revision"), model.pop("kind"), lock=p.lock, **model)
    del found["folder"]  # the receipt says what it is, not where this machine keeps it
    with replacing(snakemake.output[0]) as temporary:
        temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
