"""What the authors of a model call its modules, beside what diffusers calls them: one line a module.

    theirs = ours           # is a number that both have, [q k v] the modules that share the rows of a fused layer
    theirs = ~ours          the halves of the rows stand in the other order (shift, scale; gate, value)
    theirs = ~?ours         … where the layer makes two vectors of its input's width alone (out = 2 · in)
    theirs = %[q k v]       keys and values have fewer heads than the queries: the rows of q are as many as columns
    theirs.* = ours.*       every module below

Sources: the code of the models, as diffusers' converters of single files have it (loaders/single_file_utils, and its
scripts/convert_*_to_diffusers.py), diffusers' converters of LoRA files, XLabs' attention processors, and
DiffSynth-Studio's FLUX (diffsynth/models/flux_dit.py). Nothing here is needed to read a name whose dots were lost: that
is looked up.
"""

_FLUX = """
double_blocks.#.img_attn.qkv = transformer_blocks.#.attn.[to_q to_k to_v]
double_blocks.#.txt_attn.qkv = transformer_blocks.#.attn.[add_q_proj add_k_proj add_v_proj]
double_blocks.#.img_attn.proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_attn.norm.query_norm = transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn.norm.key_norm = transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn.norm.query_norm = transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn.norm.key_norm = transformer_blocks.#.attn.norm_added_k
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.net.2
double_blocks.#.img_mod.lin = transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.lin = transformer_blocks.#.norm1_context.linear
double_blocks.#.processor.qkv_lora1 = transformer_blocks.#.attn.[to_q to_k to_v]
double_blocks.#.processor.qkv_lora2 = transformer_blocks.#.attn.[add_q_proj add_k_proj add_v_proj]
double_blocks.#.processor.proj_lora1 = transformer_blocks.#.attn.to_out.0
double_blocks.#.processor.proj_lora2 = transformer_blocks.#.attn.to_add_out
single_blocks.#.linear1 = single_transformer_blocks.#.[attn.to_q attn.to_k attn.to_v proj_mlp]
single_blocks.#.linear2 = single_transformer_blocks.#.proj_out
single_blocks.#.modulation.lin = single_transformer_blocks.#.norm.linear
single_blocks.#.norm.query_norm = single_transformer_blocks.#.attn.norm_q
single_blocks.#.norm.key_norm = single_transformer_blocks.#.attn.norm_k
single_blocks.#.processor.qkv_lora = single_transformer_blocks.#.attn.[to_q to_k to_v]
single_blocks.#.processor.proj_lora = single_transformer_blocks.#.proj_out
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
blocks.#.attn.a_to_qkv = transformer_blocks.#.attn.[to_q to_k to_v]
blocks.#.attn.b_to_qkv = transformer_blocks.#.attn.[add_q_proj add_k_proj add_v_proj]
blocks.#.attn.a_to_out = transformer_blocks.#.attn.to_out.0
blocks.#.attn.b_to_out = transformer_blocks.#.attn.to_add_out
blocks.#.ff_a.0 = transformer_blocks.#.ff.net.0.proj
blocks.#.ff_a.2 = transformer_blocks.#.ff.net.2
blocks.#.ff_b.0 = transformer_blocks.#.ff_context.net.0.proj
blocks.#.ff_b.2 = transformer_blocks.#.ff_context.net.2
blocks.#.norm1_a.linear = transformer_blocks.#.norm1.linear
blocks.#.norm1_b.linear = transformer_blocks.#.norm1_context.linear
single_blocks.#.to_qkv_mlp = single_transformer_blocks.#.[attn.to_q attn.to_k attn.to_v proj_mlp]
single_blocks.#.proj_out = single_transformer_blocks.#.proj_out
single_blocks.#.norm.linear = single_transformer_blocks.#.norm.linear
time_embedder.timestep_embedder.0 = time_text_embed.timestep_embedder.linear_1
time_embedder.timestep_embedder.2 = time_text_embed.timestep_embedder.linear_2
guidance_embedder.timestep_embedder.0 = time_text_embed.guidance_embedder.linear_1
guidance_embedder.timestep_embedder.2 = time_text_embed.guidance_embedder.linear_2
pooled_text_embedder.0 = time_text_embed.text_embedder.linear_1
pooled_text_embedder.2 = time_text_embed.text_embedder.linear_2
final_norm_out.linear = norm_out.linear
final_proj_out = proj_out
distilled_guidance_layer.layers.#.in_layer = distilled_guidance_layer.layers.#.linear_1
distilled_guidance_layer.layers.#.out_layer = distilled_guidance_layer.layers.#.linear_2
"""

_FLUX2 = """
double_blocks.#.img_attn.qkv = transformer_blocks.#.attn.[to_q to_k to_v]
double_blocks.#.txt_attn.qkv = transformer_blocks.#.attn.[add_q_proj add_k_proj add_v_proj]
double_blocks.#.img_attn.proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_attn.norm.query_norm = transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn.norm.key_norm = transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn.norm.query_norm = transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn.norm.key_norm = transformer_blocks.#.attn.norm_added_k
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.linear_in
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.linear_out
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.linear_in
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.linear_out
single_blocks.#.linear1 = single_transformer_blocks.#.attn.to_qkv_mlp_proj
single_blocks.#.linear2 = single_transformer_blocks.#.attn.to_out
single_blocks.#.norm.query_norm = single_transformer_blocks.#.attn.norm_q
single_blocks.#.norm.key_norm = single_transformer_blocks.#.attn.norm_k
sformer_blocks.* = transformer_blocks.*
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
single_stream_modulation.lin = single_stream_modulation.linear
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

_FLUX3 = """
emb_in.* = x_embedders.*
txt_in = context_embedder
time_in.in_layer = timestep_embedder.linear_1
time_in.out_layer = timestep_embedder.linear_2
early_stream_modulations.image.lin = early_stream_modulations.image.linear
early_stream_modulations.image_cond.lin = early_stream_modulations.image_cond.linear
early_stream_modulations.txt.lin = early_stream_modulations.txt.linear
single_stream_modulations.image.lin = single_stream_modulations.image.linear
single_stream_modulations.image_cond.lin = single_stream_modulations.image_cond.linear
single_stream_modulations.txt.lin = single_stream_modulations.txt.linear
final_layer.image.linear = proj_out
final_layer.image.adaLN_modulation.1 = ~norm_out.linear
""" + "".join(
    f"""
{theirs}.#.q_proj = {ours}.#.attn.to_q
{theirs}.#.k_proj = {ours}.#.attn.to_k
{theirs}.#.v_proj = {ours}.#.attn.to_v
{theirs}.#.attn_out = {ours}.#.attn.to_out.0
{theirs}.#.norm.query_norm = {ours}.#.attn.norm_q
{theirs}.#.norm.key_norm = {ours}.#.attn.norm_k
{theirs}.#.mlp_in = {ours}.#.ff.linear_in
{theirs}.#.mlp_out = {ours}.#.ff.linear_out
"""
    for theirs, ours in (
        ("content_mode_blocks.image", "mode_blocks.image"),
        ("content_mode_blocks.image_cond", "mode_blocks.image_cond"),
        ("txt_mode_blocks", "txt_mode_blocks"),
        ("single_blocks", "single_transformer_blocks"),
    )
)

_SD3 = """
joint_blocks.#.x_block.attn.qkv = transformer_blocks.#.attn.[to_q to_k to_v]
joint_blocks.#.x_block.attn2.qkv = transformer_blocks.#.attn2.[to_q to_k to_v]
joint_blocks.#.context_block.attn.qkv = transformer_blocks.#.attn.[add_q_proj add_k_proj add_v_proj]
joint_blocks.#.x_block.attn.proj = transformer_blocks.#.attn.to_out.0
joint_blocks.#.x_block.attn2.proj = transformer_blocks.#.attn2.to_out.0
joint_blocks.#.context_block.attn.proj = transformer_blocks.#.attn.to_add_out
joint_blocks.#.x_block.attn.ln_q = transformer_blocks.#.attn.norm_q
joint_blocks.#.x_block.attn.ln_k = transformer_blocks.#.attn.norm_k
joint_blocks.#.x_block.attn2.ln_q = transformer_blocks.#.attn2.norm_q
joint_blocks.#.x_block.attn2.ln_k = transformer_blocks.#.attn2.norm_k
joint_blocks.#.context_block.attn.ln_q = transformer_blocks.#.attn.norm_added_q
joint_blocks.#.context_block.attn.ln_k = transformer_blocks.#.attn.norm_added_k
joint_blocks.#.x_block.mlp.fc1 = transformer_blocks.#.ff.net.0.proj
joint_blocks.#.x_block.mlp.fc2 = transformer_blocks.#.ff.net.2
joint_blocks.#.context_block.mlp.fc1 = transformer_blocks.#.ff_context.net.0.proj
joint_blocks.#.context_block.mlp.fc2 = transformer_blocks.#.ff_context.net.2
joint_blocks.#.x_block.adaLN_modulation.1 = transformer_blocks.#.norm1.linear
joint_blocks.#.context_block.adaLN_modulation.1 = ~?transformer_blocks.#.norm1_context.linear
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

_LUMINA2 = """
final_layer.adaLN_modulation.1 = norm_out.linear_1
final_layer.linear = norm_out.linear_2
cap_embedder.* = time_caption_embed.caption_embedder.*
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
""" + "".join(
    f"""
{block}.#.attention.qkv = %{block}.#.attn.[to_q to_k to_v]
{block}.#.attention.out = {block}.#.attn.to_out.0
{block}.#.attention.q_norm = {block}.#.attn.norm_q
{block}.#.attention.k_norm = {block}.#.attn.norm_k
{block}.#.feed_forward.w1 = {block}.#.feed_forward.linear_1
{block}.#.feed_forward.w2 = {block}.#.feed_forward.linear_2
{block}.#.feed_forward.w3 = {block}.#.feed_forward.linear_3
{block}.#.adaLN_modulation.1 = {block}.#.norm1.linear
{block}.#.attention_norm1 = {block}.#.norm1.norm
{block}.#.attention_norm2 = {block}.#.norm2
"""
    for block in ("layers", "noise_refiner", "context_refiner")
)

_ZIMAGE = """
final_layer.* = all_final_layer.2-1.*
x_embedder = all_x_embedder.2-1
""" + "".join(
    f"""
{block}.#.attention.qkv = {block}.#.attention.[to_q to_k to_v]
{block}.#.attention.out = {block}.#.attention.to_out.0
{block}.#.attention.q_norm = {block}.#.attention.norm_q
{block}.#.attention.k_norm = {block}.#.attention.norm_k
"""
    for block in ("layers", "noise_refiner", "context_refiner")
)

_WAN = """
time_embedding.0 = condition_embedder.time_embedder.linear_1
time_embedding.2 = condition_embedder.time_embedder.linear_2
text_embedding.0 = condition_embedder.text_embedder.linear_1
text_embedding.2 = condition_embedder.text_embedder.linear_2
time_projection.1 = condition_embedder.time_proj
img_emb.proj.0 = condition_embedder.image_embedder.norm1
img_emb.proj.1 = condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 = condition_embedder.image_embedder.ff.net.2
img_emb.proj.4 = condition_embedder.image_embedder.norm2
head.head = proj_out
""" + "".join(
    f"""
{block}.#.self_attn.q = {block}.#.attn1.to_q
{block}.#.self_attn.k = {block}.#.attn1.to_k
{block}.#.self_attn.v = {block}.#.attn1.to_v
{block}.#.self_attn.o = {block}.#.attn1.to_out.0
{block}.#.self_attn.norm_q = {block}.#.attn1.norm_q
{block}.#.self_attn.norm_k = {block}.#.attn1.norm_k
{block}.#.cross_attn.q = {block}.#.attn2.to_q
{block}.#.cross_attn.k = {block}.#.attn2.to_k
{block}.#.cross_attn.v = {block}.#.attn2.to_v
{block}.#.cross_attn.o = {block}.#.attn2.to_out.0
{block}.#.cross_attn.k_img = {block}.#.attn2.add_k_proj
{block}.#.cross_attn.v_img = {block}.#.attn2.add_v_proj
{block}.#.cross_attn.norm_q = {block}.#.attn2.norm_q
{block}.#.cross_attn.norm_k = {block}.#.attn2.norm_k
{block}.#.cross_attn.norm_k_img = {block}.#.attn2.norm_added_k
{block}.#.ffn.0 = {block}.#.ffn.net.0.proj
{block}.#.ffn.2 = {block}.#.ffn.net.2
{block}.#.norm3 = {block}.#.norm2
{block}.#.before_proj = {block}.#.proj_in
{block}.#.after_proj = {block}.#.proj_out
"""
    for block in ("blocks", "vace_blocks")
)

_WAN_ANIMATE_2 = """
blocks.#.self_attn.q = blocks.#.self_attn.to_q
blocks.#.self_attn.k = blocks.#.self_attn.to_k
blocks.#.self_attn.v = blocks.#.self_attn.to_v
blocks.#.self_attn.o = blocks.#.self_attn.to_out.0
blocks.#.cross_attn.q = blocks.#.cross_attn.to_q
blocks.#.cross_attn.k = blocks.#.cross_attn.to_k
blocks.#.cross_attn.v = blocks.#.cross_attn.to_v
blocks.#.cross_attn.o = blocks.#.cross_attn.to_out.0
blocks.#.cross_attn.k_img = blocks.#.cross_attn.add_k_proj
blocks.#.cross_attn.v_img = blocks.#.cross_attn.add_v_proj
blocks.#.cross_attn.norm_k_img = blocks.#.cross_attn.norm_added_k
blocks.#.block.* = blocks.#.*
"""

_HUNYUAN_VIDEO = """
img_in.proj = x_embedder.proj
time_in.mlp.0 = time_text_embed.timestep_embedder.linear_1
time_in.mlp.2 = time_text_embed.timestep_embedder.linear_2
guidance_in.mlp.0 = time_text_embed.guidance_embedder.linear_1
guidance_in.mlp.2 = time_text_embed.guidance_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
double_blocks.#.img_attn_qkv = transformer_blocks.#.attn.[to_q to_k to_v]
double_blocks.#.txt_attn_qkv = transformer_blocks.#.attn.[add_q_proj add_k_proj add_v_proj]
double_blocks.#.img_attn_proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn_proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_attn_q_norm = transformer_blocks.#.attn.norm_q
double_blocks.#.img_attn_k_norm = transformer_blocks.#.attn.norm_k
double_blocks.#.txt_attn_q_norm = transformer_blocks.#.attn.norm_added_q
double_blocks.#.txt_attn_k_norm = transformer_blocks.#.attn.norm_added_k
double_blocks.#.img_mlp.fc1 = transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.fc2 = transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.fc1 = transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.fc2 = transformer_blocks.#.ff_context.net.2
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.net.2
double_blocks.#.img_mod.linear = transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.linear = transformer_blocks.#.norm1_context.linear
double_blocks.#.img_mod.lin = transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.lin = transformer_blocks.#.norm1_context.linear
double_blocks.#.img_attn_q = transformer_blocks.#.attn.to_q
double_blocks.#.img_attn_k = transformer_blocks.#.attn.to_k
double_blocks.#.img_attn_v = transformer_blocks.#.attn.to_v
double_blocks.#.txt_attn_q = transformer_blocks.#.attn.add_q_proj
double_blocks.#.txt_attn_k = transformer_blocks.#.attn.add_k_proj
double_blocks.#.txt_attn_v = transformer_blocks.#.attn.add_v_proj
single_blocks.#.linear1_q = single_transformer_blocks.#.attn.to_q
single_blocks.#.linear1_k = single_transformer_blocks.#.attn.to_k
single_blocks.#.linear1_v = single_transformer_blocks.#.attn.to_v
single_blocks.#.linear1_mlp = single_transformer_blocks.#.proj_mlp
single_blocks.#.linear1 = single_transformer_blocks.#.[attn.to_q attn.to_k attn.to_v proj_mlp]
single_blocks.#.linear2 = single_transformer_blocks.#.proj_out
single_blocks.#.modulation.linear = single_transformer_blocks.#.norm.linear
single_blocks.#.modulation.lin = single_transformer_blocks.#.norm.linear
single_blocks.#.q_norm = single_transformer_blocks.#.attn.norm_q
single_blocks.#.k_norm = single_transformer_blocks.#.attn.norm_k
txt_in.input_embedder = context_embedder.proj_in
txt_in.t_embedder.mlp.0 = context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.mlp.2 = context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.t_embedder.in_layer = context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.out_layer = context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.c_embedder.linear_1 = context_embedder.time_text_embed.text_embedder.linear_1
txt_in.c_embedder.linear_2 = context_embedder.time_text_embed.text_embedder.linear_2
txt_in.c_embedder.in_layer = context_embedder.time_text_embed.text_embedder.linear_1
txt_in.c_embedder.out_layer = context_embedder.time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
""" + "".join(
    f"""
{theirs}.self_attn{x}qkv = {ours}.attn.[to_q to_k to_v]
{theirs}.self_attn{x}proj = {ours}.attn.to_out.0
{theirs}.mlp.{a} = {ours}.ff.net.0.proj
{theirs}.mlp.{b} = {ours}.ff.net.2
{theirs}.adaLN_modulation.1 = {ours}.norm_out.linear
{theirs}.norm1 = {ours}.norm1
{theirs}.norm2 = {ours}.norm2
"""
    for theirs, ours in (
        ("txt_in.individual_token_refiner.blocks.#", "context_embedder.token_refiner.refiner_blocks.#"),
    )
    for x, a, b in (("_", "fc1", "fc2"), (".", "0", "2"))
)

_LTX = """
patchify_proj = proj_in
adaln_single.* = time_embed.*
transformer_blocks.#.attn1.q_norm = transformer_blocks.#.attn1.norm_q
transformer_blocks.#.attn1.k_norm = transformer_blocks.#.attn1.norm_k
transformer_blocks.#.attn2.q_norm = transformer_blocks.#.attn2.norm_q
transformer_blocks.#.attn2.k_norm = transformer_blocks.#.attn2.norm_k
"""

_LTX2 = (
    _LTX
    + """
audio_patchify_proj = audio_proj_in
audio_adaln_single.* = audio_time_embed.*
av_ca_video_scale_shift_adaln_single.* = av_cross_attn_video_scale_shift.*
av_ca_a2v_gate_adaln_single.* = av_cross_attn_video_a2v_gate.*
av_ca_audio_scale_shift_adaln_single.* = av_cross_attn_audio_scale_shift.*
av_ca_v2a_gate_adaln_single.* = av_cross_attn_audio_v2a_gate.*
prompt_adaln_single.* = prompt_adaln.*
audio_prompt_adaln_single.* = audio_prompt_adaln.*
"""
    + "".join(
        f"""
transformer_blocks.#.{attention}.{n}_norm = transformer_blocks.#.{attention}.norm_{n}
"""
        for attention in ("audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
        for n in "qk"
    )
)

_LTX2_CONNECTORS = """
aggregate_embed = text_proj_in
"""

_COSMOS2 = """
blocks.#.adaln_modulation_self_attn.1 = transformer_blocks.#.norm1.linear_1
blocks.#.adaln_modulation_self_attn.2 = transformer_blocks.#.norm1.linear_2
blocks.#.adaln_modulation_cross_attn.1 = transformer_blocks.#.norm2.linear_1
blocks.#.adaln_modulation_cross_attn.2 = transformer_blocks.#.norm2.linear_2
blocks.#.adaln_modulation_mlp.1 = transformer_blocks.#.norm3.linear_1
blocks.#.adaln_modulation_mlp.2 = transformer_blocks.#.norm3.linear_2
blocks.#.self_attn.q_proj = transformer_blocks.#.attn1.to_q
blocks.#.self_attn.k_proj = transformer_blocks.#.attn1.to_k
blocks.#.self_attn.v_proj = transformer_blocks.#.attn1.to_v
blocks.#.self_attn.output_proj = transformer_blocks.#.attn1.to_out.0
blocks.#.self_attn.q_norm = transformer_blocks.#.attn1.norm_q
blocks.#.self_attn.k_norm = transformer_blocks.#.attn1.norm_k
blocks.#.cross_attn.q_proj = transformer_blocks.#.attn2.to_q
blocks.#.cross_attn.k_proj = transformer_blocks.#.attn2.to_k
blocks.#.cross_attn.v_proj = transformer_blocks.#.attn2.to_v
blocks.#.cross_attn.output_proj = transformer_blocks.#.attn2.to_out.0
blocks.#.cross_attn.q_norm = transformer_blocks.#.attn2.norm_q
blocks.#.cross_attn.k_norm = transformer_blocks.#.attn2.norm_k
blocks.#.mlp.layer1 = transformer_blocks.#.ff.net.0.proj
blocks.#.mlp.layer2 = transformer_blocks.#.ff.net.2
final_layer.adaln_modulation.1 = norm_out.linear_1
final_layer.adaln_modulation.2 = norm_out.linear_2
final_layer.linear = proj_out
t_embedder.1.* = time_embed.t_embedder.*
t_embedding_norm = time_embed.norm
x_embedder.proj.1 = patch_embed.proj
"""

_KREA2 = """
first = img_in
last.linear = final_layer.linear
tmlp.0 = time_embed.linear_1
tmlp.2 = time_embed.linear_2
tproj.1 = time_mod_proj
txtmlp.1 = txt_in.linear_1
txtmlp.3 = txt_in.linear_2
txtfusion.projector = text_fusion.projector
""" + "".join(
    f"""
{theirs}.#.attn.wq = {ours}.#.attn.to_q
{theirs}.#.attn.wk = {ours}.#.attn.to_k
{theirs}.#.attn.wv = {ours}.#.attn.to_v
{theirs}.#.attn.wo = {ours}.#.attn.to_out.0
{theirs}.#.attn.gate = {ours}.#.attn.to_gate
{theirs}.#.mlp.gate = {ours}.#.ff.gate
{theirs}.#.mlp.up = {ours}.#.ff.up
{theirs}.#.mlp.down = {ours}.#.ff.down
{theirs}.#.prenorm = {ours}.#.norm1
{theirs}.#.postnorm = {ours}.#.norm2
"""
    for theirs, ours in (
        ("blocks", "transformer_blocks"),
        ("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks"),
        ("txtfusion.refiner_blocks", "text_fusion.refiner_blocks"),
    )
)

_IDEOGRAM4 = """
layers.#.attention.qkv = layers.#.attention.[to_q to_k to_v]
layers.#.attention.o = layers.#.attention.to_out.0
"""

_ACE_STEP = "".join(
    f"""
layers.#.{attention}.q_proj = layers.#.{attention}.to_q
layers.#.{attention}.k_proj = layers.#.{attention}.to_k
layers.#.{attention}.v_proj = layers.#.{attention}.to_v
layers.#.{attention}.o_proj = layers.#.{attention}.to_out.0
"""
    for attention in ("self_attn", "cross_attn")
)

_MINIMAX_H3 = """
video_patch_proj = proj_in
audio_patch_proj = audio_proj_in
condition_proj = context_embedder
time_embedder.proj_in = time_embedder.linear_1
time_embedder.proj_out = time_embedder.linear_2
final_layer.norm = norm_out.norm
final_layer.adaln_proj.linear = norm_out.linear
final_layer.video_out = proj_out
final_layer.audio_out = audio_proj_out
blocks.#.adaln_proj.linear = transformer_blocks.#.adaln_proj.linear
""" + "".join(
    f"""
{theirs}.#.attn.qkv_proj = {ours}.#.attn.[to_q to_k to_v]
{theirs}.#.attn.out_proj = {ours}.#.attn.to_out.0
{theirs}.#.attn.q_norm = {ours}.#.attn.norm_q
{theirs}.#.attn.k_norm = {ours}.#.attn.norm_k
{theirs}.#.mlp.fc1 = ~{ours}.#.ff.net.0.proj
{theirs}.#.mlp.fc2 = {ours}.#.ff.net.2
"""
    for theirs, ours in (("blocks", "transformer_blocks"), ("token_refiner.blocks", "token_refiner.refiner_blocks"))
)

_AURAFLOW = """
t_embedder.mlp.0 = time_step_proj.linear_1
t_embedder.mlp.2 = time_step_proj.linear_2
cond_seq_linear = context_embedder
init_x_linear = pos_embed.proj
final_linear = proj_out
modF.1 = ~norm_out.linear
double_layers.#.modX.1 = joint_transformer_blocks.#.norm1.linear
double_layers.#.modC.1 = joint_transformer_blocks.#.norm1_context.linear
double_layers.#.attn.w2q = joint_transformer_blocks.#.attn.to_q
double_layers.#.attn.w2k = joint_transformer_blocks.#.attn.to_k
double_layers.#.attn.w2v = joint_transformer_blocks.#.attn.to_v
double_layers.#.attn.w2o = joint_transformer_blocks.#.attn.to_out.0
double_layers.#.attn.w1q = joint_transformer_blocks.#.attn.add_q_proj
double_layers.#.attn.w1k = joint_transformer_blocks.#.attn.add_k_proj
double_layers.#.attn.w1v = joint_transformer_blocks.#.attn.add_v_proj
double_layers.#.attn.w1o = joint_transformer_blocks.#.attn.to_add_out
double_layers.#.mlpX.c_fc1 = joint_transformer_blocks.#.ff.linear_1
double_layers.#.mlpX.c_fc2 = joint_transformer_blocks.#.ff.linear_2
double_layers.#.mlpX.c_proj = joint_transformer_blocks.#.ff.out_projection
double_layers.#.mlpC.c_fc1 = joint_transformer_blocks.#.ff_context.linear_1
double_layers.#.mlpC.c_fc2 = joint_transformer_blocks.#.ff_context.linear_2
double_layers.#.mlpC.c_proj = joint_transformer_blocks.#.ff_context.out_projection
single_layers.#.modCX.1 = single_transformer_blocks.#.norm1.linear
single_layers.#.attn.w1q = single_transformer_blocks.#.attn.to_q
single_layers.#.attn.w1k = single_transformer_blocks.#.attn.to_k
single_layers.#.attn.w1v = single_transformer_blocks.#.attn.to_v
single_layers.#.attn.w1o = single_transformer_blocks.#.attn.to_out.0
single_layers.#.mlp.c_fc1 = single_transformer_blocks.#.ff.linear_1
single_layers.#.mlp.c_fc2 = single_transformer_blocks.#.ff.linear_2
single_layers.#.mlp.c_proj = single_transformer_blocks.#.ff.out_projection
"""

_MOCHI = """
x_embedder.proj = patch_embed.proj
t_embedder.mlp.0 = time_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_embed.timestep_embedder.linear_2
t5_y_embedder.to_kv = time_embed.pooler.to_kv
t5_y_embedder.to_q = time_embed.pooler.to_q
t5_y_embedder.to_out = time_embed.pooler.to_out
t5_yproj = time_embed.caption_proj
blocks.47.mod_y = transformer_blocks.47.norm1_context.linear_1
blocks.#.mod_x = transformer_blocks.#.norm1.linear
blocks.#.mod_y = transformer_blocks.#.norm1_context.linear
blocks.#.attn.qkv_x = transformer_blocks.#.attn1.[to_q to_k to_v]
blocks.#.attn.qkv_y = transformer_blocks.#.attn1.[add_q_proj add_k_proj add_v_proj]
blocks.#.attn.proj_x = transformer_blocks.#.attn1.to_out.0
blocks.#.attn.proj_y = transformer_blocks.#.attn1.to_add_out
blocks.#.mlp_x.w1 = ~transformer_blocks.#.ff.net.0.proj
blocks.#.mlp_x.w2 = transformer_blocks.#.ff.net.2
blocks.#.mlp_y.w1 = ~transformer_blocks.#.ff_context.net.0.proj
blocks.#.mlp_y.w2 = transformer_blocks.#.ff_context.net.2
final_layer.mod = ~norm_out.linear
final_layer.linear = proj_out
"""

_PIXART = """
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = adaln_single.emb.timestep_embedder.linear_1
t_embedder.mlp.2 = adaln_single.emb.timestep_embedder.linear_2
csize_embedder.mlp.0 = adaln_single.emb.resolution_embedder.linear_1
csize_embedder.mlp.2 = adaln_single.emb.resolution_embedder.linear_2
ar_embedder.mlp.0 = adaln_single.emb.aspect_ratio_embedder.linear_1
ar_embedder.mlp.2 = adaln_single.emb.aspect_ratio_embedder.linear_2
t_block.1 = adaln_single.linear
y_embedder.y_proj.fc1 = caption_projection.linear_1
y_embedder.y_proj.fc2 = caption_projection.linear_2
blocks.#.attn.qkv = transformer_blocks.#.attn1.[to_q to_k to_v]
blocks.#.attn.proj = transformer_blocks.#.attn1.to_out.0
blocks.#.cross_attn.q_linear = transformer_blocks.#.attn2.to_q
blocks.#.cross_attn.kv_linear = transformer_blocks.#.attn2.[to_k to_v]
blocks.#.cross_attn.proj = transformer_blocks.#.attn2.to_out.0
blocks.#.mlp.fc1 = transformer_blocks.#.ff.net.0.proj
blocks.#.mlp.fc2 = transformer_blocks.#.ff.net.2
final_layer.linear = proj_out
"""

# Its norm2 and norm3 are each other's in diffusers; they are left out, since a name would then mean two modules.
_HUNYUAN_DIT = """
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = time_extra_emb.timestep_embedder.linear_1
t_embedder.mlp.2 = time_extra_emb.timestep_embedder.linear_2
extra_embedder.0 = time_extra_emb.extra_embedder.linear_1
extra_embedder.2 = time_extra_emb.extra_embedder.linear_2
pooler.* = time_extra_emb.pooler.*
mlp_t5.0 = text_embedder.linear_1
mlp_t5.2 = text_embedder.linear_2
blocks.#.attn1.Wqkv = blocks.#.attn1.[to_q to_k to_v]
blocks.#.attn1.out_proj = blocks.#.attn1.to_out.0
blocks.#.attn1.q_norm = blocks.#.attn1.norm_q
blocks.#.attn1.k_norm = blocks.#.attn1.norm_k
blocks.#.attn2.q_proj = blocks.#.attn2.to_q
blocks.#.attn2.kv_proj = blocks.#.attn2.[to_k to_v]
blocks.#.attn2.out_proj = blocks.#.attn2.to_out.0
blocks.#.attn2.q_norm = blocks.#.attn2.norm_q
blocks.#.attn2.k_norm = blocks.#.attn2.norm_k
blocks.#.mlp.fc1 = blocks.#.ff.net.0.proj
blocks.#.mlp.fc2 = blocks.#.ff.net.2
blocks.#.default_modulation.1 = blocks.#.norm1.linear
final_layer.adaLN_modulation.1 = ~norm_out.linear
final_layer.linear = proj_out
"""

_SANA = """
x_embedder.proj = patch_embed.proj
t_embedder.mlp.0 = time_embed.emb.timestep_embedder.linear_1
t_embedder.mlp.2 = time_embed.emb.timestep_embedder.linear_2
t_block.1 = time_embed.linear
y_embedder.y_proj.fc1 = caption_projection.linear_1
y_embedder.y_proj.fc2 = caption_projection.linear_2
attention_y_norm = caption_norm
blocks.#.attn.qkv = transformer_blocks.#.attn1.[to_q to_k to_v]
blocks.#.attn.proj = transformer_blocks.#.attn1.to_out.0
blocks.#.cross_attn.q_linear = transformer_blocks.#.attn2.to_q
blocks.#.cross_attn.kv_linear = transformer_blocks.#.attn2.[to_k to_v]
blocks.#.cross_attn.proj = transformer_blocks.#.attn2.to_out.0
blocks.#.mlp.inverted_conv.conv = transformer_blocks.#.ff.conv_inverted
blocks.#.mlp.depth_conv.conv = transformer_blocks.#.ff.conv_depth
blocks.#.mlp.point_conv.conv = transformer_blocks.#.ff.conv_point
final_layer.linear = proj_out
"""

_QWEN21 = """
transformer_blocks.#.img_mlp.gate_up = transformer_blocks.#.img_mlp.[gate_layer proj]
"""

# Class of diffusers → lines; those whose modules a class does not have are not of it.
ORIGINS: dict[str, str] = {
    "SD3Transformer2DModel": _SD3,
    "FluxTransformer2DModel": _FLUX,
    "ChromaTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX2,
    "Flux3Transformer2DModel": _FLUX3,
    "QwenImage21Transformer2DModel": _QWEN21,
    "ZImageTransformer2DModel": _ZIMAGE,
    "Lumina2Transformer2DModel": _LUMINA2,
    "AuraFlowTransformer2DModel": _AURAFLOW,
    "Krea2Transformer2DModel": _KREA2,
    "CosmosTransformer3DModel": _COSMOS2,
    "PixArtTransformer2DModel": _PIXART,
    "HunyuanDiT2DModel": _HUNYUAN_DIT,
    "SanaTransformer2DModel": _SANA,
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "WanAnimateTransformer3DModel": _WAN,
    "WanAnimate2Transformer3DModel": _WAN_ANIMATE_2,
    "SkyReelsV2Transformer3DModel": _WAN,
    "ChronoEditTransformer3DModel": _WAN,
    "AnyFlowTransformer3DModel": _WAN,
    "AnyFlowFARTransformer3DModel": _WAN,
    "HeliosTransformer3DModel": _WAN,
    "HunyuanVideoTransformer3DModel": _HUNYUAN_VIDEO,
    "HunyuanVideoFramepackTransformer3DModel": _HUNYUAN_VIDEO,
    "HunyuanImageTransformer2DModel": _HUNYUAN_VIDEO,
    "HunyuanVideo15Transformer3DModel": _HUNYUAN_VIDEO,
    "LTXVideoTransformer3DModel": _LTX,
    "LTX2VideoTransformer3DModel": _LTX2,
    "pipelines.ltx2.connectors.LTX2TextConnectors": _LTX2_CONNECTORS,
    "MochiTransformer3DModel": _MOCHI,
    "Ideogram4Transformer2DModel": _IDEOGRAM4,
    "AceStepTransformer1DModel": _ACE_STEP,
    "MiniMaxH3Transformer3DModel": _MINIMAX_H3,
}

# What mflux calls the modules of its own models where neither their authors nor diffusers do: the LoRAs that it trains
# have these names (mflux/models/*/training_adapter; of FLUX.1 its earlier dreambooth). They are no names to write.
MFLUX: dict[str, str] = {
    "FluxTransformer2DModel": """
transformer_blocks.#.attn.to_out = transformer_blocks.#.attn.to_out.0
transformer_blocks.#.ff.linear1 = transformer_blocks.#.ff.net.0.proj
transformer_blocks.#.ff.linear2 = transformer_blocks.#.ff.net.2
transformer_blocks.#.ff_context.linear1 = transformer_blocks.#.ff_context.net.0.proj
transformer_blocks.#.ff_context.linear2 = transformer_blocks.#.ff_context.net.2
""",
    "Flux2Transformer2DModel": """
transformer_blocks.#.attn.to_out = transformer_blocks.#.attn.to_out.0
time_guidance_embed.linear_1 = time_guidance_embed.timestep_embedder.linear_1
time_guidance_embed.linear_2 = time_guidance_embed.timestep_embedder.linear_2
time_guidance_embed.guidance_linear_1 = time_guidance_embed.guidance_embedder.linear_1
time_guidance_embed.guidance_linear_2 = time_guidance_embed.guidance_embedder.linear_2
""",
    "ZImageTransformer2DModel": """
all_final_layer.2-1.adaLN_modulation.0 = all_final_layer.2-1.adaLN_modulation.1
t_embedder.linear1 = t_embedder.mlp.0
t_embedder.linear2 = t_embedder.mlp.2
""",
    "Krea2Transformer2DModel": """
tmlp.linear_in = time_embed.linear_1
tmlp.linear_out = time_embed.linear_2
tproj.linear = time_mod_proj
txtmlp.linear_in = txt_in.linear_1
txtmlp.linear_out = txt_in.linear_2
""",
    "ErnieImageTransformer2DModel": "adaln_modulation = adaLN_modulation.1",
}
