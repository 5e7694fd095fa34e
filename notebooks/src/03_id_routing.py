# %% [markdown]
# # ID routing: who is where
#
# Two minutes to run on two CPU cores, in 1 GB of memory, without GPU and network. With the exercises: two hours.
#
# **You will** see how several people in one picture blend into each other, and write what the paper does about it: in
# every cross-attention layer a **router** decides, place by place, which identity that place listens to. You will look
# at the gradients of a choice (softmax, Gumbel, straight through), write the **routing regularization loss**, train a
# router, watch the shipped ones at work step by step, put masks in their place, find out who is doubled or missing, and
# why.
#
# **You need** the ID tokens and the decoupled cross-attention of [02_id_embedding](02_id_embedding.ipynb). Cells below
# an exercise use the package's own function, so you can leave out any exercise and read on.
#
# **Where we are going.** The paper (section "ID routing") lets every location of a layer choose *one* of $N$
# identities, by comparing what is there, $Z$, with a summary of each identity's ID tokens. The ID branch then adds the
# attention to the chosen one. The picture below shows it, with the sizes of our U-Net's finest layers and, in brackets,
# the paper's.

# %%
import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import uniportrait_lite as upl
from uniportrait_lite import attention, id_routing
from uniportrait_lite.assignment import assign
from uniportrait_lite.distinct import one_region_each
from uniportrait_lite.id_routing import IDRouter, Routing, box_masks, gumbel, one_hot, routing_accuracy
from uniportrait_lite.learn import diagrams, viz
from uniportrait_lite.learn.checks import id_routing as checks
from uniportrait_lite.learn.progress import progress
from uniportrait_lite.learn.source import show_source
from uniportrait_lite.pictures import tinted
from uniportrait_lite.toyworld import Person, group
from uniportrait_lite.toyworld.references import PEOPLE

up = upl.load(PROFILE)
torch.set_grad_enabled(False)  # but where something is trained
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # the same sum in another order differs a little
folder = upl.profiles.data_folder("tiny").parent / "faces"
people = {name: up.identity(folder / f"{name}.png") for name in PEOPLE}
viz.show([np.hstack([one.crops[0].resize((64, 64)) for one in people.values()])], [", ".join(people)])
print("routers in", sum(layer.router is not None for layer in up.id_attention.values()), "cross-attention layers")
diagrams.id_routing()

# %% [markdown]
# ## 1. The blending problem
#
# What happens without it? Let us take a picture of 4 x 4 places. It shows two faces side by side: above hair, below
# skin. Each identity has two tokens, one that knows its hair and one that knows its skin. The values are colours.

# %%
hair, skin = [3.0, 0.0], [0.0, 3.0]
asks = torch.tensor([[hair] * 8 + [skin] * 8])  # (1, 16, 2): a query for each place, row by row
keys = torch.tensor([[[hair, skin], [hair, skin]]])  # (1, 2 identities, 2 tokens, 2)
values = torch.tensor([[[[1.0, 0.8, 0.2], [1.0, 0.85, 0.7]], [[0.1, 0.1, 0.15], [0.4, 0.25, 0.15]]]])


def blocks(colours):
    """16 colours as a picture of 4 x 4 blocks."""
    colours = (colours.reshape(4, 4, 3).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    return np.kron(colours, np.ones((32, 32, 1), np.uint8))


each = torch.stack([F.scaled_dot_product_attention(asks, keys[:, n], values[:, n]) for n in (0, 1)], dim=1)
viz.show([blocks(each[0, 0]), blocks(each[0, 1])], ["all listen to the first", "all to the second"])
print("attention to each identity:", tuple(each.shape), "(batch, identities, places, colours)")

# %% [markdown] exercise="concatenated" level="easy" minutes=5 teaches="what one softmax does to several people"
# ### Everybody in one sequence
#
# The simplest way to have several people: their tokens in one long sequence. Write `concatenated(q, keys, values)` for
# q (B, L, d) and keys, values (B, N, T, d) of N identities. The result is (B, L, d). Which colours do you expect for
# our 4 x 4 picture?
#
# **Hint.** `x.flatten(1, 2)` turns (B, N, T, d) into (B, N * T, d). Then it is one `F.scaled_dot_product_attention`.


# %%
def concatenated(q, keys, values):
    """Attention to the tokens of all identities, in one sequence."""
    ### BEGIN SOLUTION
    return F.scaled_dot_product_attention(q, keys.flatten(1, 2), values.flatten(1, 2))
    ### END SOLUTION


checks.concatenated(concatenated)

# %%
blended = F.scaled_dot_product_attention(asks, keys.flatten(1, 2), values.flatten(1, 2))
wanted = torch.tensor([[[1.0, 1, 0, 0] * 4, [0.0, 0, 1, 1] * 4]])  # (1, 2, 16): left the first, right the second
by_hand = (wanted.unsqueeze(-1) * each).sum(1)
viz.show([blocks(blended[0]), blocks(by_hand[0])], ["all tokens in one sequence", "routed by hand"])
columns = blended.view(4, 4, 3)
print("in one sequence both faces are the same:", torch.allclose(columns[:, 0], columns[:, 3]))
halfway = (each[:, 0] + each[:, 1]) / 2
print("and half one, half the other:", torch.allclose(blended, halfway, atol=0.01))

# %% [markdown]
# A query for hair finds two answers that fit equally well, so it gets their mean. Nothing in it says *whose* hair. The
# paper calls this blending; its routing is there to end it.
#
# Now for real: Ann and Bob, then Bob and Dan. First with their ID tokens **averaged**, then **concatenated**, then
# **routed**, four pictures each, of which the second is shown.
#
# How much do they blend? The paper reports a blending score, but does not say how it is computed. Here is ours: how
# alike the judge finds the faces of one picture, less how alike these people's references are. 0 is no blending, below
# 0 they are even less alike than that. A person who is there twice counts as blending, too, and a mean over pictures
# can hide it. (`evaluate people` reports the score for many.)


# %%
def together(tokens, seed=0, count=4):
    """Pictures with ID tokens (2, 1, T, D), of nobody and of everybody, in place of identities."""
    given = attention.IDConditions(tokens, up.config.defaults.id_scale).projected(up.id_attention)
    rows = torch.tensor([0] * count + [1] * count)  # for guidance: first without anybody, then with
    kwargs = {"cross_attention_kwargs": {"identities": given.rows(rows)}}
    return up(PROMPT, seed=seed, num_images=count, width=192, height=128, **kwargs).images


PROMPT, PAIRS = "two people in the park", [("ann", "bob"), ("bob", "dan")]
drawn, routed = {"averaged": [], "concatenated": [], "routed": []}, {}
with progress("24 pictures of two people"):
    for names, way in tqdm([(names, way) for names in PAIRS for way in drawn]):
        tokens = up.conditions(*(people[name] for name in names)).tokens  # (2, N, 16, D): nobody's, then theirs
        if way == "averaged":
            drawn[way] += together(tokens.mean(1, keepdim=True))
        elif way == "concatenated":
            drawn[way] += together(tokens.flatten(1, 2).unsqueeze(1))
        else:
            pair = [people[name] for name in names]
            routed[names] = up(PROMPT, pair, seed=0, num_images=4, routing=True, columns=0)  # columns: see part 9
            drawn[way] += routed[names].images


# %%
def alike(pictures):
    """How alike the faces are that the judge finds in these pictures; None of fewer than two."""
    faces = [face.embedding for picture in pictures for face in upl.faces.detect(picture, embed=True)]
    cosines = [a @ b for k, a in enumerate(faces) for b in faces[:k]]
    return np.mean(cosines) if cosines else None


shown, titles, total = [], [], dict.fromkeys(drawn, 0)
for number, names in enumerate(PAIRS):
    really = alike([folder / f"{name}.png" for name in names])
    for way, images in drawn.items():
        four = images[4 * number : 4 * number + 4]
        scores = [np.nan if (score := alike([image])) is None else score - really for image in four]
        total[way] += np.nanmean(scores)
        shown.append(four[1])
        titles.append(f"{way}: blending {scores[1]:.2f} (mean of four {np.nanmean(scores):.2f})")
viz.show(shown, titles, columns=3)
print("routed they blend least:", min(total, key=total.get) == "routed")

# %% [markdown]
# The paper's figures for the same thing, at full size: IP-Adapter alone keeps two people with a similarity of 7.7% and
# a blending score of 52.7%; with the paper's router, and nothing else changed, 60.5% and 7.9%.
#
# Ours are not as good by themselves: often somebody is there twice. Part 8 finds out, and draws again; part 9 says
# where it comes from, and does something about it.
#
# ## 2. Whom to listen to: the router
#
# A router compares two things: what lies at a place, $Z_{uv}$, and a summary of each identity's tokens $F^{(n)}$.
# $W_{aggr}$ brings the 16 tokens down to one, with a learned weight for each; $\theta$ and $\phi$ are two-layer MLPs:
#
# $$\mathrm{logits}(u, v, n) = \theta(Z)_{uv} \cdot \phi(W_{aggr} F^{(n)})$$
#
# By hand, with one number in place of a vector: say that $\theta(Z)$ tells how bright a place has become so far,
# halfway through denoising, and that $\phi$ says 2 for the first person, who is bright all over, and -2 for the second.

# %%
bright = torch.tensor([[0.9, 0.7, -0.4, -0.8], [0.6, 0.8, -0.7, -0.9], [0.8, -0.2, -0.6, -0.5], [0.7, 0.5, 0.1, -0.7]])
theta, phi = bright.reshape(1, 16, 1), torch.tensor([[[2.0], [-2.0]]])  # (1, 16, 1) and (1, 2, 1)
logits = phi @ theta.transpose(1, 2)  # (1, 2, 16)
print(f"logits of the first person:\n{logits[0, 0].view(4, 4).numpy().round(1)}")
print(f"where they are larger than the second's:\n{(logits[0, 0] > logits[0, 1]).view(4, 4).int().numpy()}")

# %% [markdown] exercise="routing_logits" level="medium" minutes=15 teaches="bringing 16 tokens down to one"
# ### The router's logits
#
# Write `routing_logits(positions, tokens, aggregate, theta, phi)` for positions (B, L, C) and the ID tokens
# (B, N, 16, D) of N identities. `aggregate` is a linear map from 16 numbers to 1, `theta` and `phi` bring positions and
# the one token to the same width. The result is (B, N, L). There is no softmax yet, and no $1/\sqrt{d}$.
#
# **Hint.** Linear maps read the last dimension, and the 16 stand in the last but one: `tokens.transpose(-1, -2)`. After
# `aggregate` one dimension of size 1 is left over: `.squeeze(-1)`. Then it is a product of matrices, as in attention.


# %%
def routing_logits(positions, tokens, aggregate, theta, phi):
    """How well each identity fits each position: (B, N, L)."""
    ### BEGIN SOLUTION
    one = aggregate(tokens.transpose(-1, -2)).squeeze(-1)
    return phi(one) @ theta(positions).transpose(1, 2)
    ### END SOLUTION


checks.routing_logits(routing_logits)

# %% [markdown]
# The package's router is that, cut in two: `keys` is what does not change from step to step, so it is computed once a
# picture. As $\theta$'s last map has no bias, it can move over to that side.

# %%
show_source(IDRouter)

# %% [markdown]
# ## 3. One identity at a place
#
# The **routing map** $\psi$ is 1 for the identity with the largest logit, and 0 for the others. It chooses among the
# attention outputs of the $N$ identities:
#
# $$\psi(u, v, \cdot) = \mathrm{onehot}\big(\arg\max_n \mathrm{logits}(u, v, n)\big), \qquad
# \sum_n \psi_n \odot \mathrm{Attn}(Q, K_{id}^{(n)}, V_{id}^{(n)})$$
#
# Never two at once, so nothing blends *within* a place. But never nobody, either: the background, too, has to listen to
# somebody.

# %% [markdown] exercise="route" level="medium" minutes=10 teaches="a choice, written as a sum with a mask"
# ### Let one of them speak
#
# Write `route(logits, outputs)`: logits (B, N, L), and outputs (B, N, L, C), the attention output of each identity. The
# result (B, L, C) has at each place the output of the identity whose logit is largest there.
#
# **Hint.** `torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1.0)` is $\psi$. With
# `.unsqueeze(-1)` it meets the outputs; then sum over the identities.


# %%
def route(logits, outputs):
    """The output of the identity with the largest logit, at each place: (B, L, C)."""
    ### BEGIN SOLUTION
    psi = torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1.0)
    return (psi.unsqueeze(-1) * outputs).sum(dim=1)
    ### END SOLUTION


checks.route(route)

# %%
show_source(attention._routed)  # the package's: N attentions, added up by psi
soft, hard = logits.softmax(1), one_hot(logits)
pictures = [blocks((shares.unsqueeze(-1) * each).sum(1)[0]) for shares in (soft, hard)]
viz.show([blocks(by_hand[0]), *pictures], ["what we want", "mixed by softmax", "arg max"])
print("each place has exactly one identity:", bool((hard.sum(1) == 1).all() and (hard.amax(1) == 1).all()))
print("places that listen to the wrong one:", int((hard[0, 0] != wanted[0, 0]).sum()), "of 16")

# %% [markdown]
# Two places are wrong because their logits are: arg max makes a choice pure, and does not make it right. That the
# router has to learn.
#
# ## 4. Learning to choose
#
# Arg max is a step: move a logit a little, and nothing changes. So its gradient is zero or undefined, and torch gives
# none at all. Softmax has a gradient, but mixes. The way out has two parts. First, **draw** instead of taking the
# largest. With noise $g$ from Gumbel's distribution, the largest of $\mathrm{logits} + g$ is a draw from the softmax of
# the logits; and with a **temperature** $\tau$ the draw can be made soft:
#
# $$\tilde\psi_n = \mathrm{softmax}_n\!\left(\frac{\mathrm{logits}_n + g_n}{\tau}\right), \qquad
# g = -\log(-\log u), \quad u \text{ uniform in } (0, 1)$$

# %% [markdown] exercise="gumbel_softmax" level="medium" minutes=10 teaches="how to draw with a gradient"
# ### A soft draw
#
# Write `gumbel_softmax(logits, uniform, temperature)`: logits (B, N, L), uniform random numbers of the same shape, and
# $\tau$. The result (B, N, L) is $\tilde\psi$, whose shares add up to 1 over the identities. (`F.gumbel_softmax` draws
# noise of its own; here it is made of `uniform`.)
#
# **Hint.** `uniform.log()` is negative, so minus it is positive, so its logarithm exists. Noise first, then divide,
# then softmax over `dim=1`.


# %%
def gumbel_softmax(logits, uniform, temperature):
    """A soft draw from the logits, over the identities: (B, N, L)."""
    ### BEGIN SOLUTION
    noise = -torch.log(-torch.log(uniform))
    return ((logits + noise) / temperature).softmax(dim=1)
    ### END SOLUTION


checks.gumbel_softmax(gumbel_softmax)

# %% [markdown]
# Forty draws of one place with three identities: each column is a draw, and its colours are the shares. Turn $\tau$
# down, and the draws become choices. How often each identity wins stays the same: that is the softmax.

# %%
three = torch.tensor([1.0, 0.3, -0.6]).view(1, 3, 1)


def draws(temperature):
    """Forty soft draws, and how often each identity wins."""
    torch.manual_seed(0)
    shares = gumbel(three.expand(1, 3, 2000), temperature, hard=False)[0]
    often = one_hot(shares[None])[0].mean(1)
    drawing, (left, right) = viz.axes(2, height=2.1, width_ratios=[3, 1])
    below = torch.zeros(40)
    for share, color in zip(shares[:, :40], ("#d95f5f", "#5f7fd9", "#5fae6f"), strict=True):
        left.bar(range(40), share, bottom=below, color=color, width=0.85)
        below = below + share
    left.set(title=f"40 draws, temperature {temperature:.1f}", ylabel="shares", xticks=[])
    right.bar(np.arange(3) - 0.2, often, 0.4, label="wins", color="#444444")
    right.bar(np.arange(3) + 0.2, three[0, :, 0].softmax(0), 0.4, label="softmax", color="#bbbbbb")
    right.set(title="of 2,000 draws", ylim=(0, 0.8), xticks=[])
    right.legend(fontsize=7, frameon=False)
    assert torch.allclose(often, three[0, :, 0].softmax(0), atol=0.04)
    return drawing


viz.live(
    draws,
    "Plot: soft draws of three identities, column by column; and how often each wins, as the softmax says",
    temperature=widgets.FloatSlider(0.5, min=0.1, max=3, step=0.1, description="temperature", continuous_update=False),
)

# %% [markdown]
# Second, **straight through**: use the hard choice forwards, as at inference, and the soft one's gradient backwards.
# The paper names Gumbel noise; temperature, its schedule, and whether the choice is hard are not published. Hard,
# straight through, with $\tau$ falling from 1 to 0.5, is our choice.

# %% [markdown] exercise="straight_through" level="hard" minutes=10 teaches="values of one thing, gradients of another"
# ### Straight through
#
# Write `straight_through(soft)`, for shares (B, N, L): a tensor whose *values* are one-hot over the identities, and
# whose *gradient* is that of `soft`.
#
# **Hint.** `x - x.detach()` is 0, and has a gradient. What happens if you add it to something that has none?


# %%
def straight_through(soft):
    """One-hot forwards, soft backwards: (B, N, L)."""
    ### BEGIN SOLUTION
    hard = torch.zeros_like(soft).scatter(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard + soft - soft.detach()
    ### END SOLUTION


checks.straight_through(straight_through)

# %% [markdown]
# The package's `gumbel` is both exercises together (`exponential_()` draws $-\log u$). Look at the **gradients**: one
# place, the three identities of above, and what it costs to listen to each, 0.9, 0.1 and 0.5. The first has the largest
# logit, but the second would be cheapest. What does each way to choose tell the logits? (Guess first. The three that
# have a gradient say the same, softmax most loudly; soft draws and straight through agree in the mean, as this cost is
# linear.)
#
# Below it the 4 x 4 picture learns its routing: its 16 x 2 logits begin as they were, and are moved until the colours
# are right. With arg max nothing would ever move.

# %%
show_source(gumbel)
costs = torch.tensor([0.9, 0.1, 0.5]).view(1, 3, 1)


def gradient(choose, count=4000):
    """d cost / d logits of one place, the mean of many draws."""
    with torch.enable_grad():
        given = three.expand(1, 3, count).clone().requires_grad_()
        cost = (choose(given) * costs).sum()
        if not cost.requires_grad:
            return None
        return torch.autograd.grad(cost, given)[0].mean(2)[0]


torch.manual_seed(0)
ways = {"softmax": lambda x: x.softmax(1), "soft draws": lambda x: gumbel(x, hard=False), "straight through": gumbel}
found = {way: gradient(choose) for way, choose in ways.items()}
drawing, axis = viz.axes(height=2)
for k, (way, values_of) in enumerate(found.items()):
    axis.bar(np.arange(3) + 0.25 * (k - 1), values_of, 0.22, label=way)
axis.axhline(0, color="black", lw=0.6)
axis.set(title="d cost / d logit", xticks=range(3), xticklabels=[f"cost {c:.1f}" for c in costs[0, :, 0]])
axis.legend(fontsize=7, frameon=False)
viz.plot(drawing, "Bars: by three ways to choose, the gradient of each identity's logit")
print("arg max has a gradient:", gradient(one_hot) is not None)
print("all others push the dear one down, and the cheap one up:", all(g[0] > 0 > g[1] for g in found.values()))


# %%
def learn(choose, steps=60):
    """Logits that were moved until the colours fit, and the loss on the way."""
    free, losses = logits.clone().requires_grad_(), []
    optimizer = torch.optim.Adam([free], lr=0.1)
    for _ in range(steps):
        with torch.enable_grad():
            loss = ((choose(free).unsqueeze(-1) * each).sum(1) - by_hand).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return one_hot(free.detach()), losses


learned = {way: learn(choose) for way, choose in ways.items()}
drawing, axis = viz.axes(height=1.9)
for way, (_, losses) in learned.items():
    axis.plot(losses, label=way, lw=1)
axis.set(title="error of the colours", xlabel="step")
axis.legend(fontsize=7, frameon=False)
viz.plot(drawing, "Curves: the error falls in all three ways, with jumps where choices are drawn")
wrong = {way: int((psi != wanted)[0, 0].sum()) for way, (psi, _) in learned.items()}
print("places that listen to the wrong one:", ", ".join(f"{count} after {way}" for way, count in wrong.items()))

# %% [markdown]
# Why then not softmax, which learns as well and without jumps? Because this toy wants pure colours. In a U-Net softmax
# would train on mixtures, which are never drawn later; and always taking the largest would never try another person.
# Hence draws, hard forwards and soft backwards.
#
# ## 5. The routing regularization loss
#
# Nothing so far says that a map should be *one person a face*. The diffusion loss alone may find a routing that patches
# faces together: UniPortrait trained with it alone reaches a face similarity of 59.1% in pairs, says the paper. So
# training pictures have a box around each face, the boxes make $N$ masks $M$, and inside their union $W_{route}$ the
# map should be the masks:
#
# $$L_{route} = \lambda\, \frac{1}{N} \big\lVert W_{route} \odot (\psi - M) \big\rVert_2^2, \qquad \lambda = 0.1$$
#
# With both losses it is 67.3%. Outside of the boxes everything is free. In this loss $\psi$ is the softmax of the
# logits, without noise (our choice: it then speaks of what the router will choose); the draws of part 4 are for the
# diffusion loss.

# %%
scene = group([Person.random(PEOPLE[name]) for name in ("bob", "cleo")], seed=4, style="photo")
pixels = torch.tensor([scene.pixels.shape[1::-1] * 2])  # width, height, width, height
boxes = torch.tensor([[face.box for face in scene.faces]]) / pixels  # (1, 2, 4), shares of the picture
masks = {size: box_masks(boxes, size) for size in ((16, 24), (8, 12), (4, 6))}  # the sizes of the U-Net's layers
tints = {f"M at {h} x {w}": tinted(scene.image, masks[h, w][0].numpy()) for h, w in ((8, 12),)}
viz.show(list(tints.values()), list(tints))
left_half = box_masks(torch.tensor([0.0, 0.0, 0.5, 1.0]), (2, 4))
print("the left half as a mask of 2 x 4:", left_half.int().tolist())
print("no place is in both boxes:", all(mask.sum(1).max() == 1 for mask in masks.values()))

# %% [markdown] exercise="routing_loss" level="hard" minutes=20 teaches="what is averaged over what"
# ### The loss
#
# Write `routing_loss(maps, boxes)` without $\lambda$. `maps` has $\psi$ (B, N, h, w) of each layer by its name, `boxes`
# is (B, N, 4), shares of the picture; `box_masks(boxes, (h, w))` gives $M$. The union $W_{route}$ is 1 where any of the
# masks is, also where boxes overlap. The paper does not say how places and layers are put together. Ours: the squared
# errors inside $W_{route}$ are averaged over the $N$ identities, added up, and divided by the number of places in
# $W_{route}$ (both over all pictures of the batch); then the mean over the layers, each counting alike.
#
# **Hint.** $W_{route}$ is `masks.amax(dim=1, keepdim=True)`, (B, 1, h, w). `upl.id_routing.box_masks` is the package's.


# %%
def routing_loss(maps, boxes):
    """The routing regularization loss, without lambda."""
    ### BEGIN SOLUTION
    losses = []
    for psi in maps.values():
        masks = upl.id_routing.box_masks(boxes, psi.shape[-2:])
        union = masks.amax(dim=1, keepdim=True)
        errors = (union * (psi - masks)).square().mean(dim=1)
        losses.append(errors.sum() / union.sum())
    return torch.stack(losses).mean()
    ### END SOLUTION


checks.routing_loss(routing_loss)

# %%
perfect = {str(size): mask for size, mask in masks.items()}
cases = {
    "the masks themselves": perfect,
    "the two people swapped": {size: mask.flip(1) for size, mask in perfect.items()},
    "half and half everywhere": {size: torch.full_like(mask, 0.5) for size, mask in perfect.items()},
    "all to the first": {size: torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand_as(m) for size, m in perfect.items()},
    "right, and the background to the second": {
        size: torch.stack([mask[:, 0], 1 - mask[:, 0]], 1) for size, mask in perfect.items()
    },
}
for name, maps in cases.items():
    print(f"{name}: {id_routing.routing_loss(maps, boxes):.2f}")

# %% [markdown]
# ### A router of your own
#
# Enough to train one: a fresh router for one layer of the real U-Net. Its positions $Z$ come from drawn pictures of our
# four people, with noise on them, as the U-Net meets them in training. Its identities are their ID tokens, from the
# reference pictures. Only the routing loss trains it.

# %%
LAYER = up.id_attention["up_blocks/2/attentions/0/transformer_blocks/0/attn2"]
FOUR = [Person.random(seed) for seed in PEOPLE.values()]


def pairs(count, seed, pool=FOUR):
    """Pictures of two people of the pool, who they are (count, 2) and their boxes (count, 2, 4), in any order."""
    dice = np.random.default_rng(seed)
    who = np.array([dice.choice(len(pool), 2, replace=False) for _ in range(count)])
    scenes = [group([pool[k] for k in pair], seed=1000 * seed + i) for i, pair in enumerate(tqdm(who))]
    where = torch.tensor([[face.box for face in scene.faces] for scene in scenes]) / pixels
    turned = torch.from_numpy(dice.random(count) < 0.5)
    where[turned], who[turned] = where[turned].flip(1), who[turned][:, ::-1]
    return scenes, torch.from_numpy(who), where


def positions(scenes, seed, noise_step=300):
    """What the layer sees of noisy pictures: Z (pictures, places, channels)."""
    pictures = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2) / 127.5 - 1
    latents = up.pipe.vae.encode(pictures).latent_dist.mean * up.pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    noisy = up.pipe.scheduler.add_noise(latents, noise, torch.full((len(latents),), noise_step))
    text = up.pipe.encode_prompt("two people", up.unet.device, 1, False)[0].expand(len(latents), -1, -1)
    seen = []
    hook = up.unet.get_submodule(LAYER.name).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    up.unet(noisy, noise_step, encoder_hidden_states=text)
    hook.remove()
    return seen[0]


# %%
with progress("64 pictures of two people, drawn and looked at"):
    scenes, who, their_boxes = pairs(48, seed=1)
    Z = torch.cat([positions(scenes[k : k + 12], seed=k) for k in tqdm(range(0, 48, 12))])
    test_scenes, test_who, test_boxes = pairs(16, seed=2)
    test_Z = positions(test_scenes, seed=99)
ids = torch.cat([up.tokens(people[name]) for name in PEOPLE])  # (4, 16, 128)
print("Z:", tuple(Z.shape), "  for testing:", tuple(test_Z.shape))


def maps_of(router, Z, who):
    """The router's logits as maps of the layer, (pictures, 2, 16, 24)."""
    return {"up": router.logits(Z, router.keys(ids[who])).unflatten(-1, (16, 24))}


torch.manual_seed(0)
router, curve = IDRouter(Z.shape[-1], ids.shape[-1]), []
before = maps_of(router, test_Z, test_who)
optimizer = torch.optim.AdamW(router.parameters(), lr=2e-3)
for _ in range(120):
    some = torch.randint(len(Z), (16,))
    with torch.enable_grad():
        soft = {name: scores.softmax(1) for name, scores in maps_of(router, Z[some], who[some]).items()}
        loss = id_routing.routing_loss(soft, their_boxes[some])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    curve.append((loss.item(), routing_accuracy(maps_of(router, test_Z, test_who), test_boxes)["up"].item()))

# %%
drawing, (left, right) = viz.axes(2, height=1.9)
for axis, values_of, title in zip(
    (left, right), zip(*curve, strict=True), ("routing loss", "right inside faces, on other pictures"), strict=True
):
    axis.plot(values_of, color="#2f6db3", lw=1.2)
    axis.set(title=title, xlabel="step")
right.axhline(0.5, color="#888888", lw=0.8, ls="--")
viz.plot(drawing, "Curves: the routing loss falls, and the share of right places on other pictures rises")
trained = maps_of(router, test_Z, test_who)
shown = [tinted(test_scenes[1].image, one_hot(m["up"])[1].numpy()) for m in (before, trained)]
viz.show(shown, ["before", "after"])
was, now = (routing_accuracy(maps, test_boxes)["up"].item() for maps in (before, trained))
print("places of faces that listen to the right person: more than before:", now > was, " and than 0.7:", now > 0.7)

# %% [markdown]
# Red and blue are the first and the second person, who stand in any order. The router has learned to *recognise*: from
# a few noisy features it tells whose face begins there. But only of four people. The real ones have to do it for people
# they have never seen, in seven layers, and at every noise level; they are trained on thousands of people
# ([05_train_multi_id](05_train_multi_id.ipynb) does that, together with the diffusion loss).
#
# ## 6. Routing in the U-Net
#
# Now the shipped routers. A hook in each layer computes the logits by hand, from the formula of part 2, compares them
# with the package's, and keeps the arg max. In the end all must be what the picture's `.routing` recorded.
#
# Then look at a picture from inside, first the first and the last step of one layer of the way down and one of the way
# up, then with controls. Red listens to the first person, blue to the second; or choose one of them, and see where they
# are heard.

# %%
chosen = []  # (layer, psi by hand) in the order of the calls


def watching(layer, args, kwargs, output):
    """A hook for a cross-attention layer: the routing by hand."""
    router, given = layer.processor.router, kwargs["identities"]
    one = router.aggregate(given.tokens.transpose(-1, -2)).squeeze(-1)
    logits = router.phi(one) @ router.theta(args[0]).transpose(1, 2)
    torch.testing.assert_close(router.logits(args[0], given.router_keys[layer.processor.name]), logits, **CLOSE)
    chosen.append((layer.processor.name, one_hot(logits)[1]))  # row 1 has the prompt and the people


attend = [up.unet.get_submodule(layer.name) for layer in up.id_attention.values()]
hooks = [layer.register_forward_hook(watching, with_kwargs=True) for layer in attend]
maps = up(PROMPT, [people["ann"], people["bob"]], seed=1, routing=True, columns=0).routing
for hook in hooks:
    hook.remove()
recorded = [psi[0].flatten(1) for step in maps.steps for psi in step.values()]
same = [(a == b).float().mean() for (_, a), b in zip(chosen, recorded, strict=True)]
print(len(maps.layers), "layers,", len(maps.steps), "steps; as by hand:", bool(torch.stack(same).mean() > 0.999))


# %%
def name_of(layer):
    """A layer's name, shorter."""
    return layer.split(".transformer")[0].replace(".attentions", "")


layers = maps.layers
image = routed["ann", "bob"].images[1]
kept = routed["ann", "bob"].routing
corners = [(layer, step) for layer in (layers[0], layers[-1]) for step in (1, len(kept.steps))]
grid = [tinted(image, kept.steps[step - 1][layer][1].numpy()) for layer, step in corners]
viz.show(grid, [f"{name_of(layer)}, step {step}" for layer, step in corners], columns=4)
print("sizes of the maps:", sorted({tuple(psi.shape[-2:]) for psi in kept.steps[0].values()}))


# %%
def listens(pair, number, layer, step, shown):
    """A picture, and who listens to whom in one layer and step."""
    out = routed[pair]
    psi = out.routing.steps[step - 1][layer][number - 1].numpy()
    if shown == "everyone":
        seen = tinted(out.images[number - 1], psi)
    else:
        seen = viz.heat(psi[pair.index(shown) if shown in pair else 0], out.images[number - 1], highest=1)
    return {f"{name_of(layer)}, step {step}": seen}


viz.live(
    listens,
    pair=widgets.Dropdown(options=[(" and ".join(pair), pair) for pair in PAIRS], description="people"),
    number=widgets.IntSlider(2, min=1, max=4, description="picture", continuous_update=False),
    layer=widgets.Dropdown(options=layers, value=layers[-2], description="layer"),
    step=widgets.IntSlider(6, min=1, max=len(maps.steps), description="step", continuous_update=False),
    shown=widgets.Dropdown(options=["everyone", *dict.fromkeys(sum(PAIRS, ()))], description="who"),
)

# %% [markdown]
# How often are they right? Inside a face's box, a place is right if it listens to the person whose face it became (the
# package matches faces with people, as part 8 explains). Half would be chance.

# %%
steps = {pair: [] for pair in PAIRS}  # of each pair: the share by step (rows) and layer
for pair, out in routed.items():
    found = [up.assignment(image, [people[name] for name in pair]) for image in out.images]
    full = [k for k, faces in enumerate(found) if None not in faces.face_of]
    places = torch.stack([torch.from_numpy(found[k].boxes[list(found[k].face_of)]) for k in full]) / pixels
    for maps in out.routing.steps:
        right = routing_accuracy({layer: psi[full] for layer, psi in maps.items()}, places)
        steps[pair].append([right[layer].item() for layer in layers])
table = np.nanmean(list(steps.values()), axis=0)  # (steps, layers)
drawing, (left, right) = viz.axes(2, height=2.2, sharey=True)
for part, color in (("down", "#d98f4a"), ("mid", "#888888"), ("up", "#2f6db3")):
    which = [layer.startswith(part) for layer in layers]
    left.plot(range(1, len(table) + 1), table[:, which].mean(1), color=color, label=part)
left.set(title="right inside faces, by step", xlabel="step", ylim=(0, 1))
left.legend(fontsize=7, frameon=False)
right.bar(range(len(layers)), table.mean(0), color="#a9c8e8")
right.set(title="by layer, in the U-Net's order", xticks=range(len(layers)))
right.set_xticklabels([name_of(layer) for layer in layers], rotation=35, ha="right", fontsize=6)
right.axhline(0.5, color="#888888", lw=0.8, ls="--")
viz.plot(drawing, "Curves and bars: the share of places in faces that listen to the right person, by step and by layer")
print("the way up is right more often than chance:", bool(table[:, which].mean() > 0.5))

# %% [markdown]
# Better than chance, but not perfect, and these pairs are easy to tell apart: the routers that are shipped here are
# small, and have been trained for a few hours. The README's table of several people says how often a pair comes out
# right, over 105 of them.
#
# ## 7. You say who is where
#
# A mask for each identity can take the router's place, says the paper: brought to the layer's size, and normalised over
# the identities. What several claim is shared then. And what nobody claims? In the package it gets nobody's tokens,
# only the prompt: a mask can say what a router cannot. `masks=` of a call takes boxes in pixels, or arrays of the
# picture's shape.

# %% [markdown] exercise="shares" level="easy" minutes=10 teaches="normalising, and when not to"
# ### From masks to a routing map
#
# Write `shares(masks, size)`: masks (1, N, H, W) with values from 0 to 1, and a layer's size (h, w). The result (1, N,
# h, w): each mask brought to that size by averaging the area that a place covers (`F.interpolate` has a mode for it);
# then, where the identities together claim more than 1, divided by what they claim. Where they claim less, leave it.
#
# **Hint.** `F.interpolate(masks, size=size, mode="area")` averages areas. `x.sum(dim=1, keepdim=True).clamp_min(1)` is
# what to divide by. Why `clamp_min(1)`?


# %%
def shares(masks, size):
    """Who has which share of a place: (1, N, h, w)."""
    ### BEGIN SOLUTION
    small = F.interpolate(masks, size=size, mode="area")
    return small / small.sum(dim=1, keepdim=True).clamp_min(1)
    ### END SOLUTION


checks.shares(shares)

# %%
claims = torch.zeros(1, 2, 4, 4)
claims[0, 0, :, :3], claims[0, 1, 2:, 1:] = 1, 1
told = Routing((4, 4), masks=claims).choose("a layer", batch=1, length=16, logits=None).view(2, 4, 4)
print(f"the first person's map:\n{told[0].numpy()}\nthe second's:\n{told[1].numpy()}")
assert torch.equal(told.sum(0), claims[0].amax(0))  # 1 where somebody claims, 0 in the corner above right

duo = [people["ann"], people["dan"]]
halves = [(0, 0, 96, 128), (96, 0, 192, 128)]
sides = {"ann left, dan right": halves, "dan left, ann right": halves[::-1]}
stood = [up(PROMPT, duo, seed=0, masks=masks).images[0] for masks in sides.values()]
viz.show(stood, list(sides))
print("Ann's face, counted from the left:", [up.assignment(image, duo).face_of[0] for image in stood])


def border(at, seed):
    """Ann on the left of a border, Dan on the right of it."""
    image = up(PROMPT, duo, seed=seed, masks=[(0, 0, at, 128), (at, 0, 192, 128)]).images[0]
    mine = (np.arange(192) < at)[None].repeat(128, axis=0)
    return {f"border at {at}": tinted(image, np.stack([mine, ~mine]), strength=0.25)}


viz.live(
    border,
    at=widgets.IntSlider(96, min=32, max=160, step=8, description="border", continuous_update=False),
    seed=widgets.IntSlider(2, min=0, max=50, description="seed", continuous_update=False),
)

# %% [markdown]
# ## 8. Nobody twice, nobody missing
#
# Each place chooses for itself, so nothing forces the choices to make *one* face for each person: two faces may listen
# to the same one. The authors have said so to users of their code, and advised to look at the picture and to draw
# again. To look means: detect the faces, compare each with each person's reference, and match.

# %% [markdown] exercise="who_is_where" level="medium" minutes=15 teaches="matching one to one, and what it hides"
# ### Who is where
#
# Write `who_is_where(similarities)` for a numpy array (F, N) of F faces and N people. Return two lists of length N.
# `face_of`: the index, from 0, of each person's face in the one-to-one matching with the largest sum, or None where
# there are not enough faces. `counts`: how many faces are nearest to each person. SciPy has the matching:
# `scipy.optimize.linear_sum_assignment`.
#
# **Hint.** `rows, columns = scipy.optimize.linear_sum_assignment(costs)` finds the smallest sum; the face `rows[k]`
# goes to the person `columns[k]`. The matching never gives a person two faces, so who is doubled is told by the counts:
# `similarities.argmax(axis=1)` is the nearest person of each face.


# %%
def who_is_where(similarities):
    """Each person's face or None, and how many faces are nearest to each person."""
    ### BEGIN SOLUTION
    from scipy.optimize import linear_sum_assignment

    people = similarities.shape[1]
    faces, matched = linear_sum_assignment(-similarities)
    own = dict(zip(matched.tolist(), faces.tolist(), strict=True))
    nearest = similarities.argmax(axis=1).tolist()
    return [own.get(n) for n in range(people)], [nearest.count(n) for n in range(people)]
    ### END SOLUTION


checks.who_is_where(who_is_where)

# %%
# The package keeps all that in an Assignment. Here are three faces and three people, of whom one is there twice:
similarities = np.array([[0.8, 0.6, 0.0], [0.7, 0.1, 0.1], [0.1, 0.2, 0.6]], np.float32)
example = assign(np.zeros((3, 4)), similarities, np.eye(3, dtype=np.float32))
print("face of each person:", example.face_of, "  faces nearest to each:", example.counts)
print("doubled:", example.doubled, "  missing:", example.missing, "  everyone once:", example.distinct)

# %% [markdown]
# `distinct=True` looks, and draws again where someone is doubled or missing: first from the same noise, with everyone
# kept to a region around the face that the matching gave them; then from other noise, with columns for regions; three
# times at most. The best picture stays.
#
# With two people whom it is easy to tell apart that is seldom needed. So Bob, Cleo and Dan, whom routers alone often
# mix up: three pictures as they come, and the same with `distinct=True`. Shown is one in which somebody is doubled, the
# regions for it (red for Bob, blue for Cleo, green for Dan: every pixel belongs to whoever's face is nearest), and what
# came of them.
# (Counting tells who is doubled, not who is blended: somebody with another's hair may count as right.)

# %%
trio, FRIENDS = [people[name] for name in ("bob", "cleo", "dan")], "three friends in the park"
with progress("3 pictures of three people, and those drawn again"):
    alone = up(FRIENDS, trio, seed=0, num_images=3, routing=True, columns=0)
    checked = [up(FRIENDS, trio, seed=seed, columns=0, distinct=True) for seed in tqdm(range(3))]
looked = [up.assignment(image, trio) for image in alone.images]


def in_words(assignment):
    """Who is there how often."""
    return ", ".join(f"{name} {count}x" for name, count in zip(("bob", "cleo", "dan"), assignment.counts, strict=True))


worst = min(range(3), key=lambda k: looked[k].distinct)  # the first in which somebody is doubled
image, again = alone.images[worst], checked[worst]
regions = one_region_each(looked[worst], image.size)
titles = [in_words(looked[worst]), "regions", f"{in_words(again.assignment[0])}; drawn again: {again.tries[0]}"]
viz.show([image, tinted(image, np.stack(regions)), again.images[0]], titles)
print("each pixel is in one region:", bool((np.sum(regions, axis=0) == 1).all()))
once = sum(found.distinct for found in looked), sum(out.assignment[0].distinct for out in checked)
print("everyone is there once in more pictures than before:", once[1] > once[0])
untouched = [found.distinct == (out.tries[0] == 0) for found, out in zip(looked, checked, strict=True)]
print("what was right was left alone, and the rest drawn again:", all(untouched))

# %% [markdown]
# ## 9. Before there is anything to see
#
# Why is somebody there twice at all? Look at the curve of part 6 once more: in the first steps the routers of the way
# down are right little more often than chance, and that is when it is decided what goes where. How could they know?
# There is nothing but noise, and each place asks by itself. When a face begins to show, some of its places have
# listened to the one person, some to the other; it is a blend, and fits neither. Training never shows such a
# half-and-half face: there, noise is added to pictures in which each face belongs to one person already.
#
# So we give the routers a head start, an addition of ours. For the first part of the steps everyone keeps to a
# **column** of the picture, the first one to the left. From then on the routers decide, and now there is something to
# recognise. Here the first part lasts until half of the noise is gone (`columns=0.5`: three of eight steps, as they
# become smaller), so that the routers have something left to do. The default of these weights is 0.8, which brings
# more, and leaves them two steps of eight. `columns=0` is the paper's way.

# %%
with progress("3 pictures of three people, with a head start"):
    begun = up(FRIENDS, trio, seed=0, num_images=3, routing=True, columns=0.5)
now = [up.assignment(image, trio) for image in begun.images]
viz.show([alone.images[worst], begun.images[worst]], ["routers alone", "with a head start"])
print("everyone once in more pictures than by routers alone:", sum(a.distinct for a in now) > once[0])


def right(out, found):
    """Of each step, the share of places in faces that listen to the right one of the three, in the way up."""
    size = torch.tensor(out.images[0].size * 2)
    full = [k for k, faces in enumerate(found) if None not in faces.face_of]
    places = torch.stack([torch.from_numpy(found[k].boxes[list(found[k].face_of)]) for k in full]) / size
    each = [{name: psi[full] for name, psi in maps.items() if "up" in name} for maps in out.routing.steps]
    return [np.mean([share.item() for share in routing_accuracy(maps, places).values()]) for maps in each]


drawing, axis = viz.axes(height=1.9)
before, after, start = right(alone, looked), right(begun, now), begun.routing.routed.start
axis.plot(range(1, len(before) + 1), before, color="#888888", label="routers alone")
axis.plot(range(1, len(after) + 1), after, color="#2f6db3", label=f"columns for {start} steps, then routers")
axis.set(title="three people: right inside faces, way up, by step", xlabel="step", ylim=(0, 1))
axis.legend(fontsize=7, frameon=False, loc="lower right")
viz.plot(drawing, "Curves: with a head start the routers stay right after it; alone they are right less often")
print("routers that had a head start are right more often:", bool(np.mean(after[start:]) > np.mean(before[start:])))

# %% [markdown]
# Nothing holds them in their columns any more, and yet they stay right. Three pictures are too few to say how much it
# brings: `docs/experiments.md` has it for many pairs and triples, and what it costs (people stand side by side, in the
# order in which they were named).
#
# ## What the tiny scale cannot show
#
# * **How good routing gets.** Ours has had a few hours of training; the paper's 150,000 steps on 120,000 pictures of
#   several people, and its pairs come near the likeness of single portraits (67.3 and 71.1 in its tables).
# * **Bodies.** Our people end at the shoulders. In real pictures a face's box says little about whose hand that is, and
#   the paper cannot bind clothes or actions to a person either.
# * **How much a layer matters.** We have seven layers with routers, Stable Diffusion 1.5 has sixteen.
#
# ## In five lines
#
# 1. In one sequence, or averaged, several people answer every question together: they blend.
# 2. A router in every layer compares each place with each person, and the largest logit alone is listened to.
# 3. To learn a choice: Gumbel noise, hard forwards, soft backwards.
# 4. The routing loss tells it, inside faces only, who is right.
# 5. Masks can take the router's place, for all steps or for the first; matching finds who is doubled or missing.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939), sections "ID routing" and "Training"
# * [Gumbel-softmax](https://arxiv.org/abs/1611.01144) and [the concrete distribution](https://arxiv.org/abs/1611.00712):
#   the same idea, found twice; [straight through](https://arxiv.org/abs/1308.3432)
# * [FastComposer](https://arxiv.org/abs/2305.10431): another way, a loss that keeps each person's attention in a region
# * [Mixture of experts](https://arxiv.org/abs/2101.03961): routers that choose among networks, with the same worries
# * In the package: `id_routing.py`, `attention.py`, `regions.py`, `assignment.py`, `distinct.py`
#
# **Next:** [04_train_single_id](04_train_single_id.ipynb): where the ID embedding comes from.
