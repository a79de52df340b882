"""What a study asks of its pictures, where a test says nothing else."""

from lora_atlas.sections import Pictures

FOLDER = Pictures(
    source="folder",
    artists=None,
    per_artist=None,
    artists_per_genre=2,
    min_side=16,
    trim=False,
    duplicates=None,
    manifest=None,
    dataset=None,
    categories=None,
    api=None,
    icons=None,
    archive=None,
    contact=None,
    store="results/fetched",
    private_network=True,
)
