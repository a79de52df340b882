"""The mini models: a latent text-to-image base, a CLIP and a DINO small enough to be part of the project.

They exist so that the embedded study is real work offline: the loading code, the trainer, the sampler and the
extractors are those of SD1.5, ViT-L/14 and DINO; only the weights are small. All are pretrained here, by the rules
of ``workflow/rules/pretrain.smk``, on procedural pictures in random styles, none of them a style of the study.
"""
