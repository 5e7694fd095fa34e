"""The tiny text-to-image U-Net, with Stable Diffusion 1.5's block types, for pictures of one to three people.

Trained by v-prediction on a schedule that ends in pure noise (Lin et al. 2024, "Common diffusion noise schedules and
sample steps are flawed"), so that pictures get the whole range of brightness.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from uniportrait_lite.graphs import wanted
from uniportrait_lite.loop import LoopConfig, train
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.provenance import tell
from uniportrait_lite.speed import fast_attention
from uniportrait_lite.toyworld.pretrain.noisy import NoisyScenes
from uniportrait_lite.toyworld.pretrain.record import depends, record, save_half

PROMPTS = (
    "a woman with dark skin and a pink bob, smiling, wearing a green sweater, at the beach",
    "a man with pale skin, short red hair and a full beard, wearing a black suit, in the city",
    "a comic of a woman with blond pigtails and blue eyes, wearing a yellow top hat, in the park",
    "a bald man with round glasses, angry, wearing a striped shirt, in a room",
    "a portrait of a woman with a black afro, laughing, wearing a purple dress, mountains",
    "a sketch of a young man with spiky brown hair, surprised",
)


TEMPERATURE, SPACING = 0.5, 0.6  # of sampling (pipelines.py): what likeness is best with (docs/experiments.md)
FROZEN = ("vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json")


@dataclass
class UNetRecipe:
    out: str = "runs/unet"
    folder: str = "data/tiny/sd"
    start_from: str = ""  # a pipeline's folder, to go on from shipped weights where the run's folder is gone
    world: str = ""  # the file of another world than the toy world, see worlds.py
    portraits: int = 24_000
    groups: int = 3_000  # of two, and as many of three
    group_share: float = 0.2  # of the steps: that many of two, that many of three people
    batch: int = 32
    steps: int | None = 16_000
    hours: float | None = None
    lr: float = 1e-3
    muon_lr: float | None = 0.02
    text_rate: float = 0.2  # times the learning rate: the text encoder learns on, slowly, from CLIP's
    ema: float = 0.998
    cooldown: float = 0.7
    widths: tuple[int, ...] = (64, 128, 192)
    layers: int = 1
    head_width: int = 32
    timesteps: str = "fine"  # or "coarse", "uniform", "middle"
    no_caption: float = 0.1
    face_weight: float = 2.0  # of the loss inside the faces' boxes, which are a fifth of the picture
    feature_weight: float = 4.0  # of the loss around eyes, brows, nose and mouth, a tenth of it
    precision: str = "bf16"
    compile: bool = False  # by torch.compile, for each width of picture once: minutes, that an hour of training repays
    graphs: bool | None = None  # steps as CUDA graphs; none: on one CUDA device, unless compiled
    workers: int | None = None  # processes that make batches ahead; none: on CUDA what cores there are to spare
    seed: int = 2
    evaluate_every: int = 1500


def build(config: UNetRecipe, latents: int, text_width: int):
    """An untrained U-Net: cross-attention at every level but the lowest, and in the middle, as in SD 1.5."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(config.seed)
    upper = len(config.widths) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latents,
        out_channels=latents,
        down_block_types=("CrossAttnDownBlock2D",) * upper + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * upper,
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        cross_attention_dim=text_width,
        attention_head_dim=tuple(w // config.head_width for w in config.widths),  # diffusers means the number of heads
        norm_num_groups=16,
    )


def scheduler():
    """DDPM with Stable Diffusion's betas, rescaled to end in pure noise, and v-prediction.

    In every step part of the noise is new, so that no step has to live with the errors of those before it: portraits
    come out more alike than by DDIM, in fewer steps (docs/experiments.md). The configuration also has what pipelines.py
    tempers it by.
    """
    from diffusers import DDPMScheduler

    found = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # what Stable Diffusion's pipelines insist on; with this spacing it does nothing
    )
    found.register_to_config(temperature=TEMPERATURE, spacing=SPACING)
    return found


class Denoise(nn.Module):
    """Noisy latents, timesteps and token ids -> the U-Net's prediction.

    The text encoder is trained along. CLIP's own task, to tell the captions of a batch apart, asks for the few things
    that differ most; which colour belongs to which garment is learned by drawing it.
    """

    def __init__(self, unet, text_encoder):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy, timesteps, tokens):
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, text).sample.float()


def run(**overrides) -> dict:
    """Trains, completes the pipeline in `folder`, returns the metrics."""
    from accelerate import PartialState
    from transformers import AutoTokenizer, CLIPTextModel

    config = UNetRecipe(**overrides)
    graphs = wanted(config.graphs, config.compile)
    folder = Path(config.folder)
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        for part in ("vae", "tokenizer"):  # what a second base model shares with the one it begins with
            if config.start_from and not (folder / part).exists():
                shutil.copytree(Path(config.start_from) / part, folder / part)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    start = Path(config.start_from) if config.start_from else None
    text_from = start / "text_encoder" if start else folder.parent / "clip"
    text_encoder = CLIPTextModel.from_pretrained(text_from, dtype=torch.float32)
    with state.main_process_first():  # one process draws and encodes, the others read
        scenes = NoisyScenes(config, folder, tokenizer)
    unet = build(config, scenes.latents[0].shape[1], text_encoder.config.hidden_size)
    if start:
        unet = type(unet).from_pretrained(start / "unet", torch_dtype=torch.float32)
    model = Denoise(unet, text_encoder)
    noise_schedule = scheduler()
    if config.compile:
        unet.compile(dynamic=False)

    def batch(step, generator):
        return scenes(*scenes.draw(generator), generator)

    def loss(module, data):
        clean, noise, timesteps, tokens = data[:4]
        with fast_attention():
            predicted = module(noise_schedule.add_noise(clean, noise, timesteps), timesteps, tokens)
        return scenes.loss(noise_schedule, predicted, data)

    def look(module, step):
        images = sample(pipeline(module.unet, folder, module.text_encoder), list(PROMPTS), seed=0)
        shown = side_by_side(images)
        tell(shown, prompt="; ".join(PROMPTS), seed=0)
        save_picture(shown, Path(config.out) / f"samples_{step:06d}.png")
        return {}

    loop = LoopConfig(
        out=config.out, steps=config.steps, hours=config.hours, lr=config.lr, muon_lr=config.muon_lr, ema=config.ema,
        precision=config.precision, seed=config.seed, cooldown=config.cooldown, workers=config.workers,
    )  # fmt: skip
    history = train(
        loop, model, batch, loss, evaluate=look, evaluate_every=config.evaluate_every,
        no_muon=lambda name: any(part in name for part in ("conv_in", "conv_out", "time_emb", "embeddings")),
        rate=lambda name: config.text_rate if name.startswith("text_encoder") else 1.0,
        depends_on=depends(config, *(folder / part for part in FROZEN)), graphs=graphs,
    )  # fmt: skip
    if not state.is_main_process:
        return {}
    pipe = pipeline(model.unet, folder, model.text_encoder)
    save_half(model.unet, folder / "unet")
    save_half(model.text_encoder, folder / "text_encoder")
    pipe.scheduler.save_pretrained(folder / "scheduler")
    write_index(pipe, folder)
    metrics = {"parameters": sum(p.numel() for p in model.unet.parameters())}
    return record(folder / "unet", "unet", config, history, metrics)


def write_index(pipe, folder: Path):
    """model_index.json, which makes of the parts a folder for `StableDiffusionPipeline.from_pretrained`."""
    temporary = folder / "model_index.json.tmp"
    temporary.write_text(json.dumps(dict(json.loads(pipe.to_json_string())), indent=2) + "\n")
    os.replace(temporary, folder / "model_index.json")


def pipeline(unet, folder: str | Path, text_encoder):
    """The text-to-image pipeline around `unet` and `text_encoder`, its other parts read from `folder`."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import AutoTokenizer

    folder = Path(folder)
    device = next(unet.parameters()).device
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, prompts: list[str], seed: int, steps: int = 8, guidance: float = 3.0, width: int = 128) -> list:
    """One picture for each prompt, the same noise for the same place in the list."""
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    return pipe(
        prompts, num_inference_steps=steps, guidance_scale=guidance, height=128, width=width, generator=generators
    ).images


def side_by_side(images: list):
    """PIL pictures of one height in a row."""
    from PIL import Image

    sheet = Image.new("RGB", (sum(i.width for i in images), images[0].height))
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width
    return sheet
