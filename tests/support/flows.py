"""Tiny bases of the real transformer classes with random weights: 32-pixel pictures, 16 × 16 latents, 8 × 8 tokens."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from lora_atlas.mini.base import MAX_TOKENS, tokenizer

# As the published schedulers are: SD3's and Z-Image's shifted by a constant, the others' by the resolution.
SHIFTED = {"shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
TALK = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}"
)


def sd3() -> StableDiffusion3Pipeline:
    words = _words()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=16,
            qk_norm="rms_norm", dual_attention_layers=(0,),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED),
        vae=_vae(4),
        text_encoder=CLIPTextModelWithProjection(_clip(words)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(_clip(words)),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip


def flux(guidance_embeds: bool = True) -> FluxPipeline:
    words = _words()
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance_embeds,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=_vae(4),
        text_encoder=CLIPTextModel(_clip(words)),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
        ),
        tokenizer_2=words,
    )  # fmt: skip


def flux2() -> Flux2Pipeline:
    """Of the large one, which is told of its guidance."""
    words = _words()
    text = {**_language(words, 30), "model_type": "mistral"}
    vision = {"model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 2, "head_dim": 4}  # fmt: skip
    return Flux2Pipeline(
        transformer=_flux2(guidance_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=_vae_of_flux2(),
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=words,
    )


def klein() -> Flux2KleinPipeline:
    """FLUX.2's small kin, with classifier-free guidance."""
    words = _words()
    return Flux2KleinPipeline(
        transformer=_flux2(guidance_embeds=False),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=_vae_of_flux2(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_language(words, 27))),
        tokenizer=words,
        is_distilled=False,
    )


def qwen_image() -> QwenImagePipeline:
    words = _words()
    sections = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    text = {**_language(words, 1), **sections}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
            latents_mean=[-0.1, 0.0, 0.1, 0.2], latents_std=[1.0, 1.5, 0.5, 2.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=words,
    )  # fmt: skip


def z_image() -> ZImagePipeline:
    words = _words()
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[2, 2, 4], axes_lens=[512, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFTED),
        vae=_vae(4),
        text_encoder=Qwen3Model(Qwen3Config(**_language(words, 2))),
        tokenizer=words,
    )  # fmt: skip


KINDS = {"sd3": sd3, "flux": flux, "flux2": flux2, "klein": klein, "qwen": qwen_image, "z": z_image}


def tiny(kind: str):
    """A pipeline of KINDS; its weights are random, and those that diffusers sets to zero too: else nothing would
    depend on what comes before them."""
    torch.manual_seed(2)
    pipeline = KINDS[kind]()
    with torch.no_grad():
        for p in pipeline.transformer.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return pipeline


def _words():
    words = tokenizer(("landscape", "portrait"))
    words.chat_template = TALK
    return words


def _clip(words) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )


def _language(words, layers: int) -> dict:
    return {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }


def _flux2(guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=0.1,
        scaling_factor=0.4,
    )


def _vae_of_flux2() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    vae.bn.running_mean.uniform_(-0.5, 0.5)
    vae.bn.running_var.uniform_(0.5, 2)
    return vae
