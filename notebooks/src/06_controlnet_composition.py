# %% [markdown]
# # Composition: people beside the tools of the field
#
# About a minute to run on two CPU cores, in 0.9 GB of memory, without GPU and network. With the exercises: 100 minutes.
#
# **You will** draw a pose, find edges, see how a ControlNet learns out of zeros, and give it people. Then a picture
# beside the words (image prompt), a style from a file (LoRA) and from a picture (StyleAligned), faces into pictures
# that exist (inpainting), a story, and one person turning into another.
#
# **You need** [02_id_embedding](02_id_embedding.ipynb) for decoupled cross-attention, and what a denoising step does.
# Cells below an exercise use the package's own function, so you can leave out any exercise and read on.

# %%
import diffusers
import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F

import uniportrait_lite as upl
from uniportrait_lite.learn import diagrams, viz
from uniportrait_lite.learn.checks import controlnet_composition as checks
from uniportrait_lite.learn.source import show_source
from uniportrait_lite.quiet import no_advice, no_progress_bars
from uniportrait_lite.style_alignment import StyleAlignment
from uniportrait_lite.toyworld import Person, group, portrait
from uniportrait_lite.toyworld.references import PEOPLE
from uniportrait_lite.toyworld.worlds import world

with no_progress_bars():  # the libraries have much to say when they are loaded
    from uniportrait_lite.compose.inpainting import _Outside
    from uniportrait_lite.compose.style import backwards, invert
    from uniportrait_lite.evaluation.composition import edge_agreement, pose_errors

    up = upl.load("tiny")
torch.set_grad_enabled(False)  # but where something is trained
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # the same sum in another order differs a little
tiny = upl.profiles.data_folder("tiny")
faces = {name: tiny.parent / "faces" / f"{name}.png" for name in PEOPLE}
people = {name: up.identity(path) for name, path in faces.items()}
print(len(people), "people; the pipeline:", type(up.pipe).__name__)

# %% [markdown]
# ## Where we are going
#
# In UniPortrait people come in by cross-attention, with keys and values of their own, and a LoRA that goes with them.
# What the U-Net is given and what it returns stay as they were. The paper concludes (section "Applications") that
# whatever else takes hold of the U-Net can do so at the same time. This notebook tries each such tool, **as the
# libraries ship it**:

# %%
diagrams.composition()

# %% [markdown]
# Green is what this notebook adds; identities and the prompt you know.
#
# ## 1. Pictures that say where
#
# A prompt says what, hardly where. A **condition image** says where. Two kinds are used here: figures of faces, as
# OpenPose draws bodies, and edges. Both can be made of any picture. Figures forget who is in it; edges do not quite,
# as hair and the outline of a face are edges, too.
#
# A figure is a few lines between landmarks. Which pixels belong to a line? Those whose distance from the segment
# between $a$ and $b$ is small. The point of the segment next to a pixel $p$ is
#
# $$a + t\,(b - a), \qquad t = \mathrm{clamp}\!\left(\frac{(p - a)\cdot(b - a)}{\lVert b - a\rVert^2},\; 0,\; 1\right)$$

# %% [markdown] exercise="segment_distance" level="easy" minutes=10 teaches="drawing by distance"
# ### How far from a line?
#
# Write `segment_distance(a, b, height, width)`: `a` and `b` are points (2,), x first. The result (height, width) has
# the distance of every pixel from the segment between them. The pixel in row $y$ and column $x$ is the point $(x, y)$.
#
# **Hint.** `torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")` gives y and x of all pixels;
# stack them as (height, width, 2), x first, as float. Then `points - a` and `@ (b - a)` work for all pixels at once.


# %%
def segment_distance(a, b, height, width):
    """The distance of every pixel from the segment between a and b: (height, width)."""
    ### BEGIN SOLUTION
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack([x, y], dim=-1).float()
    t = ((points - a) @ (b - a)) / (b - a).square().sum()
    nearest = a + t.clamp(0, 1)[..., None] * (b - a)
    return (points - nearest).norm(dim=-1)
    ### END SOLUTION


checks.segment_distance(segment_distance)

# %% [markdown]
# The package draws with OpenCV, from the drawn world's exact landmarks (`controls.pose`) or from those that insightface
# finds in any picture (`compose.pose_of`). Each limb has its colour, so that left is not right.

# %%
scene = group([Person.random(2_061_001), Person.random(2_061_002)], seed=4, style="photo", hat="none", glasses="none")
truth = upl.controls.pose([face.landmarks for face in scene.faces], scene.image.size)
found = upl.compose.pose_of(scene.image)
viz.show([truth, found], ["figures by the truth", "as found"])
masks = [np.asarray(figure).any(-1) for figure in (truth, found)]
print("of the pixels of both figures they share more than a third:", (masks[0] & masks[1]).mean() > masks[0].mean() / 3)

# %% [markdown]
# **Edges** are where a picture changes quickly. Canny's recipe: the gradient of brightness by two small filters
# (Sobel's), and its size; then only the ridges of it, one pixel wide; then two thresholds: ridges above the high one
# are edges, and so are those above the low one that hang on to them. The first part by hand, the rest by OpenCV:

# %%
one = portrait(Person.random(2_061_001), seed=4, style="photo", hat="none", glasses="none", background="beach")
across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
pixels = torch.from_numpy(one.pixels).permute(2, 0, 1)[:, None].float()  # a channel is a picture here
padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
both = F.conv2d(padded, torch.stack([across, across.T])[:, None])  # (3, 2, H, W): rightwards, downwards
size = both.abs().sum(1).amax(0)  # of the channel that changes most
edges = upl.controls.edges(one.image, low=100, high=200)
is_edge = torch.from_numpy(np.asarray(edges)[..., 0] > 0)
viz.show([one.image, np.uint8(255 * (size / size.max()).sqrt()), edges], ["a picture", "its gradient", "Canny's edges"])
assert size[is_edge].min() > 100  # an edge is never where the gradient is small
print("every edge has a gradient above the low threshold; of such places less than half are edges:", end=" ")
print(bool(is_edge.sum() < (size > 100).sum() / 2))

# %% [markdown] exercise="agreement" level="medium" minutes=10 teaches="precision and recall with a tolerance"
# ### Edges that agree
#
# How well does a picture keep to its condition? For edges the package takes the **F1** of two maps $A$ and $B$: with
# $p$ the share of the edge pixels of $A$ that have one of $B$ among the 3 x 3 pixels around them, and $r$ the same the
# other way round, $F_1 = 2pr/(p + r)$.
#
# Write `agreement(a, b)` for two edge maps (H, W), bool, that both have edges. The result is a tensor with one number.
#
# **Hint.** Thicken a map by one pixel: `F.max_pool2d(x.float()[None], 3, stride=1, padding=1)[0]`. Then look at it
# where the other map has edges: `thick_b[a]` holds its values there, and their mean is $p$.


# %%
def agreement(a, b):
    """F1 of two edge maps (H, W), a pixel off being no mistake."""
    ### BEGIN SOLUTION
    thick_a, thick_b = (F.max_pool2d(x.float()[None], 3, stride=1, padding=1)[0] for x in (a, b))
    p, r = thick_b[a].mean(), thick_a[b].mean()
    return 2 * p * r / (p + r)
    ### END SOLUTION


checks.agreement(agreement)

# %% [markdown]
# Move the thresholds: which edges stay? The number compares the edges of the same scene as a photo and as a comic.
# ("Photo" means shades here; everything is drawn.)


# %%
def edge_map(image, low=100, high=200):
    """The edges of a picture, (H, W), bool."""
    return np.asarray(upl.controls.edges(image, low, high))[..., 0] > 0


def thresholds(low, high):
    """The edges of a scene as a comic, and how well those of the photo agree with them."""
    maps = [edge_map(image, min(low, high), high) for image in (one.image, one_comic)]
    return {f"a comic's: {edge_agreement(*maps):.2f}": np.uint8(255 * maps[1])}


one_comic = portrait(one.faces[0].person, seed=4, style="comic", hat="none", glasses="none", background="beach").image
viz.live(
    thresholds,
    low=widgets.IntSlider(100, min=20, max=400, step=20, description="low", continuous_update=False),
    high=widgets.IntSlider(200, min=20, max=600, step=20, description="high", continuous_update=False),
)

# %% [markdown]
# ## 2. A ControlNet begins with nothing
#
# How can a trained U-Net learn to heed a picture without losing what it knows?
# [ControlNet](https://arxiv.org/abs/2302.05543) copies its way down, shows the copy the condition, and adds what comes
# out to what the frozen way up reads. On the way there, 1 x 1 convolutions whose weights and biases **begin at zero**.
# diffusers makes one of any U-Net. At first it changes nothing, bit for bit:

# %%
diagrams.control_net()
unet = diffusers.UNet2DConditionModel.from_pretrained(tiny / "sd" / "unet").requires_grad_(False)  # by itself
torch.manual_seed(0)
control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 16, 32, 64))
given = {name: torch.randn(*shape) for name, shape in {"x": (2, 8, 16, 16), "text": (2, 48, 128)}.items()}
hint = torch.from_numpy(np.asarray(truth.resize((128, 128))) / 255).permute(2, 0, 1).float().expand(2, -1, -1, -1)
step = torch.tensor([500, 500])


def predicted(x, text):
    """The U-Net's prediction with what the ControlNet makes of the hint."""
    down, middle = control(x, step, text, hint, return_dict=False)
    return unet(x, step, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample


assert torch.equal(predicted(**given), unet(given["x"], step, given["text"]).sample)
shapes = {tuple(residual.shape[1:]) for residual in control(given["x"], step, given["text"], hint)[0]}
print("maps added to the way up:", *sorted(shapes))
print(f"parameters: {sum(p.numel() for p in control.parameters()) / 1e6:.1f} million of the copy,", end=" ")
print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} million of the U-Net")

# %% [markdown] exercise="zero_conv_gradients" level="medium" minutes=15 teaches="why a zero convolution learns"
# ### The gradients of a 1 x 1 convolution
#
# Does a weight of zero ever learn? In a 1 x 1 convolution $y_{dp} = \sum_c w_{dc}\, x_{cp} + \beta_d$, at each place
# $p$. Let $g = \partial L / \partial y$ be what comes back from the loss. Which of the gradients of $w$, $\beta$ and
# $x$ depend on $w$?
#
# Write `zero_conv_gradients(weight, x, upstream)` without autograd. `weight` (D, C); `x` (B, C, H, W); `upstream`
# (B, D, H, W) is $g$. Return the gradients of $w$ (D, C), of $\beta$ (D,) and of $x$ (B, C, H, W), for any weight, zero
# or not.
#
# **Hint.** $\partial y_{dp}/\partial w_{dc} = x_{cp}$, and $w$ works at all places of all samples, so sum over them:
# `torch.einsum("bdhw,bchw->dc", ...)`. In the same way, what is $\partial y_{dp}/\partial x_{cp}$?


# %%
def zero_conv_gradients(weight, x, upstream):
    """The gradients of weight, bias and x of a 1 x 1 convolution."""
    ### BEGIN SOLUTION
    of_weight = torch.einsum("bdhw,bchw->dc", upstream, x)
    of_bias = upstream.sum(dim=(0, 2, 3))
    of_x = torch.einsum("dc,bdhw->bchw", weight, upstream)
    return of_weight, of_bias, of_x
    ### END SOLUTION


checks.zero_conv_gradients(zero_conv_gradients)

# %% [markdown]
# With $w = 0$ the gradient of $w$ is not zero, and that of $x$ is. So at the first step the zero convolutions learn and
# nothing that feeds them does; from the second on the copy learns. The condition has its own way in, eight small
# convolutions of which the last begins at zero as well. Three steps of training, and who gets a gradient:

# %%
parts = {"zero convolutions": "controlnet_", "the copy": "", "end of the way in": "controlnet_cond_embedding.conv_out"}
parts["rest of the way in"] = "controlnet_cond_embedding"


def part_of(name):
    """The part of a ControlNet that a parameter belongs to: that of the longest beginning of its name."""
    return max((part for part in parts if name.startswith(parts[part])), key=lambda part: len(parts[part]))


learns, optimiser = {part: [] for part in parts}, torch.optim.SGD(control.parameters(), lr=0.1)
with torch.enable_grad():
    for _ in range(3):
        loss = (predicted(**given) - given["x"].roll(1, 0)).square().mean()  # any aim will do
        loss.backward()
        moved = {part: [] for part in parts}
        for name, parameter in control.named_parameters():
            moved[part_of(name)].append(bool(parameter.grad.any()))
        for part, flags in moved.items():
            learns[part].append("learns" if all(flags) else "waits" if not any(flags) else "partly")
        optimiser.step()
        optimiser.zero_grad()
for part, steps in learns.items():
    print(f"{part:20}", *(f"step {number}: {word:8}" for number, word in enumerate(steps, 1)))
assert [steps.index("learns") for steps in learns.values()] == [0, 1, 1, 2]

# %% [markdown]
# That is how it starts; how it goes on is a matter of patience. Of a picture's loss most is about colours, which a pose
# or an outline does not tell. So our recipe (`toyworld/pretrain/controlnet.py`) begins with a warm-up **of our own**:
# the condition's way in is trained by itself to give what the U-Net's first convolution makes of the clean picture.
#
# ## 3. ControlNet, with people
#
# The pipeline is diffusers' own, made of the parts that `up` is attached to and a ControlNet from a file. As both use
# the same U-Net, `up.using(...)` is all that it needs. The ControlNet itself is never shown the people: it has no
# processor of ours. It says where; edges also tell of the face that they were taken from, which then mixes with ours.


# %%
def controlled(kind):
    """diffusers' ControlNet pipeline on the networks that `up` is attached to."""
    net = diffusers.ControlNetModel.from_pretrained(tiny / "controlnet" / kind)
    found = diffusers.StableDiffusionControlNetPipeline(
        **up.pipe.components, controlnet=net, requires_safety_checker=False
    )
    found.set_progress_bar_config(disable=True)
    return found


def draw(pipe, prompt, seeds, **arguments):
    """Pictures of a diffusers pipeline, one a seed: its own call, unchanged."""
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    settings = {"num_inference_steps": 8, "guidance_scale": 3.0, "generator": noise}
    return pipe([prompt] * len(seeds), **settings, **arguments).images


plain = {"style": "photo", "hat": "none", "glasses": "none", "background": "studio"}
posers = [portrait(Person.random(2_062_002 + k), seed=k, turn=0.8 - 1.6 * k, tilt=12 - 24 * k, **plain) for k in (0, 1)]
prompt, seeds = "a photo of a person", (1, 2)
free = up([prompt] * 2, people["cleo"], seed=seeds[0]).images  # without a ControlNet

# %% [markdown]
# Edges first: those of somebody else, and Cleo. The last picture has the same person, prompt and noise, and no
# ControlNet. The numbers are the agreement of the picture's edges with those that were asked for.

# %%
outlines = [upl.controls.edges(poser.image) for poser in posers]
by_edges = controlled("edges")
with up.using(people["cleo"]):
    cleo = draw(by_edges, prompt, seeds, image=outlines)
fits = {"cleo": [], "no ControlNet": []}
for k in (0, 1):
    for name, image in (("cleo", cleo[k]), ("no ControlNet", free[k])):
        fits[name].append(edge_agreement(edge_map(image), edge_map(posers[k].image)))
viz.show([outlines[1], cleo[1], free[1]], ["the condition", *(f"{name}: {x[1]:.2f}" for name, x in fits.items())])
print(
    "edges agree better with the ControlNet than without, on average:", sum(fits["cleo"]) > sum(fits["no ControlNet"])
)

# %% [markdown]
# Now figures of the same two faces. The numbers are the distance of the landmarks that are found from those that were
# asked for, in widths of the face, with the ControlNet and without. A figure says much less than an outline: it takes a
# ControlNet longer to find out that it says anything. Two pictures prove little: `evaluate compose` has these numbers
# for forty. With the controls below, turn up how much a ControlNet adds (`controlnet_conditioning_scale`, an argument
# of diffusers), and change the person.

# %%
figures = [upl.controls.pose([poser.faces[0].landmarks], poser.image.size) for poser in posers]
by_pose = controlled("pose")
with up.using(people["cleo"]):
    cleo = draw(by_pose, prompt, seeds, image=figures)
shown, titles = [], []
for poser, figure, image, other in zip(posers, figures, cleo, free, strict=True):
    errors = [pose_errors(upl.faces.detect(x), poser) for x in (image, other)]
    names = [f"{error[0]:.2f}" if error else "no face" for error in errors]
    shown += [figure, image]
    titles += ["the condition", f"cleo: {names[0]} (without: {names[1]})"]
viz.show(shown, titles)


# %%
def steered(kind, person, scale):
    """A person drawn by a condition."""
    image, pipe = (outlines[1], by_edges) if kind == "edges" else (figures[1], by_pose)
    with up.using(people[person]):
        out = draw(pipe, prompt, [2], image=image, controlnet_conditioning_scale=scale)
    return {f"{person}, scale {scale}": out[0]}


viz.live(
    steered,
    kind=widgets.Dropdown(options=["edges", "pose"], value="edges", description="condition"),
    person=widgets.Dropdown(options=list(people), value="dan", description="person"),
    scale=widgets.FloatSlider(1.0, min=0, max=2, step=0.25, description="scale", continuous_update=False),
)

# %% [markdown]
# ## 4. A picture beside the words
#
# [IP-Adapter](https://arxiv.org/abs/2308.06721) lets a whole picture speak: CLIP's embedding of it becomes 4 tokens,
# with keys and values of their own in every cross-attention layer. That is decoupled cross-attention again, which the
# paper took over for ID tokens. So with both there are three branches. Ours takes a mask $M$, too, which says where the
# picture is heeded:
#
# $$\mathrm{Attn}(Q, K_{text}, V_{text}) + \lambda_{id}\, \mathrm{Attn}(Q, K_{id}, V_{id}) +
# \lambda_{img}\, M \odot \mathrm{Attn}(Q, K_{img}, V_{img})$$

# %% [markdown] exercise="three_branches" level="easy" minutes=10 teaches="branches that do not disturb each other"
# ### Text, person, picture
#
# Write `three_branches(q, text, identity, image, id_scale, image_scale, mask)`: q (B, L, d); `text`, `identity` and
# `image` are pairs of keys and values, each (B, T, d); `mask` (B, L) goes from 0, where the picture is not heeded, to
# 1; values between count in part, so multiply. Use `F.scaled_dot_product_attention`.
#
# **Hint.** Three calls. The mask belongs to what the last one returns: `mask[..., None]` is (B, L, 1).


# %%
def three_branches(q, text, identity, image, id_scale, image_scale, mask):
    """Attention to text, identity and image prompt, each with a softmax of its own."""
    ### BEGIN SOLUTION
    text, identity, image = (F.scaled_dot_product_attention(q, k, v) for k, v in (text, identity, image))
    return text + id_scale * identity + image_scale * mask[..., None] * image
    ### END SOLUTION


checks.three_branches(three_branches)

# %% [markdown]
# A picture with a look, and Ann. `image_scale` says how much of it is heeded, `image_mask` where: here on the right
# half. (The left half changes, too: self-attention carries the look on.) The numbers are CLIP's: how alike the whole
# picture is to the one with the look.

# %%
look = portrait(Person.random(2_063_001), seed=5, style="noir", background="city", hat="none", glasses="none").image


def clip_alike(*images):
    """CLIP's cosines of pictures with the first of them."""
    views = np.stack([upl.image_prompt.clip_view(image) for image in images])
    embeds = F.normalize(up.features.image_embedding(torch.from_numpy(views).permute(0, 3, 1, 2) / 255), dim=1)
    return (embeds[1:] @ embeds[0]).tolist()


right_half = np.zeros((128, 128), bool)
right_half[:, 64:] = True
ways = {"no picture": {}, "the whole": {}, "on the right": {"image_mask": right_half}}
drawn = {}
for name, given in ways.items():
    given = given if name == "no picture" else {"image_prompt": look, "image_scale": 0.8, **given}
    drawn[name] = up("a person", people["ann"], seed=2, **given).images[0]
alike = clip_alike(look, *drawn.values())
viz.show([look, *drawn.values()], ["the look", *(f"{n}: {x:.2f}" for n, x in zip(drawn, alike, strict=True))])
print("with the picture she is more like it than without:", alike[1] > alike[0])

# %%
layer = "mid_block.attentions.0.transformer_blocks.0.attn2"  # of 4 x 4 positions


def by_hand(attn, args, given, output):
    """Compares what a cross-attention layer returns with the formula."""

    def branch(*projected):
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(args[0]), *projected))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    text, who, picture = (given[name] for name in ("encoder_hidden_states", "identities", "image_prompt"))
    here = F.interpolate(picture.mask[:, None].float(), size=(4, 4), mode="area").flatten(2).transpose(1, 2)
    total = branch(attn.to_k(text), attn.to_v(text))
    total = total + who.id_scale * branch(*(x[:, 0] for x in attn.processor.project(who.tokens)))
    total = total + picture.image_scale * here * branch(*picture.keys_values[layer])
    torch.testing.assert_close(attn.to_out[0](total), output, **CLOSE)
    print("image tokens:", picture.keys_values[layer][0].shape[1], "- and the layer computes what the formula says")


hook = up.unet.get_submodule(layer).register_forward_hook(by_hand, with_kwargs=True)
up("a person", people["ann"], seed=2, steps=1, image_prompt=look, image_scale=0.8, image_mask=right_half)
hook.remove()

# %% [markdown]
# ## 5. A style from a file
#
# A LoRA adds a product of two thin matrices to some of the U-Net's weights. Thousands of them are shared for Stable
# Diffusion. This one is ours, of a look that the base model has never seen, stained glass, and
# diffusers' own `load_lora_weights` reads it. Identities have a LoRA of their own; the two are simply added.


# %%
def glass(wanted):
    """Loads the style LoRA into the pipeline, or deletes it: diffusers' own calls."""
    with no_advice():
        if wanted:
            up.pipe.load_lora_weights(tiny / "lora", weight_name="glass.safetensors", adapter_name="glass")
        else:
            up.pipe.delete_adapters("glass")


artist = world(str(tiny.parent / "looks" / "glass.py"))
pictures = {"drawn in glass": artist.portrait(Person.random(2_063_002), seed=1).image}
pictures["dan"] = up("a person", people["dan"], seed=4).images[0]
glass(True)
pictures["dan, with the LoRA"] = up("a person", people["dan"], seed=4).images[0]
glass(False)
again = up("a person", people["dan"], seed=4).images[0]
viz.show(list(pictures.values()), list(pictures))
assert np.array_equal(pictures["dan"], again)
assert not np.array_equal(pictures["dan"], pictures["dan, with the LoRA"])
print("with the LoRA the picture differs; once it is deleted all is as before, bit for bit")

# %% [markdown]
# ## 6. A style from a picture
#
# The paper's style transfer needs neither words nor a file: it takes the look of one given picture, in two steps.
#
# **To noise.** DDIM is deterministic: it can be walked backwards. Let $\bar\alpha$ be the picture's share of the
# variance of noisy latents $x = \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\, \epsilon$. Our U-Net predicts a
# *velocity* $v$, from which both parts follow, and a step mixes them again for another $\bar\alpha'$ (Stable Diffusion
# 1.5 predicts $\epsilon$ itself; the rest is the same):
#
# $$\hat x_0 = \sqrt{\bar\alpha}\, x - \sqrt{1 - \bar\alpha}\, v, \qquad
# \hat\epsilon = \sqrt{\bar\alpha}\, v + \sqrt{1 - \bar\alpha}\, x, \qquad
# x' = \sqrt{\bar\alpha'}\, \hat x_0 + \sqrt{1 - \bar\alpha'}\, \hat\epsilon$$

# %% [markdown] exercise="ddim_step" level="medium" minutes=10 teaches="DDIM in both directions"
# ### One step of DDIM
#
# Write `ddim_step(x, v, now, later)`: latents, the predicted velocity, and $\bar\alpha$ and $\bar\alpha'$ as tensors
# with one number. If `later` is larger, the step goes towards the picture; if it is smaller, towards noise.
#
# **Hint.** The three formulas are three lines. `now.sqrt()`, `(1 - now).sqrt()`.


# %%
def ddim_step(x, v, now, later):
    """Latents x at alpha-bar `now` -> those at alpha-bar `later`."""
    ### BEGIN SOLUTION
    clean = now.sqrt() * x - (1 - now).sqrt() * v
    noise = now.sqrt() * v + (1 - now).sqrt() * x
    return later.sqrt() * clean + (1 - later).sqrt() * noise
    ### END SOLUTION


checks.ddim_step(ddim_step)

# %% [markdown]
# The package walks with diffusers' `DDIMInverseScheduler`. Here is the way of a comic, and one of its steps by the
# formula. The way is not exact: walking towards noise, $v$ is asked at the step's end, but for the latents of its
# beginning, as those of the end are not known yet. What comes out after 20 steps looks like noise, and holds the
# picture:

# %%
comic = portrait(Person.random(2_063_003), seed=3, style="comic", background="park", hat="none").image
way = invert(up.pipe, comic, 20)
inverse = backwards(up.pipe.scheduler)
inverse.set_timesteps(20)
text = up.pipe.encode_prompt("", "cpu", 1, False)[0]
at, k = inverse.timesteps[12], 12
v = up.unet(way[k], at, text).sample
now, later = (inverse.alphas_cumprod[t] for t in (at - 50, at))
clean, noise = now.sqrt() * way[k] - (1 - now).sqrt() * v, now.sqrt() * v + (1 - now).sqrt() * way[k]
torch.testing.assert_close(later.sqrt() * clean + (1 - later).sqrt() * noise, way[k + 1], **CLOSE)


def decoded(latents):
    """Latents (1, 8, 16, 16) as a picture."""
    return up.pipe.image_processor.postprocess(up.pipe.vae.decode(latents / up.pipe.vae.config.scaling_factor).sample)[
        0
    ]


viz.show([comic, decoded(way[-1])], ["a comic", "after 20 steps towards noise"])
print("the way has", len(way) - 1, "steps; one of them by hand: the same")

# %% [markdown]
# **And back, with company.** The style picture walks back to where it came from, and the new picture walks beside it,
# out of noise of its own. In every self-attention layer the new one reads the keys and values of the style picture too
# ([StyleAligned](https://arxiv.org/abs/2312.02133)), with a **shift** added to their scores. So that it takes notice,
# its own queries and keys first get the mean and deviation of those of the style picture, channel by channel (AdaIN):
#
# $$\mathrm{AdaIN}(x, r) = \frac{x - \mu(x)}{\sigma(x)}\, \sigma(r) + \mu(r)$$

# %% [markdown] exercise="adain" level="easy" minutes=5 teaches="a look is largely statistics"
# ### AdaIN
#
# Write `adain(x, reference)` for (B, L, C): batch, places, channels. Mean and deviation are those of a channel over the
# places of one picture.
#
# **Hint.** `torch.std_mean(x, dim=..., keepdim=True)` returns deviation and mean. Which dimension has the places?


# %%
def adain(x, reference):
    """x (B, L, C) with each channel spread as the reference's."""
    ### BEGIN SOLUTION
    (deviation, mean), (wanted, centre) = (torch.std_mean(y, dim=1, keepdim=True) for y in (x, reference))
    return (x - mean) / deviation * wanted + centre
    ### END SOLUTION


checks.adain(adain)

# %% [markdown]
# The package's lines for all this. People take part in the new row of the batch only: the style picture is drawn again
# as it was. One call does it all; the prompt is empty, as in the paper. What comes over is colours and surroundings
# more than lines; the check compares how colourful the upper halves are. With the slider below, move the shift: far
# below 0 the new picture hardly looks at the style. (Some seconds for a picture.)

# %%
show_source(StyleAlignment.share)
x = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))  # two pictures; the first is the style
query, key, value, bias = StyleAlignment(torch.tensor([0, 0]), shift=-1.0, adain=True).share(x, x, x)
deviation, mean = torch.std_mean(x, dim=1, keepdim=True)
torch.testing.assert_close(query, (x - mean) / deviation * deviation[:1] + mean[:1], **CLOSE)
assert torch.equal(key[:, 50:], key[:1, :50].expand(2, -1, -1)) and (bias[..., 50:] == -1).all()
noir = portrait(Person.random(2_063_003), seed=3, style="noir", background="park", hat="none").image
styled = {
    name: upl.compose.in_style(up, "", image, people["cleo"], seed=2)
    for name, image in (("comic", comic), ("noir", noir))
}
viz.show([styled["comic"], noir, styled["noir"]], ["cleo in the comic", "film noir", "cleo in it"])
colour = {name: np.asarray(image.convert("HSV"), float)[:60, :, 1].mean() for name, image in styled.items()}
print("the upper half is less colourful in the noir one:", bool(colour["noir"] < colour["comic"]))


# %%
def shifted(style, person, shift):
    """A person in a picture's style."""
    image = {"comic": comic, "noir": noir}[style]
    out = upl.compose.in_style(up, "", image, people[person], seed=2, shift=shift, steps=10)
    return {f"{style}, the style": image, f"{person}, shift {shift}": out}


viz.live(
    shifted,
    style=widgets.Dropdown(options=["comic", "noir"], value="noir", description="style"),
    person=widgets.Dropdown(options=list(people), value="dan", description="person"),
    shift=widgets.FloatSlider(1, min=-8, max=4, step=1, description="shift", continuous_update=False),
)

# %% [markdown]
# ## 7. Into pictures that exist
#
# To draw a part of a picture anew, no new network is needed: after every step, what lies outside the mask is put back,
# **as noisy as it should be by then**. With $M$ 1 inside:
#
# $$x \leftarrow M \odot x + (1 - M) \odot
# \left(\sqrt{\bar\alpha}\, x_0^{known} + \sqrt{1 - \bar\alpha}\, \epsilon\right)$$

# %% [markdown] exercise="known_and_drawn" level="easy" minutes=10 teaches="inpainting without a network for it"
# ### What is known, and what is drawn
#
# Write `known_and_drawn(drawn, clean, noise, inside, alpha_bar)`: `drawn` are the latents after a step, `clean` those
# of the given picture, `noise` is the same in all steps, all (B, c, h, w); `inside` (1, 1, h, w) is 1 where something
# new belongs; `alpha_bar` is a tensor with one number.
#
# **Hint.** First the known latents, made noisy as in part 6; then the sum with the mask.


# %%
def known_and_drawn(drawn, clean, noise, inside, alpha_bar):
    """Latents (B, c, h, w): drawn inside, the noised known ones outside."""
    ### BEGIN SOLUTION
    known = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    return inside * drawn + (1 - inside) * known
    ### END SOLUTION


checks.known_and_drawn(known_and_drawn)

# %% [markdown]
# The package does it in a callback of diffusers' pipeline, which stays as it is. **A face swap** (the paper's example):
# Cleo's picture with Ann in it. A hook notes what the U-Net is given in every step, and we look into it. Then the same
# with another mask: Cleo keeps her face and gets other clothes. (A mask leaves some room around what it covers. What is
# drawn there need not fit the rest of the picture; at this scale one often sees the seam.)

# %%
show_source(_Outside.__call__)
noted = []
hook = up.unet.register_forward_pre_hook(lambda net, args: noted.append((args[0][:1], args[1])))
mask = upl.compose.face_mask(faces["cleo"])
swapped = upl.compose.inpaint(up, "a woman in a studio", faces["cleo"], mask, people["ann"], seed=0)
hook.remove()
cleo = upl.pictures.read_picture(faces["cleo"])
latents = up.pipe.vae.encode(up.pipe.image_processor.preprocess(cleo.resize((128, 128)))).latent_dist.mode()
latents, noise = (
    latents * up.pipe.vae.config.scaling_factor,
    torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)),
)
for given, at in noted[1:]:  # a corner is outside the mask, and from the second step on
    alpha_bar = up.pipe.scheduler.alphas_cumprod[at]
    known = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(given[..., :2, :2], known[..., :2, :2], rtol=0.02, atol=0.02)
viz.show(decoded(noted[-2][0]), [f"before step {len(noted) - 1}"])
outside = np.asarray(mask) == 0
assert np.array_equal(np.asarray(swapped)[outside], np.asarray(cleo)[outside])
print(
    "outside the mask the U-Net sees the picture, noised, from the second step on; at the end its pixels are the same"
)

# %%
clothes = upl.compose.clothes_mask(faces["cleo"])
dressed = upl.compose.inpaint(up, "a photo of a woman wearing a blue hoodie", faces["cleo"], clothes, people["cleo"])
viz.show([cleo, mask, swapped, clothes, dressed], ["cleo", "the mask", "ann in her place", "the mask", "other clothes"])
to = {name: upl.evaluation.face_similarity(swapped, path) for name, path in faces.items() if name in ("ann", "cleo")}
print("after the swap the face is more like ann's than cleo's:", to["ann"] > to["cleo"])

# %% [markdown]
# ## 8. Stories, and motion
#
# A story is the same people again and again. `compose.story` draws panel by panel, looks who is there (by the
# recogniser), and draws a panel again where somebody is missing or doubled. `.strip()` makes one picture of it.

# %%
panels = [
    ("a woman in a room, sad", people["ann"]),
    ("a woman and a man in the park", [people["ann"], people["bob"]]),
    ("a man in the snow, laughing", people["bob"]),
]
told = upl.compose.story(up, panels, seed=4)
there = ["everyone once" if right else "look twice" for right in told.everyone_once]
viz.show(told.images, [f"{text} ({fine})" for text, fine in zip(told.prompts, there, strict=True)])
strip = told.strip(height=128)  # one picture, with the captions, to save
print(
    "a strip of",
    strip.size,
    "with",
    len(told.images),
    "panels; faces found:",
    [len(found.boxes) for found in told.assignments],
)

# %% [markdown]
# And motion: from person to person along the straight line between their ID tokens, always out of the same noise.
# `compose.save_animation` writes a GIF or WebP. (There and back, five frames make an animation of eight.)

# %%
frames = upl.compose.morph(up, "a person in the park", [people["ann"], people["dan"]], frames=5, seed=1)
viz.show(frames[::2], ["ann", "half of each", "dan"])
viz.animated(frames, height=80)
pixels = [np.asarray(frame, float) for frame in frames]
changes = [np.abs(pixels[0] - other).mean() for other in (pixels[1], pixels[4])]
print("a quarter of the way changes less than all of it:", bool(changes[0] < changes[1]))

# %% [markdown]
# ## 9. All at once
#
# An outline, a picture with a look, a LoRA and a person, in one call of diffusers' ControlNet pipeline. And without
# `using`, the pipeline draws what the base model draws that never met any of this, bit for bit.

# %%
glass(True)
with up.using(people["dan"], image_prompt=look, image_scale=0.3):
    everything = draw(by_edges, "a person", [5], image=outlines[:1])[0]
glass(False)
untouched = diffusers.StableDiffusionPipeline(**up.pipe.components | {"unet": unet}, requires_safety_checker=False)
untouched.set_progress_bar_config(disable=True)
base, ours = (draw(pipe, "a woman in the park", [3])[0] for pipe in (untouched, up.pipe))
viz.show([outlines[0], everything, ours], ["the outline", "dan, all at once", "nobody, no tool"])
assert np.array_equal(base, ours)
print("without people the pipeline draws as the base model does, bit for bit")

# %% [markdown]
# ## What the tiny scale cannot show
#
# * **Fine control.** Our ControlNets are small and trained for minutes, the published ones for days on GPUs.
#   What they miss here says nothing about the method.
# * **Bodies.** Our figures are faces. On photographs one takes OpenPose's figures (`compose.annotated`), and a shared
#   ControlNet for Stable Diffusion 1.5: the pipeline's call is the same.
# * **Looks.** The base model knows six styles and nothing of the world's art; what a style picture can bring is
#   narrow.
#
# ## In five lines
#
# 1. People enter by cross-attention and a LoRA, so tools that take hold elsewhere need not know of them.
# 2. A ControlNet is a copy of the way down; convolutions of zero let it begin as nothing, and still learn.
# 3. An image prompt is one more branch of decoupled cross-attention; a style LoRA changes weights; StyleAligned shares
#    self-attention, from a picture walked back to noise by DDIM.
# 4. Inpainting puts back what is known after every step, as noisy as it should be.
# 5. Without `using`, the pipeline is the one you had, bit for bit.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939), section "Applications"
# * [ControlNet](https://arxiv.org/abs/2302.05543), [IP-Adapter](https://arxiv.org/abs/2308.06721),
#   [StyleAligned](https://arxiv.org/abs/2312.02133), [LoRA](https://arxiv.org/abs/2106.09685),
#   [DDIM](https://arxiv.org/abs/2010.02502), [AdaIN](https://arxiv.org/abs/1703.06868),
#   [RePaint](https://arxiv.org/abs/2201.09865) (inpainting by putting back what is known)
# * In the package: `controls.py`, `image_prompt.py`, `style_alignment.py`, `compose/`; the recipes in
#   `toyworld/pretrain/controlnet.py`, `image.py` and `style.py`
# * `python -m uniportrait_lite evaluate compose` measures what this notebook shows, on people nobody has seen
#
# **Next:** your own pictures. `upl.UniPortrait.attach(pipe, weights)` takes any pipeline of the Stable Diffusion 1.5
# family, with all the tools that it has.
