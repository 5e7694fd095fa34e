# %% [markdown]
# # Training for several people: the multi-ID stage
#
# About four minutes to run on two CPU cores, most of it two short trainings; half a minute once they are done. It takes
# 1.6 GB of memory (2.7 while two processes train, at the end), no GPU and no network. With the exercises: 75 minutes.
#
# **You will** see what this stage trains and what it leaves alone, take one training step apart, write the loop, and
# watch routers learn who is where, with the routing loss and without it. At the end two processes train together.
#
# **You need** routing as in [03_id_routing](03_id_routing.ipynb): logits, Gumbel noise, the routing loss.
# [04_train_single_id](04_train_single_id.ipynb) trains the stage before this one. Cells below an exercise use the
# package's own code, so you can leave out any exercise and read on.
#
# The trainings write into `runs/lesson_05`, in folders named by their settings. Run the notebook again, or the one with
# the solutions, and it finds them finished there and shows them at once. The weights that are shipped stay as they are.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import uniportrait_lite as upl
from uniportrait_lite import checkpoints
from uniportrait_lite.id_routing import Routing, box_masks, gumbel, routing_accuracy, routing_loss
from uniportrait_lite.learn import diagrams, viz
from uniportrait_lite.learn.checks import train_multi_id as checks
from uniportrait_lite.learn.progress import LivePlot, progress
from uniportrait_lite.learn.source import show_source
from uniportrait_lite.toyworld import Person, captions, group, splits
from uniportrait_lite.toyworld.pretrain.recognition import crop
from uniportrait_lite.training import multi_id
from uniportrait_lite.training.batches import Batches, GroupBatches
from uniportrait_lite.training.data import Batch, SceneData, tokenize
from uniportrait_lite.training.network import MultiID, Stack, save_single
from uniportrait_lite.training.settings import MultiIDConfig
from uniportrait_lite.training.store import digest

# %%
os.chdir(upl.folders.data_folder("tiny").parents[1])  # runs/ lies beside data/, wherever this notebook was started
tiny = upl.folders.data_folder("tiny")
stack = Stack(tiny)  # the frozen networks
single = checkpoints.load(tiny / "uniportrait")  # what the single-ID stage left: its config and its tensors
print("tensors of the single-ID stage:", len(single[1]))

# %% [markdown]
# ## Where we are going
#
# After the single-ID stage a model draws one person. With two, every place of the picture has to know *whom* it should
# listen to. The paper's multi-ID stage (section "Training") teaches that, and nothing else, on pictures of several
# people, with two losses:
#
# $$L = \underbrace{\mathbb{E}\,\lVert \epsilon - \epsilon_\theta(z_t) \rVert^2}_{\text{diffusion}} +
# \lambda \, \underbrace{\tfrac1N \lVert W_{route} \odot (\psi - M) \rVert^2}_{\text{routing}}, \quad \lambda = 0.1$$
#
# with $N$ people, their masks $M$, the routing map $\psi$, and $W_{route}$, which is 1 inside the boxes.

# %%
diagrams.multi_id_stage()

# %% [markdown]
# ## 1. What learns, and what does not
#
# Routers learn at the full rate, a LoRA at a tenth of it, and the ID embedding is frozen, says the paper. Its published
# files hold a second LoRA for several people. So here: the LoRA of the single-ID stage stays for pictures of one
# person; a second one, named `multi_id`, begins as its copy and learns. ID keys and values are frozen, as U-Net and
# text encoder are. (In their last run the shipped weights had half of the rate in place of a tenth, by
# `data/tiny/profile.yaml`: with a tenth, groups gained nothing in so few steps.)

# %% [markdown] exercise="share" level="easy" minutes=10 teaches="freezing by name"
# ### Who learns how fast?
#
# Write `share(name)`: the share of the learning rate for the parameter of that name, 0 where it is frozen. Names look
# like these (`...` is the layer):
#
# | name | what it is |
# | --- | --- |
# | `unet....attn2.processor.router.theta.0.weight` | a router |
# | `unet....attn2.processor.to_k_id.weight` | ID keys |
# | `unet....attn1.to_q.lora_A.multi_id.weight` | the second LoRA |
# | `unet....attn1.to_q.lora_A.single_id.weight` | the first LoRA |
# | `unet....attn1.to_q.base_layer.weight` | the U-Net's own |
# | `id_embedding....`, `text_encoder....` | other networks |
#
# **Hint.** Two of the six learn. `".router." in name` is true for one of them; what tells the other?


# %%
def share(name):
    """The share of the learning rate at which the parameter of this name learns."""
    ### BEGIN SOLUTION
    if ".router." in name:
        return 1.0
    return 0.1 if ".multi_id." in name else 0.0
    ### END SOLUTION


checks.share(share)

# %% [markdown]
# The package's network of this stage, counted. It needs one LoRA only, the second, in the first one's place, and before
# the first step the same, number by number.


# %%
def kind(name):
    """What a parameter belongs to."""
    parts = {".router.": "routers", ".lora_": "second LoRA", "_id.weight": "ID keys and values"}
    wholes = {"unet.": "U-Net", "text_encoder.": "text encoder", "id_embedding.": "ID embedding"}
    return next((what for mark, what in (parts | wholes).items() if mark in name), name)


by_hand = MultiIDConfig(run_folder="runs/lesson_05/none", precision="fp32", face_weight=1, feature_weight=1)
model = multi_id.build(by_hand, stack, *single)
counts = {}
for name, weights in model.named_parameters():
    key = (kind(name), "learns" if weights.requires_grad else "frozen")
    counts[key] = counts.get(key, 0) + weights.numel()
for (what, how), count in sorted(counts.items(), key=lambda item: -item[1]):
    print(f"{what:20}{how}{count:12,} numbers")
learning = {what for what, how in counts if how == "learns"}
assert learning == {"routers", "second LoRA"} and not learning & {w for w, how in counts if how == "frozen"}
assert by_hand.lora_rate == 0.1  # of the rate, for the second LoRA
second = upl.lora.lora_parameters(model.unet, upl.lora.SEVERAL)
assert all(torch.equal(weights, single[1][f"lora.{name}"]) for name, weights in second.items())
print(f"{len(second)} matrices of the second LoRA are as in the first; {len(model.id_attention)} layers have routers")

# %% [markdown]
# ## 2. The data: pictures of several people, and where they are
#
# The paper takes 120,000 photos with several people, and face boxes from a detector. We draw pictures of two and
# three, and know the boxes. Each picture has a caption for all. In half of the steps a part of the people also gets a
# sentence of their own (`Identity.saying`, an addition of ours), which is read only where the routing has that person.

# %%
scenes = [group([Person.random(n) for n in range(10 * k, 10 * k + size)], seed=k) for k, size in ((1, 2), (2, 3))]
viz.show([viz.marked(s.image, s.faces) for s in scenes], [f"{len(s.faces)} people" for s in scenes], columns=2)
for scene in scenes:
    print("all:", scene.caption)
    for face in scene.faces:
        print("     one:", captions.sentence(face.person, face.attributes, scene.style, seed=1))

# %% [markdown]
# What a step reads is not the picture, but what frozen networks make of it: latents, a caption's tokens, $F_r$ and
# $F_s$ of every face, and the boxes as shares of the picture. By hand, for 24 pairs of people whom no network has seen;
# they will be our test.


# %%
@torch.no_grad()
def batch_of(scenes, seed=0):
    """Scenes with as many people each, as one batch."""
    count, people = len(scenes), len(scenes[0].faces)
    pixels = np.stack([scene.pixels for scene in scenes])
    vae = AutoencoderKL.from_pretrained(stack.folders["vae"], torch_dtype=torch.float32)
    latents = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    landmarks = np.stack([face.landmarks for scene in scenes for face in scene.faces])
    crops = torch.from_numpy(crop(np.repeat(pixels, people, axis=0), landmarks, side=224))
    found = stack.features(crops.permute(0, 3, 1, 2) / 255)
    boxes = torch.tensor([[face.box for face in scene.faces] for scene in scenes])
    boxes = boxes.float() / torch.tensor([pixels.shape[2], pixels.shape[1]] * 2)
    return Batch(
        latents=latents * vae.config.scaling_factor,
        noise=torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)),
        timesteps=torch.linspace(700, 20, count).long(),  # from much noise to hardly any
        text=tokenize(stack.tokenizer, [scene.caption for scene in scenes]),
        intrinsic=found.intrinsic.unflatten(0, (count, people)),
        structure=found.structure.unflatten(0, (count, people)),
        boxes=boxes,
        features=boxes,  # to weight eyes and mouth more, which we leave out here
        active=torch.ones(count, dtype=torch.bool),
    )


# %% [markdown]
# Boxes become masks $M$, one for each person, at the size of each layer. Where a layer is coarse, a face is a handful
# of places. What lies outside every box is free: $W_{route}$ is 0 there.

# %%
COLOURS = np.array([(47, 109, 179), (232, 126, 36), (60, 160, 80)])  # of the first person, the second, the third


def in_colours(shares, scene, strength=0.6):
    """Shares (N, h, w) of the people at each place, in their colours over the picture."""
    shares = F.interpolate(torch.as_tensor(shares)[None].float(), size=scene.pixels.shape[:2])[0]
    total = shares.sum(0).unsqueeze(-1).numpy()
    colour = np.einsum("nhw,nc->hwc", shares.numpy(), COLOURS[: len(shares)]) / np.maximum(total, 1e-6)
    cover = strength * np.minimum(total, 1)
    return (scene.pixels * (1 - cover) + colour * cover).astype(np.uint8)


strangers = [[Person.random(splits.HELD_OUT[3000 + 2 * k + j]) for j in (0, 1)] for k in range(24)]
tests = [group(pair, seed=500 + k, style="photo") for k, pair in enumerate(strangers)]
unseen = batch_of(tests)
for name in ("latents", "text", "intrinsic", "structure", "boxes"):
    print(f"{name:10}", tuple(getattr(unseen, name).shape))
sizes = [(16, 24), (8, 12), (4, 6)]
masks = [box_masks(unseen.boxes[0], size) for size in sizes]
viz.show([in_colours(m, tests[0]) for m in masks], [f"M in layers of {h} x {w} places" for h, w in sizes])
print("places inside a box:", [int(m.amax(0).sum()) for m in masks])

# %% [markdown] exercise="right_share" level="medium" minutes=15 teaches="measuring only what has an answer"
# ### How often is a router right?
#
# Write `right_share(scores, masks)` for one layer: scores (B, N, h, w), the larger the more a place belongs to person
# $n$, and masks (B, N, h, w) of 0 and 1. Return the share of places whose largest score is the right person's, among
# the places that lie in *exactly one* box (background has no answer, an overlap has two).
#
# **Hint.** `masks.sum(dim=1) == 1` says which places count, as (B, h, w), and can index. `argmax(dim=1)` of scores and
# of masks: when are they equal?


# %%
def right_share(scores, masks):
    """The share of places in exactly one box where the largest score is that person's."""
    ### BEGIN SOLUTION
    alone = masks.sum(dim=1) == 1
    right = scores.argmax(dim=1) == masks.argmax(dim=1)
    return right[alone].float().mean()
    ### END SOLUTION


checks.right_share(right_share)

# %% [markdown]
# `routing_accuracy` does so for all layers at once. How right are routers that have learned nothing? And those that are
# shipped? We call the U-Net with a `Routing` that keeps the logits of every layer, and average over the layers of its
# way down, its middle and its way up.

# %%
PARTS = {"down": "way down", "mid": "middle", "up": "way up"}


@torch.no_grad()
def logits_of(model, batch):
    """The logits (B, N, h, w) of every router, by its layer's name."""
    found = {}
    routing = Routing(batch.latents.shape[-2:], record=lambda name, psi, logits: found.update({name: logits}))
    with torch.autocast("cpu", torch.bfloat16, enabled=model.bf16):
        model.eval().diffusion_loss(batch, routing)
    return {name: logits.float() for name, logits in found.items()}


def by_part(logits, batch):
    """The share of right places, by part of the U-Net."""
    right = routing_accuracy(logits, batch.boxes)
    return {
        part: float(torch.stack([share for name, share in right.items() if name.startswith(part)]).mean())
        for part in PARTS
    }


untrained = logits_of(model, unseen)
start = by_part(untrained, unseen)
learned = {name: weights.detach().clone() for name, weights in model.weights().items()}
checkpoints.fill(model.weights(), checkpoints.load_multi(tiny / "uniportrait"))
shipped = by_part(logits_of(model, unseen), unseen)
checkpoints.fill(model.weights(), learned)  # as it was
print("untrained routers are near a half:", all(abs(share - 0.5) < 0.15 for share in start.values()))
print("the shipped ones are better everywhere:", all(shipped[part] > start[part] for part in PARTS))

# %% [markdown]
# ## 3. One step, taken apart
#
# Training needs many pictures, so the package draws a thousand of two people and keeps what the frozen networks make of
# them in `runs/cache`. (The first time this takes half a minute; 04_train_single_id does the same with portraits.) As
# in the stage before, a batch leaves out some captions and some faces, for guidance, and swaps some $F_r$. Its size
# counts portraits, 128 pixels wide: of wider pictures there are fewer.

# %%
with progress("1,000 pictures of two people, drawn and encoded"):
    pairs = SceneData("pairs", 1000, stack.features, stack.tokenizer, stack.folders)
made = Batches(MultiIDConfig(run_folder="runs/lesson_05/none", batch=6, sentences=0), pairs, timesteps=1000)
batch = made(step=0, generator=torch.Generator().manual_seed(0))
batch.temperature = torch.tensor(1.0)
print(f"{len(batch.latents)} pictures in a batch, each with", batch.intrinsic.shape[1], "people")

# %% [markdown]
# A step hides latents in noise, and asks the U-Net for it. Each router draws with Gumbel noise; we keep its logits.
# (The tiny base model predicts the *velocity*, a mix of noise and picture, in place of $\epsilon$.)

# %%
logits = {}
routing = Routing(
    batch.latents.shape[-2:],
    temperature=batch.temperature,
    record=lambda name, psi, scores: logits.update({name: scores}),
)
with torch.no_grad():  # all that is frozen
    text = model.text_encoder(batch.text).last_hidden_state
    tokens = model.tokens(batch)
    noisy = stack.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = stack.scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
identities = upl.attention.IDConditions(tokens, active=batch.active, routing=routing)
torch.manual_seed(0)  # of the Gumbel noise
predicted = model.unet(noisy, batch.timesteps, text, cross_attention_kwargs={"identities": identities}).sample
print("ID tokens:", tuple(tokens.shape), "  predicted:", tuple(predicted.shape), "  layers with logits:", len(logits))

# %% [markdown] exercise="stage_loss" level="medium" minutes=15 teaches="two losses, with gradients in both"
# ### The loss of the stage
#
# Write `stage_loss(predicted, target, logits, boxes, route_weight)`: the mean squared error, plus `route_weight` times
# the routing loss. `logits` are (B, N, h, w) by layer; `upl.id_routing.routing_loss(maps, boxes)` wants such a
# dictionary of $\psi$. Which $\psi$? One without noise that a gradient can come back through: shares of the people at
# each place. (The paper does not say whether its $\psi$ has the noise in it. This is our choice.)
#
# **Hint.** `{name: ... for name, scores in logits.items()}`, and softmax over the identities, `dim=1`.


# %%
def stage_loss(predicted, target, logits, boxes, route_weight):
    """The diffusion loss, plus route_weight times the routing loss."""
    ### BEGIN SOLUTION
    diffusion = F.mse_loss(predicted, target)
    maps = {name: scores.softmax(dim=1) for name, scores in logits.items()}
    return diffusion + route_weight * upl.id_routing.routing_loss(maps, boxes)
    ### END SOLUTION


checks.stage_loss(stage_loss)

# %% [markdown]
# The package's network gives the same two losses, and a third thing: where the routers are right. (It leaves samples
# without a face out of the routing loss, and it can weight faces more; here it does not.)

# %%
show_source(MultiID.forward)
somebody = batch.active & batch.intrinsic.flatten(1).any(dim=1)
psi = {name: scores[somebody].softmax(dim=1) for name, scores in logits.items()}
diffusion, route = F.mse_loss(predicted, target), routing_loss(psi, batch.boxes[somebody])
torch.manual_seed(0)
package = model.train()(batch)
torch.testing.assert_close(package["diffusion"], diffusion, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(package["route"], route, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(package["loss"], diffusion + 0.1 * route, rtol=1e-4, atol=1e-5)
assert abs(route.item() - 0.25) < 0.03
print("by hand and by the package: the same.", "It gives", ", ".join(package))

# %% [markdown]
# Two people at even shares are wrong by a half everywhere: an untrained router's loss is near 0.25. Who teaches the
# routers? Both losses reach them: the routing loss directly, the diffusion loss through the one-hot $\psi$ (straight
# through). Guess which says more, then look at their gradients, part by part:

# %%
routed = {name: p for name, p in model.named_parameters() if ".router." in name}
gradients = {}
for title, value in (("diffusion", diffusion), ("0.1 x routing", 0.1 * route)):
    gradients[title] = torch.autograd.grad(value, routed.values(), retain_graph=True)
drawing, axis = viz.axes(height=2.2)
for k, (title, found) in enumerate(gradients.items()):
    sizes = [
        torch.cat([g.flatten() for n, g in zip(routed, found, strict=True) if f".{p}_" in n]).norm() for p in PARTS
    ]
    axis.bar(np.arange(3) + 0.4 * k - 0.2, sizes, 0.38, label=title)
    assert min(sizes) > 0
axis.set_xticks(range(3), PARTS.values())
axis.set(ylabel="size of the gradient", title="what reaches the untrained routers, from either loss")
axis.legend(fontsize=8, frameon=False)
viz.plot(
    drawing, "Bars: the size of the routers' gradient from either loss, on the way down, in the middle, on the way up"
)
total = [torch.cat([g.flatten() for g in found]).norm() for found in gradients.values()]
print("both losses reach all routers, and more comes from the routing loss:", bool(total[1] > total[0]))

# %% [markdown]
# ## 4. Temperature, hard and soft
#
# In training a place does not take the largest logit, but draws: $\mathrm{softmax}((l + g) / T)$ with Gumbel noise $g$,
# and, "hard", goes on with the one-hot of it. Neither $T$, nor whether it falls, nor hard or soft is published. Ours:
# hard, straight through, and $T$ falls linearly from 1 to a half.

# %% [markdown] exercise="temperature" level="easy" minutes=5 teaches="a schedule"
# ### The temperature of a step
#
# Write `temperature(step, first, last, cooling)`: `first` at step 0, falling linearly to `last` at step `cooling`, and
# `last` from there on. With `cooling` 0 it is `last` at once.
#
# **Hint.** Which share of the way is done? `min(1, step / cooling)`, where there is a way.


# %%
def temperature(step, first, last, cooling):
    """The temperature of the routers' noise in a step."""
    ### BEGIN SOLUTION
    done = min(1.0, step / cooling) if cooling else 1.0
    return first + (last - first) * done
    ### END SOLUTION


checks.temperature(temperature)

# %% [markdown]
# What does the temperature change? Take a place whose logits favour the first person by 1, and draw 2,000 times with
# the *same* noise at three temperatures. Guess before you look: how often does the hard draw choose the first person?

# %%
drawing, columns = viz.axes(3, height=2.1, sharey=True)
hard_draws, slopes = [], []
for axis, warmth in zip(columns, (2.0, 1.0, 0.2), strict=True):
    lean = torch.tensor([1.0, 0.0]).view(1, 2, 1).repeat(1, 1, 2000).requires_grad_()
    torch.manual_seed(1)
    soft = gumbel(lean, warmth, hard=False)
    torch.manual_seed(1)
    hard_draws.append(gumbel(lean, warmth, hard=True)[0, 0].detach())
    slopes.append(torch.autograd.grad(soft[:, 0].sum(), lean)[0][0, 0])
    axis.hist(soft[0, 0].detach(), bins=20, range=(0, 1), color="#a9c8e8")
    axis.set(title=f"T = {warmth}\nhard: the first in {hard_draws[-1].mean():.2f}", xlabel="soft share of the first")
columns[0].set_ylabel("draws")
viz.plot(
    drawing,
    "Histograms: soft shares of the first person are spread out where it is warm, near 0 and 1 where it is cool",
)
print("the hard draws are the same at every temperature:", all(torch.equal(d, hard_draws[0]) for d in hard_draws))
few = [float((slope > 0.01).float().mean()) for slope in slopes]
print("places with a gradient to speak of become fewer as it cools:", few[0] >= few[1] > few[2])

# %% [markdown]
# So with hard draws the temperature never changes *who* is chosen, only what the gradient sees: warm, all places; cool,
# the undecided. And the noise is there for a reason: a router that always took its favourite would never learn what the
# other person would have done to the picture.
#
# Soft draws mix people, which is kind to gradients; but a U-Net that has learned to live with mixtures meets none of
# them at inference, where each place takes its largest logit. `--soft true` trains so.
#
# ## 5. The loop

# %% [markdown] exercise="training_step" level="medium" minutes=15 teaches="the order of the lines in a training step"
# ### A training step
#
# Write `training_step(model, batch, optimiser)`: compute `model(batch)["loss"]`, move the weights, and return the loss
# as a plain number. Gradients that are there when it is called must not count. Clip those of this step to a norm of 1
# with `torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`.
#
# **Hint.** Forget, compute, send back, clip, move. PyTorch adds new gradients to old ones unless you forget them.


# %%
def training_step(model, batch, optimiser):
    """One step; returns the loss."""
    ### BEGIN SOLUTION
    optimiser.zero_grad()
    loss = model(batch)["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.item()
    ### END SOLUTION


checks.training_step(training_step)

# %% [markdown]
# The package's `train` (`loop.py`) is this step with what a long training needs: it resumes where it was stopped, logs,
# averages, and works on several processes as on one.
#
# ## 6. A run, with and without the routing loss
#
# Two runs from the same beginning, in the same steps: one with $\lambda = 0.1$, one with $\lambda = 0$. (The shipped
# routers had 2, see docs/experiments.md.) Each takes about a minute on two free cores. They are short, so we take pairs
# only (guessing gives a half), small batches and a high rate. Every 20 steps we look at our test: the share of right
# places, and the maps. What a batch is made of:

# %%
STEPS, EVERY = 160, 20
SHORT = {
    "steps": STEPS, "batch": 16, "groups": 1000, "trios": 0.0, "warmup": 10, "cooling": STEPS, "ema": None,
    "muon_lr": 0.03, "cooldown": 0.4, "log_every": EVERY, "checkpoint_every": 30.0,
}  # fmt: skip
trained_on = [stack.digests(), tiny / "uniportrait" / "model.safetensors"]


def settings(name, **changed):
    """The settings of a run, in a folder named by everything that decides what it learns."""
    values = SHORT | changed
    return MultiIDConfig(run_folder=f"runs/lesson_05/{name}_{digest(values, *trained_on)}", **values)


RUNS = {"with the routing loss": settings("with"), "without it": settings("without", route_weight=0.0)}
show_source(GroupBatches.__call__)
cooling = GroupBatches(RUNS["without it"], {"pairs": made})
warm = [
    float(cooling(step, torch.Generator().manual_seed(0)).temperature) for step in (0, STEPS // 2, STEPS, 2 * STEPS)
]
assert warm == [1, 0.75, 0.5, 0.5], warm
for name, config in RUNS.items():
    print(f"{name:22} lambda = {config.route_weight}, {config.steps} steps of {config.batch * 128 // 192} pictures")


# %%
def log_of(config):
    """What a run has said so far, line by line."""
    path = Path(config.run_folder) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves():
    """The share of right places by part of the U-Net, as far as the runs have come."""
    drawing, columns = viz.axes(3, height=2.3, sharey=True)
    for axis, (part, title) in zip(columns, PARTS.items(), strict=True):
        for (name, config), color in zip(RUNS.items(), ("#2f6db3", "#c0504d"), strict=True):
            points = [(0, start[part]), *((line["step"], line[part]) for line in log_of(config) if part in line)]
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, color=color, label=name)
        axis.axhline(shipped[part], color="#888888", ls=":", label="shipped")
        axis.axhline(0.5, color="#dddddd", lw=1, zorder=0)
        axis.set(xlim=(0, STEPS), ylim=(0.4, 1), title=title, xlabel="step")
    columns[0].set_ylabel("right, of unseen people")
    columns[0].legend(fontsize=7, frameon=False, loc="upper left")
    return drawing


def upwards(logits):
    """The mean shares (B, N, 16, 24) of the layers on the way up."""
    maps = [F.interpolate(scores.softmax(1), size=(16, 24)) for name, scores in logits.items() if name.startswith("up")]
    return torch.stack(maps).mean(0).numpy().astype(np.float16)


# %%
def learn(config):
    """A run as far as its end, with its curves below the cell; returns the network."""
    folder, model = Path(config.run_folder), multi_id.build(config, Stack(tiny), *single)
    folder.mkdir(parents=True, exist_ok=True)
    plot = LivePlot(
        curves(), "Curves: the share of right places against steps, on the way down, in the middle, on the way up"
    )

    def look(module, step):
        plot.show(curves())
        logits = logits_of(module, unseen)
        np.save(folder / f"maps_{step:04d}.npy", upwards(logits))
        return by_part(logits, unseen)

    batches = GroupBatches(config, {"pairs": Batches(config, pairs, timesteps=1000)})
    with progress(f"{config.steps} steps"):
        look(model, 0)
        upl.loop.train(
            config.loop(), model, batches, lambda network, batch: network(batch),
            evaluate=look, evaluate_every=EVERY,
            no_muon=lambda name: "lora_" in name or name.endswith("aggregate.weight"),
            rate=lambda name: config.lora_rate if "lora_" in name else 1.0,
        )  # fmt: skip
    plot.show(curves())
    return model


# %% [markdown]
# This is all of `multi_id.run` but for files and samples. Routers and LoRA learn by two optimisers: Muon, which turns a
# matrix's gradient into a step of the same size in every direction, for the routers' matrices, AdamW for the rest.

# %%
with_loss = learn(RUNS["with the routing loss"])

# %%
without_loss = learn(RUNS["without it"])

# %%
end = {name: [line for line in log_of(config) if "up" in line][-1] for name, config in RUNS.items()}
rise = {part: end["with the routing loss"][part] - start[part] for part in PARTS}
more = {part: end["with the routing loss"][part] - end["without it"][part] for part in PARTS}
assert end["with the routing loss"]["step"] == end["without it"]["step"] == STEPS
print("with the loss all parts of the U-Net get better:", min(rise.values()) > 0.02)
print("and on average they are further than without it:", sum(more.values()) / 3 > 0.03)
last = json.loads((tiny / "uniportrait" / "multi_id.recipe.json").read_text())  # the shipped weights' last run
panels = {
    "right, of two to five people": {"right_down": "way down", "right_mid": "middle", "right_up": "way up"},
    "losses": {"diffusion": "diffusion", "route": "routing"},
}
viz.plot(viz.curves(last["curve"], last["steps"], panels), "Curves: right places, and both losses, of that run")

# %% [markdown]
# The diffusion loss alone brings the routers less far: whoever a place listens to, its prediction is nearly as good,
# and where it is not, the signal is noisy. The boxes say it straight. Longer runs of ours, measured in pairs that were
# being drawn, kept that order (`docs/experiments.md`: 66% of the places of the way up right without the loss, 86% with
# it, after 2,200 steps each), and so do the paper's: FaceSim 59.1% without, 67.3% with the loss (section "Ablation").
# The curves are of the shipped weights' last run, which went on from routers that knew much already.
#
# ## 7. What a map becomes
#
# The shares of both people, on the way up, for a picture of the test: blue is the left person, orange the right one,
# a brown between them undecided. Step 0 knows nothing.


# %%
def maps_of(config, step):
    """The maps of the test (24, 2, 16, 24) at a step of a run."""
    return torch.from_numpy(np.load(Path(config.run_folder) / f"maps_{step:04d}.npy")).float()


def becoming(picture):
    """A picture's maps at some steps, a row for each run."""
    scene, shown = tests[picture], {}
    for name, config in RUNS.items():
        for step in range(0, STEPS + 1, 2 * EVERY):
            coloured = in_colours(maps_of(config, step)[picture], scene, strength=0.8)
            shown[f"{name}: step {step}"] = viz.marked(coloured, scene.faces)
    return shown


viz.live(becoming, picture=widgets.IntSlider(9, min=0, max=23, description="picture", continuous_update=False))
inside = box_masks(unseen.boxes, (16, 24)).amax(1) > 0
sure = [float(maps_of(RUNS["with the routing loss"], step).amax(1)[inside].mean()) for step in (0, STEPS)]
print("with the loss maps become surer inside faces:", sure[1] > sure[0])

# %% [markdown]
# ## 8. Pictures, and what did not change
#
# Weights of ours are a folder with both stages in it. We save the two runs, attach each to the pipeline, and draw the
# same two people from the same noise; beside them the shipped weights, trained much longer. Look whose hair and skin
# come where. (`columns=0` leaves all to the routers: [03_id_routing](03_id_routing.ipynb), part 9. And one picture from
# one seed proves little: the curves of part 6 are of 24.) Then one of the two alone: whatever the routers have learned,
# pictures of **one** person stay as they were, as nothing that they need was touched.

# %%
for config, network in zip(RUNS.values(), (with_loss, without_loss), strict=True):
    save_single(Path(config.run_folder) / "weights", *single, stack)
    checkpoints.save_multi(Path(config.run_folder) / "weights", network.weights())

folders = {name: Path(config.run_folder) / "weights" for name, config in RUNS.items()}
folders |= {"shipped": tiny / "uniportrait"}
faces = tiny.parent / "faces"
up = upl.load("tiny")
up.detach()
together, alone = {}, {}
for name, folder in folders.items():
    mine = upl.UniPortrait.attach(up.pipe, folder)
    ann, dan = mine.identity(faces / "ann.png"), mine.identity(faces / "dan.png")
    together[name] = mine("two people in the park, smiling", [ann, dan], seed=3, columns=0).images[0]
    alone[name] = mine("a woman in the park, smiling", [ann], seed=3).images[0]
    mine.detach()
viz.show([faces / "ann.png", faces / "dan.png", *together.values()], ["ann", "dan", *together])
viz.show(list(alone.values()), [f"ann alone, {name}" for name in alone])
pixels = [np.asarray(image) for image in alone.values()]
assert all(np.array_equal(pixels[0], other) for other in pixels)
print("ann alone is the same picture with all three, to the bit")

# %% [markdown] exercise="changed" level="easy" minutes=5 teaches="proving that something was left alone"
# ### What has changed?
#
# Write `changed(before, after)`: two dictionaries of tensors with the same names. Return the set of the names whose
# tensors differ in any number, be it by its last bit.
#
# **Hint.** `torch.equal` is true where all numbers are the same; `torch.allclose` is content with nearly.


# %%
def changed(before, after):
    """The names of the tensors that differ in any number."""
    ### BEGIN SOLUTION
    return {name for name in before if not torch.equal(before[name], after[name])}
    ### END SOLUTION


checks.changed(changed)

# %%
before = dict(multi_id.build(RUNS["with the routing loss"], Stack(tiny), *single).named_parameters())
after = dict(with_loss.named_parameters())
moved = {name for name in before if not torch.equal(before[name], after[name])}
print("moved:", " and ".join(sorted({kind(name) for name in moved})))
assert moved <= {name for name, weights in after.items() if weights.requires_grad}

# %% [markdown]
# ## 9. Two processes
#
# Longer trainings share their batches among GPUs, or here among processes. Each holds the same network and draws
# samples of its own (`loop.py`: generators seeded by seed, step and process); after `backward()` they exchange
# gradients, and all move alike. The paper's batch of 128 lies on 8 GPUs.

# %% [markdown] exercise="averaged_gradients" level="easy" minutes=10 teaches="what data-parallel training exchanges"
# ### What the processes agree on
#
# Write `averaged_gradients(processes)`: a list with one dictionary for each process, gradients by name. Return by name
# what all of them go on with, so that two processes do what one would with the batches of both.
#
# **Hint.** The loss is a mean over samples. What is the gradient of the mean of two equal halves?


# %%
def averaged_gradients(processes):
    """The gradients by name of each process -> those that all go on with."""
    ### BEGIN SOLUTION
    return {name: torch.stack([one[name] for one in processes]).mean(dim=0) for name in processes[0]}
    ### END SOLUTION


checks.averaged_gradients(averaged_gradients)

# %% [markdown]
# Now really. `torchrun` starts as many processes as we ask for; each runs `python -m uniportrait_lite train multi_id`
# and finds the others through accelerate. With several GPUs `accelerate launch -m uniportrait_lite train multi_id` does
# the same and needs no numbers. (On CPUs `accelerate launch` starts one process; so there torchrun it is.) Only four
# steps: the time goes into starting up.

# %%
flags = {"steps": 4, "batch": 8, "groups": 1000, "trios": 0, "larger": 0, "warmup": 10, "log-every": 1}
two = Path(f"runs/lesson_05/two_processes_{digest(flags, *trained_on)}")
flags |= {"run-folder": two, "out": two / "weights"}
launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--log-dir", two / "said"]
launch += ["--redirects", "3", "-m", "uniportrait_lite", "train", "multi_id"]
given = [word for name, value in flags.items() for word in (f"--{name}", value)]
print("torchrun --nproc-per-node 2 -m uniportrait_lite train multi_id", *map(str, given[:8]), "...")
with progress("two processes, four steps"):
    if not (two / "weights" / "multi_id.recipe.json").exists():  # else it ran before
        print("starting two processes")
        done = subprocess.run([sys.executable, *map(str, launch + given)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
said = {path.parent.name: path.read_text() for path in sorted(two.glob("said/*/attempt_0/*/stdout.log"))}
for process, text in said.items():
    lines = [line.split(" seconds")[0] for line in text.splitlines() if line.startswith("step")]
    print(f"process {process} said:", ", ".join(lines) or "nothing, as only the first one speaks")
recipe = json.loads((two / "weights" / "multi_id.recipe.json").read_text())
assert len(said) == 2 and recipe["steps"] == 4

# %% [markdown]
# The whole training is one command, and `--help` explains each of its settings:
#
# ```
# python -m uniportrait_lite train multi_id --steps none --hours 0.5    # half an hour, into data/tiny/uniportrait
# python -m uniportrait_lite train multi_id --route-weight 0            # the ablation, into a folder of its own
# python -m uniportrait_lite evaluate people                            # groups of two to five unseen people
# ```
#
# ## What the tiny scale cannot show
#
# * **How long it takes.** The paper trains this stage for 150,000 steps of 128 photos. We took 160 steps of 10
#   drawings, and the shipped routers about thirty times fewer pictures than the paper's.
# * **Photographs.** Our boxes are exact, our people look into the camera, and hardly hide each other.
# * **Duplicates.** Nothing in these losses says that each person is there *once*. The authors name it as a weakness,
#   and advise to draw again. Ours are a head start and `distinct=True`: [03_id_routing](03_id_routing.ipynb).
#
# ## In five lines
#
# 1. The multi-ID stage trains routers, and at a lower rate a second LoRA, on pictures of several people.
# 2. Its loss is diffusion plus $\lambda$ times routing; without the latter routers learn far less.
# 3. Hard draws with Gumbel noise let every identity be tried; the temperature shapes their gradient, not their choice.
# 4. What serves one person is frozen, so their pictures stay the same, to the bit.
# 5. Several processes draw samples of their own, average their gradients, and move alike.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939), sections "ID routing" and "Training", and its ablation
# * [Gumbel-softmax](https://arxiv.org/abs/1611.01144), [LoRA](https://arxiv.org/abs/2106.09685)
# * [accelerate](https://huggingface.co/docs/accelerate), [torchrun](https://docs.pytorch.org/docs/stable/elastic/run.html)
# * In the package: `training/multi_id.py`, `training/network.py`, `training/batches.py`, `loop.py`
#
# **Next:** [00_quickstart](00_quickstart.ipynb) again, with other eyes; or people in poses and styles:
# [06_controlnet_composition](06_controlnet_composition.ipynb).
