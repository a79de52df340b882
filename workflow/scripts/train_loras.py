"""Rule train_loras: all LoRAs of the artists of one pack that are not kept from before."""

import time
from pathlib import Path

from job import asked, job

with job(snakemake, parts=("numbers", "mixtures")) as cost:
    p, given, r, folder = asked(snakemake), snakemake.input, snakemake.resources, Path(snakemake.output.pack)
    plans = {Path(path).stem: path for path in given.plans}
    content = {Path(path).stem: cost.kept.content(path) for path in given.pictures}
    parts, files, missing = {}, {}, []
    for artist, path in plans.items():
        # Where pictures are mixed, an artist's LoRAs are trained on everybody's.
        own = content if p.mixtures else {artist: content[artist]}
        parts[artist] = {"artist": artist, "plan": cost.kept.content(path), "pictures": own}
        names = [f"{number}.safetensors" for number in p.numbers] + ["log.parquet"]
        files[artist] = {name: folder / artist / name for name in names}
        if cost.kept.restore(parts[artist], files[artist]) is None:
            missing.append(artist)
    folder.mkdir(parents=True, exist_ok=True)
    if missing:
        import pyarrow as pa

        from lora_atlas import tables
        from lora_atlas.diffusion.base import pick_device
        from lora_atlas.diffusion.train import Resources, train
        from lora_atlas.sections import Base, Training

        # The state of a job that lacks other LoRAs would be of another work.
        others = "" if len(missing) == len(plans) else f"-{'-'.join(missing)}"
        state = folder.parents[1] / "state" / f"{snakemake.wildcards.pack}{others}"
        start, device = time.perf_counter(), snakemake.config["resources"]["device"]
        plan = pa.concat_tables(tables.read(plans[artist], "plan") for artist in missing)
        train(
            plan,
            pa.concat_tables(tables.read(path, "pictures") for path in given.pictures),
            Base(**snakemake.config["base"]),
            Training(**p.training),
            seed=p.seed,
            resources=Resources(
                device,
                r.loras_per_pack,
                r.checkpoint_every,
                r.time_budget or None,
                bool(r.gradient_checkpointing),
                bool(r.compile),
            ),
            outputs={lora: folder / f"{lora}.safetensors" for lora in plan["lora"].to_pylist()},
            logs={artist: folder / artist / "log.parquet" for artist in missing},
            folder=state,
        )
        seconds, number = time.perf_counter() - start, len(p.numbers)
        for artist in missing:
            told = {"seconds": seconds / len(missing), "count": number, "device": pick_device(device)}
            cost.kept.keep(parts[artist], files[artist], told)
