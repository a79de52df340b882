"""Rule ablation: which parts of the weights tell artists."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics.ablation import ablation
    from lora_atlas.sections import Embedding
    from lora_atlas.views import View
    from lora_atlas.weights.modules import read_modules

    p = asked(snakemake)
    _, grams, parameters = read_modules(snakemake.input.grams)
    rows = ablation(
        grams,
        parameters,
        tables.read(snakemake.input.plan[0], "plan"),
        Embedding(**p.embedding),
        view=View(**p.view),
        subsets=p.evaluation["subsets"],
        confidence=p.evaluation["confidence"],
        seed=p.seed,
    )
    tables.write(snakemake.output[0], "ablation", rows)
