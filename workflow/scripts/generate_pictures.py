"""Rule generate_pictures: what the LoRAs of one pack generate, of those that are not kept from before."""

import tempfile
import time
from pathlib import Path

from job import asked, job

with (
    job(snakemake, parts=["settings"]) as cost,
    tempfile.TemporaryDirectory(dir=Path(snakemake.output.cost).parent) as folder,
):
    p = asked(snakemake)
    loras = {"/".join(path.removesuffix(".safetensors").split("/")[-2:]): path for path in snakemake.input.loras}
    artists = list(dict.fromkeys(lora.split("/")[0] for lora in loras))
    of = {artist: [lora for lora in loras if lora.split("/")[0] == artist] for artist in artists}
    content = {lora: cost.kept.content(path) for lora, path in loras.items()}
    # What of a setting changes a picture: all that is in its section, but not which other settings there are.
    parts, files, lacking = {}, {}, dict.fromkeys(artists, ())
    for each in ((artist, setting) for artist in artists for setting in p.settings):
        artist, setting = each
        parts[each] = {"setting": setting, "asks": p.settings[setting], "loras": [[k, content[k]] for k in of[artist]]}
        files[each] = {"generated.parquet": Path(folder, artist, f"{setting}.parquet")}
        if cost.kept.restore(parts[each], files[each]) is None:
            lacking[artist] += (setting,)

    import pyarrow as pa

    from lora_atlas import tables

    # Artists that lack the same settings are generated with together.
    for missing in dict.fromkeys(each for each in lacking.values() if each):
        from lora_atlas.diffusion.base import pick_device
        from lora_atlas.diffusion.generate import generate
        from lora_atlas.sections import Base
        from lora_atlas.settings import settings

        group = [artist for artist in artists if lacking[artist] == missing]
        start, device = time.perf_counter(), snakemake.config["resources"]["device"]
        wanted = [each for each in settings(snakemake.config["generation"]) if each.name in missing]
        together = {setting: Path(folder, f"{setting}.parquet") for setting in missing}
        count = generate(
            {lora: loras[lora] for artist in group for lora in of[artist]},
            Base(**snakemake.config["base"]),
            wanted,
            batch=snakemake.config["generation"]["batch"],
            resolution=p.resolution,
            seed=p.seed,
            device=device,
            outputs=together,
        )
        seconds = time.perf_counter() - start
        for setting, path in together.items():
            rows = tables.read(path, "generated")
            for artist in group:
                own = rows.filter(pa.array([lora.split("/")[0] == artist for lora in rows["lora"].to_pylist()]))
                tables.write(files[artist, setting]["generated.parquet"], "generated", own)
                share = {"seconds": seconds * len(own) / count, "count": len(own), "device": pick_device(device)}
                cost.kept.keep(parts[artist, setting], files[artist, setting], share)
    for output in snakemake.output.generated:
        own = [tables.read(files[artist, Path(output).stem]["generated.parquet"], "generated") for artist in artists]
        tables.write(output, "generated", pa.concat_tables(own))
