"""Stages by name: what `snakemake NAME` makes, and `snakemake VARIANT_NAME` of a variant.

Needs: rules of the other files
Makes: nothing itself
"""

if TRAINED:

    if "pictures" in OWN:

        rule pictures:
            """Pictures of every artist, kept and refused, and a page that shows them."""
            input:
                rules_of("pictures", "page"),
            localrule: True

        if LISTED:

            # Written once, and committed by whoever wants the same pictures again.
            rule manifest:
                """List the pictures of a source on a network in a file, to look at and to commit."""
                input:
                    config["pictures"]["manifest"],
                localrule: True

    if "loras" in OWN:

        rule loras:
            """LoRAs of every artist, trained on the pictures."""
            input:
                when_asked("loras"),
            localrule: True

        rule export:
            """The same LoRAs under the names that kohya's scripts, ComfyUI and web UIs use."""
            input:
                when_asked("kohya"),
            localrule: True

    if "generated" in OWN:

        rule generated:
            """Pictures that the LoRAs generate."""
            input:
                when_asked("generated"),
            localrule: True

    rule models:
        """Fetch and check the models of the hub that the study names."""
        input:
            list(HUB_MODELS),
        localrule: True

    rule features:
        """Image features of training pictures and of generated ones."""
        input:
            rules_of("features"),
        localrule: True

    rule weights:
        """Inner products of all LoRAs, by every kernel."""
        input:
            rules_of("weights"),
        localrule: True

    rule embeddings:
        """Vectors of all LoRAs, by every descriptor."""
        input:
            rules_of("embeddings"),
        localrule: True

    rule tables:
        """Every table of results: retrieval, clustering, structure, ablation, worth, cost."""
        input:
            rules_of("tables"),
        localrule: True

    if not IS_VARIANT:

        rule charts:
            """Charts of the tables, as PNG and SVG."""
            input:
                rules_of("charts"),
            localrule: True

        rule atlas:
            """The page of the study, atlas.html: its map by every descriptor, its LoRAs, what its tables say."""
            input:
                rules_of("atlas"),
            localrule: True

        rule findings:
            """FINDINGS.md: what held and what did not."""
            input:
                rules_of("findings"),
            localrule: True

        rule across:
            """What held in which study: results/ACROSS.md, from the claims of all studies that are there."""
            input:
                "results/ACROSS.md",
            localrule: True

        rule pretrain_mini:
            """The mini models, from nothing. Nobody needs to: they are committed."""
            input:
                "results/mini/export/README.md",
            localrule: True

        rule pretrain_flow:
            """The mini transformer, from the corpus of the mini models."""
            input:
                "results/mini-flow/export/README.md",
            localrule: True

        rule pretrain_icons:
            """The mini base of icons, from families that no study uses: after `make extras`."""
            input:
                "results/mini-icons/export/README.md",
            localrule: True

        rule pretrain_flow_icons:
            """The mini transformer of icons, from the same drawings: after `make extras`."""
            input:
                "results/mini-flow-icons/export/README.md",
            localrule: True

else:

    rule maps:
        """A map of each base's LoRAs in a folder, the page of all, and their nearest neighbours."""
        input:
            f"{RESULTS}/tables/neighbours.parquet",
            PAGE,
        localrule: True

    rule atlas:
        """The page of the folder, atlas.html: a map of each base's LoRAs, copies, families, neighbours."""
        input:
            PAGE,
        localrule: True
