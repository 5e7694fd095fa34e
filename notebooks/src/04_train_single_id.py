# %% [markdown]
# # Training, first stage: one person
#
# Six minutes to run on two CPU cores, in 2 GB of memory, without GPU and network; one minute where its run was made
# before. With the exercises: about 100 minutes.
#
# **You will** write the single-ID stage of UniPortrait as a loop of your own: noise, timesteps, a loss that minds
# faces, what is dropped and swapped, what is frozen, one step. Then you start the package's training from **untrained**
# weights, watch it learn to draw people whom it has never seen, and compare with weights that were trained for hours.
#
# **You need** the ID embedding of [02_id_embedding](02_id_embedding.ipynb), and to have met an optimiser. Cells below
# an exercise use the package's own function, so you can leave out any exercise and read on.

# %%
import json
import os

import ipywidgets as widgets
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from IPython.display import Markdown
from PIL import Image
from tqdm import tqdm

import uniportrait_lite as upl
from uniportrait_lite.attention import IDConditions
from uniportrait_lite.id_embedding import StructureDrop
from uniportrait_lite.id_routing import box_masks
from uniportrait_lite.learn import diagrams, viz
from uniportrait_lite.learn.checks import train_single_id as checks
from uniportrait_lite.learn.runs import progress, watch
from uniportrait_lite.learn.source import show_source
from uniportrait_lite.lora import lora_parameters
from uniportrait_lite.toyworld import Person, portrait
from uniportrait_lite.toyworld.pretrain.noisy import draw_timesteps
from uniportrait_lite.training import network, single_id
from uniportrait_lite.training.batches import Batches
from uniportrait_lite.training.data import SceneData
from uniportrait_lite.training.samples import Samples
from uniportrait_lite.training.store import digest

# %% [markdown]
# ## Where we are going
#
# Stable Diffusion can draw, and reads captions. It is not changed. What is new has to tell it *who* is meant: the ID
# embedding, the ID keys and values, and a LoRA. One step of their training:

# %%
diagrams.single_id_training()

# %% [markdown]
# ## 1. Data
#
# The paper trains on half a million portraits with captions. We draw 2,000. What frozen networks make of them never
# changes, so it is computed once and kept in `runs/cache`: latents, $F_r$, $F_s$, token ids. (Half a minute, the first
# time on a machine.)

# %%
tiny = upl.profiles.data_folder("tiny").resolve()
os.chdir(tiny.parents[1])  # runs/ lies here, where the package's commands look for it
stack = network.Stack(tiny)  # all frozen networks of a profile
scheduler, alpha_bar = stack.scheduler, stack.scheduler.alphas_cumprod
vae = AutoencoderKL.from_pretrained(stack.folders["vae"]).eval().requires_grad_(False)
run_folder = tiny.parents[1] / "runs" / f"lesson_04_{digest(stack.digests())[:6]}"  # of these networks
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # the same sum in another order differs a little
with progress("2,000 portraits, drawn and encoded"):
    data = SceneData("portraits", 2000, stack.features, stack.tokenizer, stack.folders)
shown = (0, 2, 3, 5)
viz.show([*data.scenes.images(shown)], [data.scenes.caption(i, 0, "short") for i in shown])
sample = data.read(data.draw(torch.Generator().manual_seed(0), 4, swap=0))
print("four samples:", {name: tuple(x.shape) for name, x in sample.items()})

# %% [markdown]
# Captions say what a prompt would say: place, style, clothes, an expression. Most say little of the person, so *who* it
# is can only come from the face. (Shapes: `intrinsic` and `structure` have room for several people, here one.)
#
# ## 2. Noise, and what is asked for
#
# A clean latent $x_0$ becomes a noisy one in a single stroke, with $\epsilon$ normally distributed and a schedule
# $\bar\alpha_t$ that falls from nearly 1 to 0:
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1 - \bar\alpha_t}\; \epsilon$$

# %% [markdown] exercise="noisy" level="easy" minutes=5 teaches="the forward process, for a batch"
# ### Noise
#
# Write `noisy(clean, noise, alpha_bar)`: `clean` and `noise` are (B, c, h, w), `alpha_bar` (B,) has one number for each
# sample.
#
# **Hint.** Numbers of shape (B,) meet the *last* dimension of a tensor. `alpha_bar[:, None, None, None]` meets the
# first.


# %%
def noisy(clean, noise, alpha_bar):
    """Clean latents with noise, as much as alpha_bar (B,) says."""
    ### BEGIN SOLUTION
    a = alpha_bar[:, None, None, None]
    return a.sqrt() * clean + (1 - a).sqrt() * noise
    ### END SOLUTION


checks.noisy(noisy)


# %%
def pictures_of(latents):
    """Latents (B, 8, 16, 16) as pictures."""
    with torch.no_grad():
        pixels = vae.decode(latents / vae.config.scaling_factor).sample
    return [*((pixels.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()]


timesteps = torch.tensor([0, 100, 300, 999])
clean = torch.from_numpy(data.latents[[5] * 4]).float()
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
a = alpha_bar[timesteps][:, None, None, None]
by_hand = a.sqrt() * clean + (1 - a).sqrt() * noise
torch.testing.assert_close(by_hand, scheduler.add_noise(clean, noise, timesteps), **CLOSE)
viz.show(pictures_of(by_hand), [f"t = {t}" for t in timesteps])
print("at the last timestep nothing of the picture is left:", bool(alpha_bar[-1] < 1e-6))

# %% [markdown]
# The network sees $x_t$ and says what it takes for noise. That is the paper's loss, $\lVert \epsilon - \epsilon_\theta
# \rVert^2$. At our last timestep it would be no question at all: $x_t$ *is* the noise. So our base model predicts a
# mixture, the **velocity** ([Salimans and Ho 2022](https://arxiv.org/abs/2202.00512)), and its new parts are trained on
# what it predicts:
#
# $$v = \sqrt{\bar\alpha_t}\; \epsilon - \sqrt{1 - \bar\alpha_t}\; x_0$$

# %% [markdown] exercise="velocity" level="easy" minutes=5 teaches="what a diffusion model may be asked for"
# ### Velocity
#
# Write `velocity(clean, noise, alpha_bar)`, with the shapes of before. What is $v$ where there is no noise at all, and
# what where there is nothing else?
#
# **Hint.** The same two roots as before, each at the other one, and a minus.


# %%
def velocity(clean, noise, alpha_bar):
    """What a model with v-prediction is asked for."""
    ### BEGIN SOLUTION
    a = alpha_bar[:, None, None, None]
    return a.sqrt() * noise - (1 - a).sqrt() * clean
    ### END SOLUTION


checks.velocity(velocity)

# %% [markdown]
# Without noise $v$ is the noise one would add, without picture the (negative) picture. In between it holds both, and
# from a good guess of $v$ the picture comes back: $x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v$. Here
# is what the frozen base model makes of this picture at the four noise levels, knowing the caption, but not the person:

# %%
v = scheduler.get_velocity(clean, noise, timesteps)
torch.testing.assert_close(a.sqrt() * by_hand - (1 - a).sqrt() * v, clean, **CLOSE)
text = torch.from_numpy(data.texts.rows("text", [5] * 4)[:, 0].astype(np.int64))
with torch.no_grad():
    words = stack.text_encoder(text).last_hidden_state
    guess = stack.unet(by_hand, timesteps, words).sample
errors = (guess - v).square().mean((1, 2, 3))
viz.show(pictures_of(a.sqrt() * by_hand - (1 - a).sqrt() * guess), [f"guessed at t = {t}" for t in timesteps])
print("from noise alone it has more to guess than at t = 300:", bool(errors[-1] > errors[2]))

# %% [markdown]
# With little noise the face is still to be seen, and nobody needs to be told whose it is. With nothing but noise one
# guess is the mean of everybody who fits the caption, a blur; only many steps make somebody of it. There the ID tokens
# have most to say: little else tells skin and hair, or how wide a face is. The fine traits, an iris or a mouth, are
# decided at small $t$, the end of denoising. How often each timestep is drawn is therefore a choice. The paper draws
# them uniformly. Our base model prefers small $t$ ("fine" below), and long trainings of its stages follow it. A short
# one learns faster with "coarse", and the run below takes that: after 360 steps its similarity is 0.27 in place of 0.14
# (`docs/experiments.md`).

# %%
drawing, axis = viz.axes(height=1.9)
generator, ends = torch.Generator().manual_seed(0), {}
for kind, color in (("uniform", "#999999"), ("fine", "#2f6db3"), ("coarse", "#e08a2c")):
    drawn = draw_timesteps(20_000, generator, kind)
    ends[kind] = [round(share.float().mean().item(), 1) for share in (drawn >= 800, drawn < 200)]
    axis.hist(drawn, bins=40, histtype="step", color=color, label=kind)
axis.set(xlabel="timestep", ylabel="of 20,000", title="three ways to draw timesteps")
axis.legend(fontsize=8, frameon=False)
viz.plot(drawing, "Histograms of timesteps: uniform, fine (more at the small ones), coarse (many at the large ones)")
print("shares of the first and the last fifth of denoising:", ends)

# %% [markdown]
# ## 3. A loss that minds the face
#
# A face has a fifth of our pictures, and eyes and mouth a tenth. The plain mean over all places (the paper's loss)
# would mostly speak of background. So the package weighs places (our choice): 2 inside the face's box, 4 around brows,
# eyes, nose and mouth, 1 elsewhere.

# %% [markdown] exercise="face_loss" level="easy" minutes=10 teaches="a weighted mean that stays a mean"
# ### A weighted mean
#
# Write `face_loss(error, inside, weight)`: `error` (B, h, w) is the squared error of each place, `inside` (B, h, w) is
# 1 inside the face and 0 elsewhere. Places inside count `weight` times, the others once. Return one number, a mean over
# all places of all samples: where all errors are equal, it is that error, whatever the weight.
#
# **Hint.** First make a tensor that has `weight` inside and 1 elsewhere. A weighted mean divides by the sum of the
# weights.


# %%
def face_loss(error, inside, weight):
    """The mean error, places inside the face counting `weight` times."""
    ### BEGIN SOLUTION
    weights = 1 + (weight - 1) * inside
    return (error * weights).sum() / weights.sum()
    ### END SOLUTION


checks.face_loss(face_loss)


# %%
def weights_of(boxes, features, size=(16, 16)):
    """What each place counts: 1, in the face 2, around its features 4; boxes (B, N, 4) as shares of the picture."""
    face, fine = (box_masks(x, size).amax(dim=1) for x in (boxes, features))
    return torch.where(fine > 0, 4.0, 1 + face)


places = weights_of(sample["boxes"], sample["features"])
drawn = data.draw(torch.Generator().manual_seed(0), 4, swap=0)["scene"]
titles = ["violet counts 2, yellow 4"] + [""] * 3
viz.show([viz.heat(w - 1, image) for w, image in zip(places, data.scenes.images(drawn), strict=True)], titles)
shares = [(places == weight).float().mean().item() for weight in (1, 2, 4)]
print("share of places that count 1, 2 and 4:", [round(share, 1) for share in shares])

# %% [markdown]
# ## 4. What is trained, and what is not
#
# The paper freezes the base model, CLIP and the face backbone. Trained are the ID embedding, the projections of ID
# tokens to keys and values in every cross-attention, and a LoRA on q, k, v and out of every attention. The LoRA lives
# *inside* the frozen U-Net, and that is where one stumbles.

# %% [markdown] exercise="trained_only" level="medium" minutes=10 teaches="freezing a network that has trainable parts"
# ### Freeze
#
# Write `trained_only(base, added)`: `base` is a module to be frozen, `added` a list of modules to be trained, some of
# which lie inside the base. Afterwards nothing of the base asks for gradients but what was added. Return the list of
# parameters for the optimiser.
#
# **Hint.** `module.requires_grad_(False)` freezes a module with all that is in it. In which order do you freeze and
# unfreeze? A frozen layer still passes gradients on; `torch.no_grad()` would not.


# %%
def trained_only(base, added):
    """Freezes all of the base but what was added; returns the parameters to train."""
    ### BEGIN SOLUTION
    base.requires_grad_(False)
    for module in added:
        module.requires_grad_(True)
    return [parameter for module in added for parameter in module.parameters()]
    ### END SOLUTION


checks.trained_only(trained_only)

# %% [markdown]
# The package's `SingleID` puts LoRA, ID keys and values into the U-Net, and the ID embedding beside it. Listed and
# counted:

# %%
torch.manual_seed(0)
settings = single_id.settings(["--precision", "fp32", "--run-folder", str(run_folder)])
model = single_id.build(settings, stack)
trained = {
    "ID embedding": [*model.id_embedding.parameters()],
    "ID keys and values": [*model.id_attention.parameters()],
    "LoRA": [*lora_parameters(model.unet).values()],
}
frozen = {
    "U-Net": [p for p in model.unet.parameters() if not p.requires_grad],
    "VAE": [*vae.parameters()],
    "text encoder": [*stack.text_encoder.parameters()],
    "CLIP": [*stack.features.clip_vision.parameters()],
    "face backbone": [*stack.features.backbone.parameters()],
}
counts = {name: sum(p.numel() for p in part) / 1e6 for name, part in (frozen | trained).items()}
assert not any(p.requires_grad for part in frozen.values() for p in part)
assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for part in trained.values() for p in part}

# %%
drawing, axis = viz.axes(height=2.3)
axis.barh(list(counts), list(counts.values()), color=["#a9c8e8"] * len(frozen) + ["#d96b5f"] * len(trained))
for k, (name, count) in enumerate(counts.items()):
    tensors = len((frozen | trained)[name])
    axis.text(count + 0.05, k, f"{count:.2f} million in {tensors} tensors", va="center", fontsize=7)
axis.invert_yaxis()
axis.set(xlim=(0, 11.5), xlabel="million parameters", title="blue: frozen, red: trained")
viz.plot(drawing, "Bars: the parameters of the frozen networks, and of the three trained parts")
both = [sum(counts[name] for name in part) for part in (trained, frozen)]
print(f"trained: {both[0]:.2f} of {sum(both):.2f} million parameters")

# %% [markdown]
# Untrained, they do harm: ID tokens that mean nothing are added in every layer. But with the ID branch off the model is
# exactly the base, as a LoRA begins with zeros. This is the state from which the run below will start; we keep it for
# comparison.

# %%
network.save(run_folder / "untrained", model, stack)
base = UNet2DConditionModel.from_pretrained(stack.folders["unet"])
intrinsic, structure = (sample[name][:, 0].float() for name in ("intrinsic", "structure"))  # kept in half precision
tokens = model.id_embedding.eval()(intrinsic, structure)[:, None]
at, eps = torch.tensor([100, 300, 500, 700]), torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(1))
given = (scheduler.add_noise(sample["latents"], eps, at), at, stack.text_encoder(sample["text"]).last_hidden_state)
with torch.no_grad():
    alone = base(*given).sample
    for on in (True, False):
        identities = IDConditions(tokens, active=torch.full((4,), on))
        found = model.unet(*given, cross_attention_kwargs={"identities": identities}).sample
        print(f"ID branch {'on' if on else 'off'}: the same as the base:", torch.allclose(found, alone, **CLOSE))

# %% [markdown]
# ## 5. What is hidden, and what is swapped
#
# A sample does not always show everything. To guide, a sampler compares a prediction with caption and person to one
# with neither, so the network has to know both. The paper leaves out the face in 5% of the samples. Ours:
#
# * 10% have an empty caption, and half of these nobody's features, too: $F_r = 0$ (our choice)
# * independently, 5% have the ID branch off
# * 33% lose the structure branch (DropPath), 33% half of its tokens (DropToken): the lesson before

# %% [markdown] exercise="hidden" level="medium" minutes=10 teaches="hiding parts of samples for guidance"
# ### Hide
#
# Write `hidden(text, intrinsic, empty, first, second, no_caption, share)`. `text` (B, T) holds token ids, `intrinsic`
# (B, L, C) is $F_r$, `empty` (T,) the ids of an empty caption. `first` and `second` (B,) are dice between 0 and 1.
# Samples whose first die is below `no_caption` get the empty caption. Those among them whose second die is below
# `share` get an $F_r$ of zeros, too. Return both as new tensors.
#
# **Hint.** `torch.where(mask[:, None], empty, text)` chooses for each sample. `&` joins two conditions, `~` turns one
# round.


# %%
def hidden(text, intrinsic, empty, first, second, no_caption, share):
    """Text and F_r with the captions of some samples hidden, and the people of some of these."""
    ### BEGIN SOLUTION
    silent = first < no_caption
    nobody = silent & (second < share)
    return torch.where(silent[:, None], empty, text), intrinsic * ~nobody[:, None, None]
    ### END SOLUTION


checks.hidden(hidden)

# %% [markdown] exercise="swapped" level="medium" minutes=15 teaches="finding pairs in a data set"
# ### Swap
#
# If $F_r$ always came from the very picture that is to be drawn, it could bring along what only that
# picture has: its expression, its light. So with probability 0.1 it comes from another photo of the person, where there
# is one. $F_s$ always comes from the picture itself.
#
# Write `swapped(people, dice, rate)`: `people` (B,) says who is on each picture. Return the number of the picture that
# each one gets its $F_r$ from (B,), int64: its own, but where its die is below `rate` the *next* picture of the same
# person; after their last one comes their first. Who has one picture only keeps it.
#
# **Hint.** For picture `i`, `(people == people[i]).nonzero().flatten()` are the numbers of that person's pictures, in
# order. Where among them is `i`? A remainder (`%`) goes round.


# %%
def swapped(people, dice, rate):
    """From which picture each one's F_r comes."""
    ### BEGIN SOLUTION
    source = torch.arange(len(people))
    for i in (dice < rate).nonzero().flatten().tolist():
        own = (people == people[i]).nonzero().flatten()
        place = (own == i).nonzero().item()
        source[i] = own[(place + 1) % len(own)]
    return source
    ### END SOLUTION


checks.swapped(swapped)

# %% [markdown]
# The package's `Batches` does all of this. Thirty samples of a training, and what each may see of its person. (Nobody's
# features are hidden together, so where $F_r$ is red $F_s$ is, too. Thirty are few; the shares of 900 stand below.)

# %%
batches = Batches(single_id.settings(["--batch", "30", "--run-folder", str(run_folder)]), data, 1000)
batch = batches(0, torch.Generator().manual_seed(7))
drop = StructureDrop.draw(model.config.id_embedding, 30, 256, torch.Generator().manual_seed(4))
silent = (batch.text == batches.no_text).all(dim=1)
nobody = ~batch.intrinsic.flatten(1).any(dim=1)
off = ~batch.active
branch = torch.where(drop.path, torch.where(drop.tokens.all(dim=1), 0, 1), 2)
rows = torch.stack([2 * silent, 2 * nobody, torch.where(nobody, 2, branch), 2 * off])
colors = np.array([[127, 191, 143], [246, 213, 142], [217, 107, 95]])
drawing, axis = viz.axes(height=1.5)
axis.imshow(colors[rows], aspect="auto")
axis.vlines(np.arange(29) + 0.5, -0.5, 3.5, color="white")
axis.hlines(np.arange(3) + 0.5, -0.5, 29.5, color="white")
axis.set_yticks(range(4), ["caption", "$F_r$", "$F_s$", "ID branch"])
axis.set(xticks=[], title="thirty samples: green: there, yellow: half of its tokens, red: hidden")
viz.plot(drawing, "A table of thirty samples: which of caption, F_r, F_s and the ID branch each of them has")
many = [batches(0, torch.Generator().manual_seed(seed)) for seed in range(30)]
mute = torch.cat([(b.text == batches.no_text).all(dim=1) for b in many])
empty = torch.cat([~b.intrinsic.flatten(1).any(dim=1) for b in many])
print(f"of {len(mute)} samples: without caption {mute.float().mean():.2f}, of nobody {empty.float().mean():.2f}")
assert not (empty & ~mute).any()  # nobody is without a person who has a caption

# %% [markdown]
# And the swap, with pictures. `data.draw` finds no other ones among our 2,000: they show 2,000 people, once each (of
# 16,000, four each). So here are four people drawn twice, swapped at a rate of 0.4 so that there is something to see,
# and two of these eight pictures with the one that their $F_r$ comes from:

# %%
scenes = [portrait(Person.random(41_000 + k // 2), seed=k) for k in range(8)]
people = torch.tensor([scene.faces[0].person.seed for scene in scenes])
dice = torch.rand(8, generator=torch.Generator().manual_seed(0))
source = torch.where(dice < 0.4, torch.arange(8) ^ 1, torch.arange(8))  # in pairs the other one is easily found
assert bool((people[source] == people).all())
picked = [3, 6]
titles = [t for i in picked for t in ("to be drawn", "F_r: itself" if source[i] == i else "F_r: another photo")]
viz.show([scenes[k].image for i in picked for k in (i, source[i])], titles)
draws = data.draw(torch.Generator().manual_seed(0), 64, swap=1.0)
print("among 2,000 people with one picture each, swapped:", int((draws["source"] != draws["face"]).sum()), "of 64")

# %% [markdown]
# ## 6. One step
#
# Now all of it in a row. The loss of a batch, by hand, is what the package's network gives:


# %%
def loss_by_hand(batch):
    """From a batch to the loss of the single-ID stage."""
    words = stack.text_encoder(batch.text).last_hidden_state
    tokens = model.id_embedding(batch.intrinsic[:, 0].float(), batch.structure[:, 0].float())
    identities = IDConditions(tokens[:, None], active=batch.active)
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    predicted = model.unet(noisy, batch.timesteps, words, cross_attention_kwargs={"identities": identities}).sample
    target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    error = (predicted - target).square().mean(dim=1)
    weights = weights_of(batch.boxes, batch.features)
    return (error * weights).sum() / weights.sum()


batches.config.batch = 8
few = batches(1, torch.Generator().manual_seed(1))
model.eval()
with torch.no_grad():
    torch.testing.assert_close(loss_by_hand(few), model(few)["loss"], **CLOSE)
print("the loss by hand is the package's")
show_source(network.SingleID.diffusion_loss)

# %% [markdown] exercise="one_step" level="easy" minutes=10 teaches="the order of the lines in a training step"
# ### One step of the optimiser
#
# Write `one_step(loss_of, batch, parameters, optimizer, max_norm)`: compute `loss_of(batch)`, move the parameters by
# one step of the optimiser, and return the loss as a Python number. Clear the gradients left from earlier steps. Clip
# those of this step, over all parameters together, to a norm of `max_norm` (`torch.nn.utils.clip_grad_norm_`).
#
# **Hint.** Zero, backward, clip, step, and `.item()`. PyTorch *adds* to gradients that are there.


# %%
def one_step(loss_of, batch, parameters, optimizer, max_norm):
    """One step of a training; returns the loss as a number."""
    ### BEGIN SOLUTION
    loss = loss_of(batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    return loss.item()
    ### END SOLUTION


checks.one_step(one_step)

# %% [markdown]
# Fifteen steps on the same eight samples, with the same noise: the simplest sign that gradients arrive.

# %%
parameters = [p for p in model.parameters() if p.requires_grad]
before = {name: p.detach().clone() for name, p in model.named_parameters()}
optimizer = torch.optim.AdamW(parameters, lr=2e-3)
model.train()
losses = []
for step in range(15):
    torch.manual_seed(step)  # for DropToken and DropPath
    loss = loss_by_hand(few)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    losses.append(loss.item())
drawing, axis = viz.axes(height=1.9)
axis.plot(range(1, 16), losses, marker=".")
axis.set(xlabel="step", ylabel="loss", title=f"eight samples, learned by heart: {losses[0]:.3f} to {losses[-1]:.3f}")
viz.plot(drawing, "A curve: the loss of eight samples falls over 15 steps")
changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
assert changed <= {name for name, p in model.named_parameters() if p.requires_grad}
print("the loss falls:", np.mean(losses[-5:]) < np.mean(losses[:5]), "  of the frozen networks nothing moved")

# %% [markdown] exercise="averaged" level="easy" minutes=5 teaches="averaging weights over a training"
# ### The average
#
# With large steps, weights wander around the best place. So what is kept is not the weights $\theta_k$ after the last
# step $k$ but a running **average** $\bar\theta_k$ (exponential moving average, EMA), which forgets the first fast:
#
# $$\bar\theta_k = d_k\, \bar\theta_{k-1} + (1 - d_k)\, \theta_k, \qquad d_k = \min\!\Big(d, \frac{1 + k}{10 + k}\Big)$$
#
# Write `averaged(average, weights, decay, step)`: $\bar\theta_{k-1}$ and $\theta_k$, tensors of one shape, then $d$ and
# $k$. Return $\bar\theta_k$ as a new tensor, and do not change the two given.
#
# **Hint.** The smaller of the two decays, `min(...)`. It is what the *average* keeps.


# %%
def averaged(average, weights, decay, step):
    """The running average after a step."""
    ### BEGIN SOLUTION
    keep = min(decay, (1 + step) / (10 + step))
    return keep * average + (1 - keep) * weights
    ### END SOLUTION


checks.averaged(averaged)

# %% [markdown]
# ## 7. The package's loop, and a run
#
# `uniportrait_lite/loop.py` is your loop with what a long run needs: checkpoints, a log, an average, mixed precision,
# several processes; a rate that rises over the first steps and falls to zero over the last ones; and for matrices
# [Muon](https://kellerjordan.github.io/posts/muon/) in place of AdamW, which learns several times as fast here (our
# choice). The stage adds the data, your loss, and now and then **samples**: portraits of eight people outside training,
# each from one reference and by three prompts, and the judge's similarity of portrait and reference.
#
# First the two ends of the scale: the untrained weights of part 4, and those that this project ships. (Twenty seconds,
# the first time.)


# %%
def measured(weights):
    """Samples of a folder's weights: what the judge finds, and the file with the pictures. Drawn once, then kept."""
    which = digest(weights / "model.safetensors")
    file = run_folder / f"{weights.name}_{which}.png"
    if not file.with_suffix(".json").exists():
        found = Samples(stack.pipeline, weights, stack.folders["faces"])(file)
        file.with_suffix(".json").write_text(json.dumps(found))
    return json.loads(file.with_suffix(".json").read_text()), file


both = [run_folder / "untrained", tiny / "uniportrait"]
with progress("portraits by untrained and by shipped weights"):
    ends = [measured(weights) for weights in tqdm(both, desc="weights")]
(untrained, untrained_file), (shipped, shipped_file) = ends
assert shipped["facesim"] > shipped["facesim_others"]  # portraits are more alike to their own reference than to others
print("untrained weights reach less than a quarter of the shipped ones:", untrained["facesim"] < shipped["facesim"] / 4)

# %% [markdown]
# Four minutes are little: the paper makes 300,000 steps of 128 portraits. With the diffusion loss alone, 700 steps of
# 16 already take longer, and reach about two fifths of what weights of their time did (`docs/experiments.md`). Most of
# that time goes into learning, from a noisy loss, to tell the U-Net anything about a face at all.
#
# But the base model knows faces: by words. Where a caption goes on to describe the face, the *text* attention answers
# a position's question $Q$ differently, by
#
# $$\Delta = \mathrm{Attn}(Q,\, W_k T_\text{full},\, W_v T_\text{full})
#           - \mathrm{Attn}(Q,\, W_k T_\text{scene},\, W_v T_\text{scene}),$$
#
# with the words $T$ of a caption that tells all and of one that says nothing of the face. The ID attention is added to
# the text attention ([02_id_embedding](02_id_embedding.ipynb)), so $\Delta$ is what it should answer, from $F_r$ in
# place of words: $\mathrm{Attn}(Q, W_k' F_{id}, W_v' F_{id}) \approx \Delta$. Two captions of one picture may put it
# quite differently, and from half to three quarters of what a single one changes is just that. No face can tell, so
# $\Delta$ is the mean over eight captions of each kind.
#
# One pass of the U-Net over the 2,000 noised portraits records $Q$ and $\Delta$ at 32 positions of each, in each layer;
# then the ID embedding (without its structure branch) and the ID keys and values learn this regression, without the
# U-Net, some ten steps in a second. So words are **distilled** into ID tokens. It is our addition, and needs captions
# that describe faces. The diffusion loss then adds what words do not say, and trains LoRA and structure branch, too;
# its first 160 steps bring little (`docs/experiments.md`). (`training/distillation.py`)
#
# Now train. The settings below are the package's, but for what suits a few minutes: 1,600 steps of distillation, then
# 160 of the paper's training, of 2,000 portraits, 16 in a batch; hardly a warm-up, a shorter average, coarse timesteps.
#
# It is the command that you would give in a shell, in a process of its own. If you stop it, it begins anew: checkpoints
# are saved every two minutes of the diffusion training, which here takes only one. The run lives in
# `runs/lesson_04_...`, which is this notebook's own. Where it was made before, by this notebook or by the one with the
# solutions, it is only shown; delete that folder to run it again. (While it distils, the plot has only its first
# point.)

# %%
steps = 160
flags = f"--distil 1600 --portraits 2000 --batch 16 --steps {steps} --samples-every {steps} --muon-lr 0.003 "
flags += "--warmup 10 --cooldown 0.9 --ema 0.98 --timesteps coarse"
command = ["train", "single_id", *flags.split(), "--run-folder", run_folder, "--out", run_folder / "weights"]
panels = {
    "loss inside faces": {"face": "training", "unseen_face": "unseen", "unseen_face_without_id": "unseen, without ID"},
    "similarity of unseen people": {"facesim": "to the own reference", "facesim_others": "to others"},
}
goal = {"shipped weights": shipped["facesim"], "half of it": shipped["facesim"] / 2}
marks = {"similarity of unseen people": goal}


def plot(log):
    """The run so far, after what the untrained weights can (drawn 20 steps before words are distilled)."""
    drawing = viz.curves([{"step": -20, **untrained}, *log], steps, panels, marks)
    drawing.axes[1].set_xlim(-22, 1.03 * steps)
    return drawing


log = watch(command, run_folder, plot, "Curves: losses inside faces; the similarity to the own reference rises")
similarity = {line["step"]: line["facesim"] for line in log if "facesim" in line}
last = [line for line in log if "unseen_face" in line][-1]
assert last["unseen_face"] < last["unseen_face_without_id"] < last["unseen_face_with_another"]
others = [line["facesim_others"] for line in log if "facesim" in line][-1]
assert similarity[steps] > max(others, untrained["facesim"])
print("portraits of unseen people are more alike to them than to others, and than before the run")
print("these minutes reach more than half of the shipped weights' similarity:", similarity[steps] > goal["half of it"])

# %% [markdown]
# Read the left panel first. The loss on unseen people lies below that without ID tokens from step 0 on: distillation
# did most of it. With *another* person's tokens it is larger than without any (not drawn, but the cell asserts both):
# the model believes what the tokens say. (That the
# training loss lies higher does not mean that it learns nothing: it prefers large $t$, where errors are large, and the
# loss on unseen people takes all $t$ alike.) The dashed line in the right panel is half of what the shipped weights
# reach. Below, what that means for pictures: the same prompt and noise throughout.


# %%
def tiles(file):
    """A grid of samples as pictures: a row a person, the reference first, then the prompts."""
    sheet = np.asarray(Image.open(file).convert("RGB"))
    return [[sheet[y : y + 128, x : x + 128] for x in range(0, 512, 128)] for y in range(0, 1024, 128)]


stages = {"untrained": tiles(untrained_file)}
stages |= {
    f"{k} steps" if k else "distilled": tiles(run_folder / "samples" / f"{k:06d}.png") for k in sorted(similarity)
}
stages |= {"shipped": tiles(shipped_file)}
names = ["untrained", "distilled", f"{steps} steps", "shipped"]
grid = [[stages[names[0]][p][0], *(stages[name][p][1] for name in names)] for p in (0, 1)]
viz.show([tile for row in grid for tile in row], ["reference", *names] * 2, columns=1 + len(names))
print("two people of eight, each with the first of three prompts")


# %%
def at(moment, person):
    """A person and their three portraits at a moment of the training."""
    reference, *portraits = stages[moment][person - 1]
    return dict(zip(["the reference", "smiling, beach", "beanie, park", "comic"], [reference, *portraits], strict=True))


viz.live(
    at,
    moment=widgets.SelectionSlider(options=list(stages), value=f"{steps} steps", description="moment"),
    person=widgets.IntSlider(4, min=1, max=8, description="person", continuous_update=False),
)

# %% [markdown]
# "Distilled" has learned what captions say of a face. In the diffusion loss, what covers many places and shows through
# much noise has the largest say. Look at what is right at each moment, and what is still wrong at the end.
#
# The run's folder has weights as users have them. Drawn through the same pipeline as always:

# %%
up = upl.load("tiny")
folder, prompt = tiny.parent / "faces", "a portrait of a person in the park"
by_shipped = up(prompt, up.identity(folder / "cleo.png"), seed=3).images[0]
up.detach()
mine = upl.UniPortrait.attach(up.pipe, run_folder / "weights")
by_mine = mine(prompt, mine.identity(folder / "cleo.png"), seed=3).images[0]
viz.show([folder / "cleo.png", by_mine, by_shipped], ["a reference", "this run's weights", "the shipped ones"])

# %% [markdown]
# ## 8. The same for hours
#
# The shipped weights had more steps, portraits and time, but no distillation: several runs, each started from the one
# before, the last three on a GPU, five minutes in all (the last with 512 portraits in a step). To train them for
# another hour, in a folder of your own:
#
#     python -m uniportrait_lite train single_id --start-from data/tiny/uniportrait --steps none --hours 1 \
#         --run-folder runs/mine --out runs/mine/weights
#
# Their record lies beside them. What all that bought:

# %%
recipe = json.loads((tiny / "uniportrait" / "single_id.recipe.json").read_text())
earlier = sum(run["steps"] for run in recipe["before"])
drawing, axis = viz.axes(height=2.2)
found = {
    "untrained": untrained["facesim"], "words distilled": similarity[0], f"and {steps} steps": similarity[steps],
    f"shipped, {earlier + recipe['steps']:,} steps": shipped["facesim"],
}  # fmt: skip
axis.bar(list(found), found.values(), color=["#cccccc", "#e8b5ae", "#d96b5f", "#444444"])
for k, value in enumerate(found.values()):
    axis.text(k, max(value, 0) + 0.01, f"{value:.2f}", ha="center", fontsize=8)
axis.set(ylim=(min(0, *found.values()) - 0.02, 1.25 * max(found.values())), title="similarity of unseen people")
viz.plot(drawing, "Bars: the similarity of unseen people with each of these weights")
print("the shipped weights had more than ten times the steps:", earlier + recipe["steps"] > 10 * steps)

# %% [markdown]
# ## 9. What each part is worth: ablations
#
# To know what a part brings, train without it, everything else the same. That takes four trainings of 20 minutes, so it
# was done beforehand, by `python -m uniportrait_lite train single_id` with the flags in the table and 1,200 steps;
# `docs/experiments.md` has the whole commands, and is where the cell reads its table. That was on an earlier base
# model, so the rows tell of each other only: the weights of today are better than all of them. s is the similarity
# between that of strangers (0) and that of real pictures (1), with its 95% interval; AUC the chance that a portrait is
# more like its own reference than another portrait is; "followed" the share of what the prompts ask for. The first row
# has all parts, with the spatial map for $F_r$.

# %%
lines = (tiny.parents[1] / "docs" / "experiments.md").read_text().splitlines()
start = next(k for k, line in enumerate(lines) if line.startswith("## The ID embedding: ablations"))
start += next(k for k, line in enumerate(lines[start:]) if line.startswith("| "))
table = [line for line in lines[start : start + 6] if line.startswith("|")]
cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
runs = {row[0].replace(" (short)", ""): row[4].translate({ord(x): None for x in "(to)"}).split() for row in cells}
drawing, axis = viz.axes(height=1.8)
for k, found in enumerate(runs.values()):
    s, low, high = map(float, found)
    axis.barh(k, s, color="#a9c8e8")
    axis.plot([low, high], [k, k], color="black", lw=1.2)
axis.set_yticks(range(len(runs)), list(runs))
axis.set(xlabel="s, and its 95% interval", xlim=(0, 0.6))
axis.invert_yaxis()
viz.plot(drawing, "Bars: s of each row of the table, with its interval")
Markdown("\n".join(table))

# %% [markdown]
# The paper (section "Ablation") gets 45.5% face similarity with the global vector, 58.3% with the spatial map, and
# 71.1% with structure features and dropping as well. Our order is another. After 1,200 steps the one vector is ahead of
# the map, and the intervals of all four short runs overlap: chance alone could have put them in this order. One may not
# read "useless" from that, only "not needed to learn drawn faces for 20 minutes". What dropping is for may show in
# another column: without it less of the prompt is followed, 0.774 and not 0.820 (no interval was computed for that).
#
# ## What the tiny scale cannot show
#
# * **Scale.** 300,000 steps of 128 photographs on eight GPUs against a few hundred of 16 drawings: rates, optimiser and
#   weights in the loss are fitted to the small one. At full size take the paper's.
# * **The swap.** With one picture of each person there is nobody to swap with. In the paper, too, only a fifth of the
#   data (CelebA) has several photos of a person.
# * **Forgetting.** A base model that has seen billions of pictures has much to lose from careless training. Ours has
#   little, so nothing of that shows.
#
# ## In five lines
#
# 1. A latent, noise, a timestep; the network says $v$ (or $\epsilon$), and the error is the loss.
# 2. Only the ID embedding, the ID keys and values and the LoRA learn; the base stays as it is.
# 3. Captions and people are hidden at random, so that guidance has something to compare with; $F_s$ is dropped, $F_r$
#    swapped, so that tokens say who it is and not what a picture looks like.
# 4. A step is zero, backward, clip, step; what is kept is the average.
# 5. Identity shows in the loss on unseen people (with another's tokens it rises), and in pictures of them.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939), sections "Training" and "Ablation"
# * [DDPM](https://arxiv.org/abs/2006.11239); [v-prediction](https://arxiv.org/abs/2202.00512);
#   [zero terminal SNR](https://arxiv.org/abs/2305.08891);
#   [classifier-free guidance](https://arxiv.org/abs/2207.12598); [LoRA](https://arxiv.org/abs/2106.09685);
#   [Min-SNR](https://arxiv.org/abs/2303.09556), another answer to which timesteps matter
# * In the package: `training/`, `loop.py`, `muon.py`; `python -m uniportrait_lite train single_id --help`
#
# **Next:** several people in one picture: the multi-ID stage trains routers around what was learned here, in
# [05_train_multi_id](05_train_multi_id.ipynb).
