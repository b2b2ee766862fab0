"""open_clip's folders of SigLIP models: a timm ViT with a pooling head, and open_clip's own text tower.

`open_clip_folder` is the entry of the table of formats; `open_clip_names` are the tensors, `open_clip_config` is the
architecture, `open_clip_processing` how images and titles are prepared, `timm_towers` what timm's names stand for.
"""
