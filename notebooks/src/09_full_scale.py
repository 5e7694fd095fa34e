# %% [markdown]
# # Full scale: photographs, and the published weights
#
# On Colab with its free GPU: a download of 6.3 GB, then some seconds a picture. Here, without a GPU: half a minute.
#
# **You will** do with photographs what [00_quickstart](00_quickstart.ipynb) does with drawings: load Stable Diffusion
# 1.5 with the weights that the paper's authors published, give it photos of your own, draw one person and several,
# walk between two, turn the three knobs, and steer with a ControlNet.
#
# **You need** a GPU with 8 GB of memory or more, and photos of people who agreed (below). Choose a GPU runtime on
# Colab first: *Runtime*, *Change runtime type*.
#
# **What you see on this page is a rehearsal.** Where there is no GPU the same cells run on networks of the same
# layouts, small, with random weights. All of the code is the real one, from the checkpoints' files to the pictures,
# and the pictures are noise. This project has not had the published files so far, so nobody has looked at this page
# with them. What is known: on random weights the networks compute what the published implementation does
# (`python tests/parity.py tests/data/official`), and at full size they have run on a GPU (`docs/performance.md`).

# %%
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import diffusers
import ipywidgets as widgets
import torch
from PIL import Image

import uniportrait_lite as upl
from uniportrait_lite.learn import viz
from uniportrait_lite.learn.progress import progress
from uniportrait_lite.pictures import save_picture
from uniportrait_lite.quiet import no_progress_bars

FULL = torch.cuda.is_available()  # False: the rehearsal
SETTINGS = {} if FULL else {"steps": 4}  # of noise four steps show as much as twenty-five
print("the published weights" if FULL else "a rehearsal: small networks, random weights, pictures of noise")

# %% [markdown]
# ## Before you begin: whose face is it?
#
# * Take photos only of people who have agreed to this, or of yourself. No children.
# * Tell whoever sees a picture that it is generated. `save_picture` writes that into PNG files, with prompt and seed.
# * A likeness can hurt the person it shows. Do not draw people where they would not want to be seen.
# * **Licences.** Stable Diffusion 1.5: CreativeML Open RAIL-M, which forbids some uses. UniPortrait's files and
#   IP-Adapter: Apache-2.0. insightface's face models: for non-commercial research only, which makes that so for all of
#   this.
#
# ## Load
#
# Each part may be given: `base=` any Stable Diffusion 1.5 checkpoint, a Hub id, a folder or a `.safetensors` file;
# `weights=`, `ip_adapter=` and `faces=` folders of yours. Without them all is fetched, once. What is chosen for your
# hardware is said in a line, and so are the licences.

# %% tags=["nbval-ignore-output"]
parts = {}
if not FULL:
    with no_progress_bars():
        from uniportrait_lite.rehearsal import SMALL, write

        parts = {**write(Path(tempfile.mkdtemp()), SMALL), "dtype": torch.float32}
with contextlib.redirect_stderr(sys.stdout):
    up = upl.load("sd15", **parts)
up.pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# If memory runs out: `upl.load("sd15", offload=True, tiling=True)` keeps each network on the GPU only while it works.
# If there is no network: the error lists each file, its size, and where to put it; `python -m uniportrait_lite doctor`
# says what is there.
#
# ## Your photos
#
# One to four photos of one person, then of another. The face large and in focus, nothing in front of it. Without photos
# the cells below take the project's drawn people (which at full size come out as drawings, as good as they can).

# %%
first, second = (widgets.FileUpload(accept="image/*", multiple=True, description=f"person {n}") for n in (1, 2))
widgets.HBox([first, second])

# %%
drawn = upl.profiles.data_folder("tiny").parent / "faces"


def photos(upload, otherwise):
    """The pictures that were uploaded, or else those of a drawn person."""
    own = [Image.open(io.BytesIO(bytes(file.content))) for file in upload.value]
    return own or [drawn / f"{otherwise}.png", drawn / f"{otherwise}_2.png"]


one, two = up.identity(photos(first, "ann"), face="largest"), up.identity(photos(second, "bob"), face="largest")
three = up.identity(drawn / "cleo.png")
viz.show([one.crops[0], two.crops[0], three.crops[0]], ["person 1", "person 2", "person 3"])

# %% [markdown]
# These are the faces as they were found, turned and scaled: all that the model will know of them. Wrong face? Without
# `face="largest"` several faces in a photo are an error that says which there are; `face=0` is the one at the left.
#
# ## One person
#
# The same seed, another prompt. A word for what kind of person ("a man", "an old woman") helps.

# %%
prompts = ["a photo of a person, smiling, at the beach", "a photo of a person in a spacesuit", "a watercolour portrait"]
with progress("3 portraits"):
    portraits = [up(prompt, one, seed=0, **SETTINGS).images[0] for prompt in prompts]
viz.show(portraits, prompts)

# %% [markdown]
# ## The knobs, as grids
#
# `id_scale` is the weight of the face beside the prompt, `structure_scale` how much of the photo's fine structure comes
# along (the paper has 0.1 to 0.3), `guidance` how far prompt and face pull. Look for the point where likeness no longer
# grows and the prompt begins to be ignored.

# %%
KNOBS = {"id_scale": (0.0, 0.5, 0.8, 1.0), "structure_scale": (0.0, 0.1, 0.3, 0.6), "guidance": (1.5, 4.0, 7.5, 12.0)}
grid, titles = [], []
with progress("12 portraits"):
    for knob, values in KNOBS.items():
        for value in values:
            grid.append(up(prompts[0], one, seed=0, **{**SETTINGS, knob: value}).images[0])
            titles.append(f"{knob} {value:g}")
viz.show(grid, titles, columns=4)


# %%
def turned(id_scale, structure_scale, guidance, seed):
    """A portrait with all three knobs."""
    knobs = {"id_scale": id_scale, "structure_scale": structure_scale, "guidance": guidance}
    return up(prompts[0], one, seed=seed, **SETTINGS, **knobs).images[0]


viz.live(
    turned,
    id_scale=widgets.FloatSlider(0.8, min=0, max=1.2, step=0.1, description="ID", continuous_update=False),
    structure_scale=widgets.FloatSlider(0.1, min=0, max=1, step=0.1, description="structure", continuous_update=False),
    guidance=widgets.FloatSlider(7.5, min=1, max=12, step=0.5, description="guidance", continuous_update=False),
    seed=widgets.IntSlider(0, min=0, max=50, description="seed", continuous_update=False),
)

# %% [markdown]
# ## Two and three people
#
# The published routers decide from the first step who is where. Users of the published system report people who are
# there twice, and others who are missing. Two remedies of this project, measured on drawn people only: `columns`
# keeps everyone to a column of the picture at first, the first person to the left (part 9 of
# [03_id_routing](03_id_routing.ipynb)), here for 0.4 of the denoising, a guess that leaves the published routers, which
# are better trained than ours, the larger part; and `distinct=True` looks at the result, and draws again.

# %%
wide = {"width": up.unet.config.sample_size * up.pipe.vae_scale_factor * 3 // 2}
with progress("3 pictures of two and three people"):
    groups = [
        up("two people in a park", [one, two], seed=1, **wide, **SETTINGS),
        up("two people in a park", [one, two], seed=1, columns=0.4, routing=True, **wide, **SETTINGS),
        up("three friends in a park", [one, two, three], seed=1, columns=0.4, **wide, **SETTINGS),
    ]
viz.show([out.images[0] for out in groups], ["routers alone", "columns=0.4", "three"])
print("layers with routing maps:", len(groups[1].routing.layers))

# %% [markdown]
# `masks=` says who is where instead, in boxes of pixels or arrays; the same calls as in the small world.
#
# ## Between two people

# %%
amounts = [0, 0.25, 0.5, 0.75, 1]
with progress("5 portraits"):
    walk = [up("a photo of a person", one.mix(two, t), seed=3, **SETTINGS).images[0] for t in amounts]
viz.show(walk, [f"{t:.0%} of person 2" for t in amounts])

# %% [markdown]
# ## With a ControlNet
#
# Any of the field's ControlNets for Stable Diffusion 1.5, by diffusers' own pipeline. Edges of a picture say where
# things are; the person is still yours. (In the rehearsal it is one that has learned nothing.)

# %%
if FULL:
    net = diffusers.ControlNetModel.from_pretrained("lllyasviel/control_v11p_sd15_canny", dtype=up.unet.dtype)
else:
    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_unet(up.unet, load_weights_from_unet=False)
net = net.to(up.pipe._execution_device)  # where the others compute, if they rest in main memory meanwhile, too
pipe = diffusers.StableDiffusionControlNetPipeline(
    **up.pipe.components, controlnet=net, requires_safety_checker=False
)  # (the base's own safety checker is among the components, where it has one)
pipe.set_progress_bar_config(disable=True)
edges = upl.compose.edges_of(portraits[0])
noise = torch.Generator("cpu").manual_seed(0)
with up.using(two), progress("a portrait by edges"):
    steered = pipe(prompts[0], image=edges, generator=noise, num_inference_steps=SETTINGS.get("steps", 25)).images[0]
viz.show([portraits[0], edges, steered], ["person 1", "edges", "person 2"])

# %% [markdown]
# ## Keep them
#
# `save_picture` writes PNG files that say that they are generated, with prompt, seed, weights and versions. Other
# programs may drop these lines: they are no watermark.

# %%
with tempfile.TemporaryDirectory() as place:
    path = save_picture(portraits[0], Path(place) / "portrait.png")
    with Image.open(path) as kept:
        print(*(f"{key}: {kept.info[key]}" for key in ("Comment", "prompt", "seed", "id_scale")), sep="\n")

# %% [markdown]
# ## What this page cannot show
#
# * **Pictures.** Run it with a GPU, and replace the noise. What you find wrong is worth an issue.
# * **How alike they are.** `python -m uniportrait_lite compare photo.jpg portrait.png` measures it in the drawn world;
#   for photographs take a recogniser that had no part in drawing, and mind that none is equally good for all people.
# * **Training at this size.** Both stages are the ones of 04 and 05. The paper had 8 GPUs and half a million photos.
#
# ## In five lines
#
# 1. `upl.load("sd15")` is the same object as `upl.load("tiny")`: the calls are the same.
# 2. A face is found, aligned and read once; the photo is not needed again.
# 3. Three knobs: the face, its fine structure, and how far both pull.
# 4. Several people: routers, columns at first, masks, or another try.
# 5. Consent first; licences too.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939); [its authors' code and weights](https://github.com/junjiehe96/UniPortrait)
# * [Stable Diffusion](https://arxiv.org/abs/2112.10752), [IP-Adapter](https://arxiv.org/abs/2308.06721),
#   [ControlNet](https://arxiv.org/abs/2302.05543), [ArcFace](https://arxiv.org/abs/1801.07698) and
#   [insightface](https://github.com/deepinsight/insightface)
# * In the package: `sd15.py`, `official.py`, `places.py`, `hardware.py`; `docs/performance.md`
#
# **Next:** your own question. [00_quickstart](00_quickstart.ipynb) has everything once more, in seconds.
