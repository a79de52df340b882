"""LoRA Atlas: artistic style, described by LoRA weights alone.

The library behind the workflow. It never imports snakemake; every stage is a plain function on arrays, tables
and files, so that a notebook can call what a cluster job calls.
"""

__version__ = "0.1.0"
