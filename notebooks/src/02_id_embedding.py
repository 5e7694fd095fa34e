# %% [markdown]
# # ID embedding: from a face to 16 tokens, and into the U-Net
#
# About a minute to run on two CPU cores, in 0.8 GB of memory, without GPU and network. With the exercises: 100 minutes.
#
# **You will** write attention, then attention whose keys come from two sources, and with it the **Q-Former** that turns
# face features into 16 **ID tokens**. You will see what DropToken and DropPath take away, put the tokens into a real
# U-Net by decoupled cross-attention, and look at what one layer looks at. Then: several references, and the way from
# one person to another.
#
# **You need** the features $F_r$ and $F_s$ of [01_face_features](01_face_features.ipynb) (its recogniser and CLIP
# return here), the judge of [00_quickstart](00_quickstart.ipynb), a face recogniser that took no part in the making, to
# have met attention before, and to know that a diffusion model draws by denoising, step by step, with a U-Net. Cells
# below an exercise use the package's own function, so you can leave out any exercise and read on.

# %%
import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.patches import Rectangle

import uniportrait_lite as upl
from uniportrait_lite.evaluation import face_similarity
from uniportrait_lite.features import IDFeatures
from uniportrait_lite.id_embedding import FeatureAttention, StructureDrop
from uniportrait_lite.learn import diagrams, viz
from uniportrait_lite.learn.checks import id_embedding as checks
from uniportrait_lite.learn.source import show_source
from uniportrait_lite.toyworld import Person, reference
from uniportrait_lite.toyworld.references import PEOPLE

up = upl.load(PROFILE)
torch.set_grad_enabled(False)  # nothing is trained in this notebook
CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # the same sum in another order differs a little
folder = upl.profiles.data_folder("tiny").parent / "faces"
people = {name: up.identity(folder / f"{name}.png") for name in PEOPLE}
ann = people["ann"].parts[0][1]  # the features of her picture
print("F_r:", tuple(ann.intrinsic.shape), "   F_s:", tuple(ann.structure.shape))

# %% [markdown]
# ## Where we are going
#
# Two sets of features, 49 tokens and 256. A diffusion model wants few tokens, of the width of its prompt. The paper
# (section "ID embedding") brings both to one width, by an MLP each, and lets 16 learned **queries** collect what
# matters, first from $F_r$, then from $F_s$:

# %%
diagrams.id_embedding()

# %% [markdown]
# ## 1. Attention
#
# A query asks, keys answer how well they fit, and the query gets the mean of the values, weighted by the answers:
#
# $$\mathrm{Attn}(Q, K, V) = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt d}\right) V$$
#
# Small enough to see: three keys, whose values are red, green and blue. A query that points somewhere gets a colour.
# (It is drawn at a sixth of its length.)


# %%
def mixed(angle, length):
    """The weights of three keys for a query of this direction and length, and the colour that it gets."""
    at = torch.deg2rad(torch.tensor([90.0, 210.0, 330.0]))
    keys = torch.stack([at.cos(), at.sin()], dim=1)
    turn = torch.deg2rad(torch.tensor(float(angle)))
    query = length * torch.stack([turn.cos(), turn.sin()])
    weights = (query @ keys.T / 2**0.5).softmax(-1)
    color = (weights @ torch.eye(3)).tolist()  # the values: red, green, blue
    drawing, (left, right) = viz.axes(2, height=2.2)
    for key, tint in zip(keys.tolist(), "rgb", strict=True):
        left.plot([0, key[0]], [0, key[1]], color=tint, lw=3, alpha=0.4)
    left.plot([0, query[0] / 6], [0, query[1] / 6], color="black", lw=5)
    left.plot([0, query[0] / 6], [0, query[1] / 6], color=color, lw=3)
    left.set(xlim=(-1.6, 1.6), ylim=(-1.1, 1.1), aspect="equal", title="three keys, and the query")
    left.axis("off")
    right.bar(["red", "green", "blue"], weights, color=["red", "green", "blue"], alpha=0.4)
    right.set(ylim=(0, 1), title="the weights, and what the query gets")
    right.add_patch(Rectangle((1.6, 0.72), 0.8, 0.25, fc=color, ec="black"))
    return drawing


viz.live(
    mixed,
    "Plot: three keys and a query; the weights of red, green and blue; the mean of the colours by these weights",
    angle=widgets.IntSlider(40, min=0, max=360, step=10, description="direction", continuous_update=False),
    length=widgets.FloatSlider(4, min=0, max=12, step=1, description="length", continuous_update=False),
)

# %% [markdown]
# A query of length 0 gets the mean of all: grey. A long one gets hardly anything but the best key's value, unless two
# keys fit equally well: try 30 degrees.

# %% [markdown] exercise="attention" level="easy" minutes=5 teaches="softmax over the right dimension"
# ### Attention
#
# Write `attention(q, k, v)` for tensors q (B, Q, d) and k, v (B, L, d), without
# `F.scaled_dot_product_attention`. The result is (B, Q, d).
#
# **Hint.** `k.transpose(-2, -1)` is (B, d, L), so `q @ k.transpose(-2, -1)` is (B, Q, L): a row of answers for each
# query. Which dimension should add up to 1?


# %%
def attention(q, k, v):
    """softmax(q k^T / sqrt(d)) v."""
    ### BEGIN SOLUTION
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ v
    ### END SOLUTION


checks.attention(attention)

# %% [markdown]
# Real layers have several **heads**: the channels are split into groups, and each group attends on its own. One head
# may look for hair, another for eyes.

# %% [markdown] exercise="split_heads" level="easy" minutes=10 teaches="reshaping without mixing up places and channels"
# ### Heads
#
# Write `split_heads(x, heads)`: from (B, L, heads * d) to (B, heads, L, d). Head $h$ owns the channels from $h d$ to
# $(h + 1) d - 1$.
#
# **Hint.** First split the last dimension in two (`unflatten`, or `view`), then swap two dimensions.


# %%
def split_heads(x, heads):
    """(B, L, heads * d) -> (B, heads, L, d)."""
    ### BEGIN SOLUTION
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
    ### END SOLUTION


checks.split_heads(split_heads)

# %% [markdown]
# ## 2. Keys from two sources
#
# In the paper's Q-Former the queries do not only read the face. **Keys and values are the features and the queries
# together**: with $q$ the queries and $F$ the features, both normalised,
#
# $$Q = W_q\, q, \qquad K, V = W_{kv}\, [\,F;\, q\,]$$
#
# so each query also sees what the other queries already hold, and they can share the work.

# %% [markdown] exercise="read_features" level="medium" minutes=15 teaches="attention with keys from two sources"
# ### Read features
#
# Write `read_features(features, queries, to_q, to_kv, heads)`. `features` (B, L, w) and `queries` (B, Q, w) are
# normalised already: no norm here. `to_q` and `to_kv` are linear maps; `to_kv` gives keys and values side by side, all
# keys first. The result (B, Q, heads * d) has the heads side by side again. You may use your two functions, or
# `F.scaled_dot_product_attention(q, k, v)`.
#
# **Hint.** `torch.cat([features, queries], dim=1)`, then `.chunk(2, dim=-1)`. Split all three into heads. On the way
# back: swap the same two dimensions, then `flatten(2)`.


# %%
def read_features(features, queries, to_q, to_kv, heads):
    """The queries (B, Q, w) read features (B, L, w) and each other: (B, Q, heads * d)."""
    ### BEGIN SOLUTION
    q = to_q(queries)
    k, v = to_kv(torch.cat([features, queries], dim=1)).chunk(2, dim=-1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)
    ### END SOLUTION


checks.read_features(read_features)

# %% [markdown]
# This is the package's, with the two norms before and a last linear map behind. `keep` hides features from the queries:
# it is what DropToken will need.

# %%
show_source(FeatureAttention.forward)


# %% [markdown]
# Now with the trained weights, and Ann's face. By hand, so that we also get the weights themselves:


# %%
def look(layer, features, queries):
    """What a FeatureAttention adds to the queries, and its weights (heads, queries, features and queries)."""
    asking = layer.norm_queries(queries)
    both = torch.cat([layer.norm_features(features), asking], dim=1)
    q, (k, v) = layer.to_q(asking), layer.to_kv(both).chunk(2, dim=-1)
    q, k, v = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return layer.to_out((weights @ v).transpose(1, 2).flatten(2)), weights[0]


module = up.id_embedding
tokens = module.intrinsic_mlp(ann.intrinsic)  # 49 x 128
added, weights = look(module.layers[0].intrinsic, tokens, module.queries)
torch.testing.assert_close(added, module.layers[0].intrinsic(tokens, module.queries), **CLOSE)
print("the queries get", tuple(added.shape), "by weights of", tuple(weights.shape), "(heads, queries, 49 + 16)")

# %% [markdown]
# ## 3. The Q-Former
#
# One layer lets the queries read $F_r$, then $F_s$, then each query thinks on its own (a feed-forward part). What each
# of the three gives is added to the queries (a residual), the second times the **structure scale** $\beta$:
#
# $$q' = q + \mathrm{Attn}_r(q, F_r), \qquad q'' = q' + \beta\, \mathrm{Attn}_s(q', F_s), \qquad
# q''' = q'' + \mathrm{FFN}(q'')$$

# %% [markdown] exercise="qformer_layer" level="medium" minutes=10 teaches="residuals, and what beta scales"
# ### One layer
#
# Write `qformer_layer(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta)`. The three parts
# are functions: `to_intrinsic(features, queries)` and `to_structure(features, queries)` give what attention adds,
# `feed_forward(queries)` what the feed-forward part adds.
#
# **Hint.** Three lines of the form `queries = queries + ...`, in the formula's order.


# %%
def qformer_layer(queries, intrinsic, structure, to_intrinsic, to_structure, feed_forward, beta):
    """The queries after one layer of the Q-Former."""
    ### BEGIN SOLUTION
    queries = queries + to_intrinsic(intrinsic, queries)
    queries = queries + beta * to_structure(structure, queries)
    return queries + feed_forward(queries)
    ### END SOLUTION


checks.qformer_layer(qformer_layer)

# %% [markdown]
# And that is the whole module: learned queries in, a few layers, a linear map and a norm. A dozen lines, and what they
# compute is what `up.tokens` returns.


# %%
def q_former(features, beta=1.0, watch=None):
    """ID tokens (1, 16, 128) of features; `watch` gets the weights of each layer's two attentions."""
    intrinsic, structure = module.intrinsic_mlp(features.intrinsic), module.structure_mlp(features.structure)
    queries = module.queries
    for layer in module.layers:
        added, weights_r = look(layer.intrinsic, intrinsic, queries)
        queries = queries + added
        added, weights_s = look(layer.structure, structure, queries)
        queries = queries + beta * added
        queries = queries + layer.feed_forward(queries)
        if watch is not None:
            watch.append({"F_r": weights_r, "F_s": weights_s})
    return module.norm(module.project(queries))


torch.testing.assert_close(q_former(ann, beta=0.3), up.tokens(people["ann"], structure_scale=0.3), **CLOSE)
print("ID tokens:", tuple(q_former(ann).shape))

# %% [markdown]
# Where do the weights go? First, how much of them goes to the face, and how much to the queries (a query may look at
# itself, too). The dashed line is where they would go if no key were better than another: below it, a query is worth
# more to the others than a place of the face.

# %%
watched = []
q_former(ann, watch=watched)
drawing, panels = viz.axes(2, height=2.1, sharey=True)
read = {"F_r": (49, []), "F_s": (256, [])}
for panel, (kind, (count, shares)) in zip(panels, read.items(), strict=True):
    shares += [step[kind][..., :count].sum(-1).mean().item() for step in watched]
    names = [f"layer {k + 1}" for k in range(len(shares))]
    panel.bar(names, shares, color="#7fbf8f", label=f"to {kind}")
    panel.bar(names, [1 - share for share in shares], bottom=shares, color="#f2c08d", label="to the queries")
    panel.axhline(count / (count + 16), color="black", lw=0.8, ls="--")
    panel.set(title=f"attention to {kind}, and to each other", ylim=(0, 1.3))
    panel.legend(loc="upper center", ncols=2, fontsize=7, frameon=False)
viz.plot(drawing, "Bars: by layer, which share of attention goes to the features, and which to the other queries")
print("share of the features, by layer:", {kind: [round(x, 1) for x in shares] for kind, (_, shares) in read.items()})

# %% [markdown]
# Then, where in the face. Choose a person and one of the 16 queries; bright places weigh most. (The mean of the heads.
# A head often chooses one place, so there are few bright spots. A query has no meaning by itself: training gives it
# one, or not. In the last layer most look at the crop's border more than elsewhere; why, we did not find out.)


# %%
def looks_at(person, query):
    """Where in a face one query looks: in F_r layer by layer, and in F_s in the last layer."""
    watched, identity = [], people[person]
    q_former(identity.parts[0][1], watch=watched)
    shown = {"the crop": identity.crops[0]}
    for number, step in enumerate(watched, 1):
        mean = step["F_r"][:, query - 1, :49].mean(0)
        shown[f"F_r, layer {number}"] = viz.heat(mean.view(7, 7), identity.crops[0])
    mean = watched[-1]["F_s"][:, query - 1, :256].mean(0)
    return shown | {f"F_s, layer {len(watched)}": viz.heat(mean.view(16, 16), identity.crops[0])}


viz.live(
    looks_at,
    person=widgets.Dropdown(options=list(people), value="bob", description="person"),
    query=widgets.IntSlider(4, min=1, max=16, description="query", continuous_update=False),
)

# %% [markdown]
# ## 4. DropToken and DropPath
#
# $F_s$ knows this very picture: pose, expression, light. A model that may lean on it copies the reference. So the paper
# takes it away in training, anew for each sample ("decoupling"):
#
# * with probability 0.33 the whole branch is dropped (**DropPath**, on the attention's output),
# * with 0.33 some of its tokens are dropped (**DropToken**, before the attention),
# * with 0.34 it is kept whole.
#
# How many tokens DropToken takes is not published; half of them is our choice. $F_r$ is never thinned, but with
# probability 0.1 it comes from *another photo* of the same person, where there is one (**swap**).

# %% [markdown] exercise="structure_drop" level="medium" minutes=15 teaches="randomness for each sample"
# ### What is kept
#
# Write `structure_drop(which, dice, drop_path, drop_token, rate)`. `which` (B,) and `dice` (B, L) hold random numbers
# between 0 and 1. Samples with `which` below `drop_path` lose the branch. The next ones, up to
# `drop_path + drop_token`, lose those tokens whose die is below `rate`. Return two bool tensors that say what is
# **kept**: `path` (B,) and `tokens` (B, L). Where the whole branch is dropped, `tokens` stays True throughout: `path`
# says it already.
#
# **Hint.** `thinned = (which >= drop_path) & (which < ...)` are the samples that lose tokens; `thinned[:, None]` lets
# it meet `dice < rate`. `~` turns True into False.


# %%
def structure_drop(which, dice, drop_path, drop_token, rate):
    """What is kept of the structure branch: path (B,) and tokens (B, L), both bool."""
    ### BEGIN SOLUTION
    thinned = (which >= drop_path) & (which < drop_path + drop_token)
    dropped = (dice < rate) & thinned[:, None]
    return which >= drop_path, ~dropped
    ### END SOLUTION


checks.structure_drop(structure_drop)

# %% [markdown]
# The package draws just so. Ten samples of one training step, seen as what $F_s$ still shows of the face:

# %%
drop = StructureDrop.draw(module.config, batch=10, length=256, generator=torch.Generator().manual_seed(11))
crop = np.asarray(people["ann"].crops[0])
shown, titles = [], []
for path, kept in zip(drop.path, drop.tokens, strict=True):
    holes = np.kron((kept & path).view(16, 16).numpy(), np.ones((14, 14), bool))
    shown.append(np.where(holes[..., None], crop, 235).astype(np.uint8))
    titles.append("whole" if path and kept.all() else "DropToken" if path else "DropPath")
viz.show(shown, titles)
many = StructureDrop.draw(module.config, batch=20_000, length=8, generator=torch.Generator().manual_seed(0))
whole = (many.path & many.tokens.all(dim=1)).float().mean()
print(f"of 20,000 samples: without the branch {1 - many.path.float().mean():.2f}, nothing dropped {whole:.2f}")

# %% [markdown]
# The two do different things. DropToken says: do not rely on any one place. DropPath says: you must manage without. As
# the model has learned both, with and without, we may choose something in between at inference: that is $\beta$.
# Nothing is random then:

# %%
module.train()
training = [module(*ann, drop=torch.Generator().manual_seed(seed)) for seed in range(8)]
module.eval()
evaluation = [module(*ann) for _ in range(2)]
print("in training, ID tokens of one picture differ:", any(not torch.equal(training[0], x) for x in training[1:]))
print("in evaluation they do not:", torch.equal(*evaluation))

# %% [markdown]
# Turn $\beta$ from 0 (only $F_r$ speaks) upwards. (A second for a picture. `00_quickstart` has a row of them.)


# %%
def structured(person, beta, seed):
    """The reference, and a portrait with this structure scale."""
    image = up("a portrait of a person, laughing", people[person], structure_scale=beta, seed=seed).images[0]
    return {"the reference": people[person].crops[0], f"beta {beta:.1f}": image}


viz.live(
    structured,
    person=widgets.Dropdown(options=list(people), value="cleo", description="person"),
    beta=widgets.FloatSlider(0.3, min=0, max=1.5, step=0.1, description="beta", continuous_update=False),
    seed=widgets.IntSlider(2, min=0, max=50, description="seed", continuous_update=False),
)

# %% [markdown]
# ## 5. Sixteen tokens: who is who?
#
# Two pictures each of four people the training has never seen. Are the ID tokens of one person more alike than those of
# two? (We subtract the mean of all eight, which says "a face". That pushes the cosines of strangers below 0, and takes
# something from those of one person, too.)
#
# There are also tokens of **nobody**, for **guidance**. With it the U-Net is run on a batch of two in every step: row 0
# without words and person, row 1 with both. It predicts $v_0$ and $v_1$ (what is noise and what is picture, see
# `04_train_single_id`), and the step goes further than row 1 says, away from row 0:
# $\hat v = v_0 + w\,(v_1 - v_0)$, where $w$ is the knob `guidance`. For row 0 the paper takes zeros for $F_r$ and for
# the backbone's part of $F_s$, and CLIP of an empty picture. In training 5% of the samples are such.

# %%
pairs = {name: (people[name], up.identity(folder / f"{name}_2.png")) for name in people}
flat = torch.cat([up.tokens(identity).flatten(1) for both in pairs.values() for identity in both]).cpu()
centred = F.normalize(flat - flat.mean(0), dim=1)
alike = centred @ centred.T
own = [alike[2 * k, 2 * k + 1].item() for k in range(4)]
others = [alike[i, j].item() for i in range(8) for j in range(i) if i // 2 != j // 2]
drawing, (table, dots) = viz.axes(2, height=2.8)
table.imshow(alike, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
labels = [f"{name} {k}" for name in pairs for k in (1, 2)]
table.set_xticks(range(8), labels, rotation=90)
table.set_yticks(range(8), labels)
for i in range(8):
    for j in range(8):
        table.text(j, i, f"{alike[i, j]:.1f}", ha="center", va="center", fontsize=6)
dots.scatter(own, [1] * len(own), s=25)
dots.scatter(others, [0] * len(others), s=25, alpha=0.5)
dots.set_yticks([0, 1], ["of two\npeople", "of one\nperson"])
dots.set(ylim=(-0.7, 1.7), xlabel="cosine of two pictures' ID tokens")
viz.plot(
    drawing, "A table of 8 x 8 cosines between the ID tokens of four people, two pictures each; and the pairs as dots"
)
print("two pictures of one person are more alike than those of two, on average:", np.mean(own) > np.mean(others))
print("nobody's ID tokens:", tuple(up.tokens(None).shape))

# %% [markdown]
# ## 6. Into the U-Net: decoupled cross-attention
#
# In each cross-attention layer the U-Net's positions $Z$ ask ($Q = W_q Z$), and the prompt's tokens answer. ID tokens
# $F_{id}$ get keys and values of their own; the same query asks them, *apart* from the text, and what they say is added
# with the **ID scale** $\lambda$ (the way of IP-Adapter, which the paper follows):
#
# $$\mathrm{Attn}(Q, K_{text}, V_{text}) + \lambda\, \mathrm{Attn}(Q, K_{id}, V_{id}), \qquad
# K_{id} = W_k' F_{id}, \; V_{id} = W_v' F_{id}$$

# %%
diagrams.decoupled_attention()

# %% [markdown] exercise="decoupled" level="medium" minutes=10 teaches="why there are two softmaxes and not one"
# ### Decoupled cross-attention
#
# Write `decoupled(q, k_text, v_text, k_id, v_id, id_scale)` for one head: q (B, L, d), the others (B, T, d). Use
# `F.scaled_dot_product_attention`. Before you run it: what would change if text and ID tokens stood in one long
# sequence?
#
# **Hint.** Two calls, one sum. In one sequence they would share a softmax: each ID token would take attention away from
# the words, and the ID scale would have nothing to scale.


# %%
def decoupled(q, k_text, v_text, k_id, v_id, id_scale):
    """Attention to the text, plus id_scale times attention to the ID tokens."""
    ### BEGIN SOLUTION
    text = F.scaled_dot_product_attention(q, k_text, v_text)
    identity = F.scaled_dot_product_attention(q, k_id, v_id)
    return text + id_scale * identity
    ### END SOLUTION


checks.decoupled(decoupled)

# %% [markdown]
# Now in the real U-Net. A hook looks over the shoulder of every cross-attention layer while a portrait is drawn,
# computes the formula by hand, and compares. On the way it keeps two things of each layer and step: how much each
# position listens to each ID token, and how large the ID branch is beside the text branch: its share of both.

# %%
seen = {}  # by layer: a list, step by step


def watching(name):
    """A hook for a cross-attention layer."""

    def hook(attn, args, kwargs, output):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        text, identities = kwargs["encoder_hidden_states"], kwargs["identities"]
        q, k, v = heads(attn.to_q(args[0])), heads(attn.to_k(text)), heads(attn.to_v(text))
        k_id, v_id = (heads(x[:, 0]) for x in attn.processor.project(identities.tokens))
        by_text, by_id = F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k_id, v_id)
        total = by_text + identities.id_scale * by_id
        torch.testing.assert_close(attn.to_out[0](total.transpose(1, 2).flatten(2)), output, **CLOSE)
        weights = (q @ k_id.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)[1].mean(0)  # row 1 has the person
        sizes = [x[1].transpose(0, 1).flatten(1).norm(dim=1) for x in (by_id, by_text)]
        seen.setdefault(name, []).append((weights.cpu(), (sizes[0] / (sizes[0] + sizes[1])).cpu()))

    return hook


# %%
layers = [layer.name for layer in up.id_attention.values()]
hooks = [up.unet.get_submodule(n).register_forward_hook(watching(n), with_kwargs=True) for n in layers]
drawn = up("a portrait of a person, smiling, in the park", people["ann"], seed=1).images[0]
for hook in hooks:
    hook.remove()
viz.show([people["ann"].crops[0], drawn], ["the reference", "the portrait"])
print(f"{len(layers)} cross-attention layers, each as by hand in all {len(seen[layers[0]])} steps")

# %% [markdown]
# How large is the ID branch beside the text's, in the four layers of the U-Net's way up, half way through? In each
# picture the brightest place is where its share is largest *in that layer*; the title says from what to what it goes.


# %%
def size_of(layer, step):
    """Where the ID branch of a layer is large in a step, as a picture."""
    share = seen[layer][step - 1][1]
    side = int(len(share) ** 0.5)
    return f"{share.min():.2f} to {share.max():.2f}", viz.heat((share - share.min()).view(side, side), drawn)


upwards = [layer for layer in layers if layer.startswith("up_blocks")]
ranges, pictures = zip(*(size_of(layer, len(seen[layer]) // 2) for layer in upwards), strict=True)
names = [layer.split(".transformer")[0].replace(".attentions", "") for layer in upwards]
titles = [f"{name}: {at}" for name, at in zip(names, ranges, strict=True)]
viz.show([drawn, *pictures], ["the portrait", *titles])
left, top, right, bottom = upl.faces.detect(drawn)[0].box
inside, outside = [], []
for layer in upwards:
    share = torch.stack([step[1] for step in seen[layer]]).mean(0)
    side = int(len(share) ** 0.5)
    at = (torch.arange(side) + 0.5) * 128 / side  # the centres of positions, in pixels
    face = ((at >= top) & (at <= bottom))[:, None] & ((at >= left) & (at <= right))
    inside.append(share[face.flatten()].mean())
    outside.append(share[~face.flatten()].mean())
print("over all steps and these layers it is larger inside the face than outside:", bool(sum(inside) > sum(outside)))

# %% [markdown]
# Nobody told these layers where the face is. Now move through layers and steps; where the range in the title is narrow,
# the ID branch speaks equally loud everywhere, and the picture shows next to nothing. The last picture has a colour for
# each of the 16 tokens: the one that a position listens to *more than the other positions do*.


# %%
def layer_sees(layer, step):
    """What a layer did with the ID tokens in a step."""
    weights = seen[layer][step - 1][0]
    side = int(len(weights) ** 0.5)
    favourite = (weights / weights.mean(0)).argmax(-1).view(side, side).numpy()
    colours = (colormaps["tab20"](favourite)[..., :3] * 255).astype(np.uint8)
    colours = np.kron(colours, np.ones((128 // side, 128 // side, 1), np.uint8))
    share, picture = size_of(layer, step)
    return {"the portrait": drawn, f"share of the ID branch: {share}": picture, "favourite token": colours}


viz.live(
    layer_sees,
    layer=widgets.Dropdown(options=layers, value=upwards[-2], description="layer"),
    step=widgets.IntSlider(6, min=1, max=len(seen[layers[0]]), description="step", continuous_update=False),
)

# %% [markdown]
# ## 7. Several references
#
# What if there are two photos of a person, or four? The paper joins their features along the sequence, and that is all:
# the queries read 98 tokens in place of 49. In its tests the likeness (FaceSim, in percent) rises from 55.5 with one
# reference to 58.5 with two and 61.2 with four.

# %% [markdown] exercise="several_references" level="easy" minutes=5 teaches="what sequences are good for"
# ### Several references
#
# Write `several_references(references)`: a list of pairs $(F_r, F_s)$, one for each picture, with shapes (1, 49, C) and
# (1, 256, D). Return the pair for all of them together.
#
# **Hint.** `torch.cat` along the dimension of the places. `zip(*references)` turns pairs into two lists.


# %%
def several_references(references):
    """[(F_r, F_s), ...] -> (F_r, F_s) of all pictures."""
    ### BEGIN SOLUTION
    intrinsic, structure = zip(*references, strict=True)
    return torch.cat(intrinsic, dim=1), torch.cat(structure, dim=1)
    ### END SOLUTION


checks.several_references(several_references)

# %%
both = up.identity([folder / "dan.png", folder / "dan_2.png"])
joined = IDFeatures.of_references([identity.parts[0][1] for identity in pairs["dan"]])
torch.testing.assert_close(both.parts[0][1].intrinsic, joined.intrinsic, **CLOSE)
print("F_r of two references:", tuple(joined.intrinsic.shape))

# %% [markdown]
# Does the second picture help here? The judge compares with a *third* one, which the model never gets. The numbers are
# the similarity to it, the mean of two portraits, of which the first is shown: so they are rough, and a few hundredths
# say nothing.


# %%
def alike_to(image, other):
    """What the judge says, 0 where it sees no face."""
    try:
        return face_similarity(image, other)
    except upl.NoFaceError:
        return 0.0


prompt, shown, titles = "a portrait of a person, photo style, in the city", [], []
for name, (one, _) in pairs.items():
    third = reference(Person.random(PEOPLE[name]), seed=12345).image
    together = up.identity([folder / f"{name}.png", folder / f"{name}_2.png"])
    row = [up(prompt, identity, seed=6, num_images=2).images for identity in (one, together)]
    scores = [np.mean([alike_to(image, third) for image in images]) for images in row]
    shown += [third, row[0][0], row[1][0]]
    titles += [f"{name}, a third picture", f"one reference: {scores[0]:.2f}", f"two: {scores[1]:.2f}"]
viz.show(shown, titles, columns=3)

# %% [markdown]
# ## 8. From one person to another
#
# ID tokens live in one space, so there is a straight line between two people: $(1 - t)\, F_{id}^{a} + t\, F_{id}^{b}$.
# `ann.mix(bob, t)` is exactly that.

# %%
first, second = people["ann"], people["bob"]
line = 0.7 * up.tokens(first) + 0.3 * up.tokens(second)
torch.testing.assert_close(up.tokens(first.mix(second, 0.3)), line, **CLOSE)
amounts = [0, 0.25, 0.5, 0.75, 1]
prompt = "a photo of a person, smiling"
walk = [up(prompt, first.mix(second, t), seed=4, num_images=2).images for t in amounts]
to = {name: [np.mean([alike_to(x, folder / f"{name}.png") for x in pair]) for pair in walk] for name in ("ann", "bob")}
drawing, axis = viz.axes(height=2)
for name, values in to.items():
    axis.plot(amounts, values, marker="o", label=f"to {name}")
axis.set(xlabel="t", ylabel="similarity", title="similarity to the two references on the way")
axis.legend(fontsize=8, frameon=False)
viz.plot(drawing, "Curves: similarity to the first person falls, to the second it rises")
print("the ends are on the right sides:", to["ann"][0] > to["ann"][-1] and to["bob"][-1] > to["bob"][0])


# %%
def between(start, end, t):
    """Two people, and somebody between them."""
    image = up(prompt, people[start].mix(people[end], t), seed=4).images[0]
    return {start: people[start].crops[0], f"{1 - t:.0%} and {t:.0%}": image, end: people[end].crops[0]}


viz.live(
    between,
    start=widgets.Dropdown(options=list(people), value="ann", description="from"),
    end=widgets.Dropdown(options=list(people), value="bob", description="to"),
    t=widgets.FloatSlider(0.5, min=0, max=1, step=0.05, description="t", continuous_update=False),
)

# %% [markdown]
# ## What the tiny scale cannot show
#
# * **The worth of each part.** In the paper structure features, and dropping them in training, both add likeness. Our
#   ablations (`docs/experiments.md`) are too short, and our drawn faces too simple, to show that.
# * **What tokens mean.** With 16 tokens for a few dozen ways to differ there is room to spare. At full size, width 768,
#   6 layers and 12 heads, they have more to carry.
# * **What beta is for.** Photographs tempt a model to copy the reference's pose and light; drawings less.
#
# ## In five lines
#
# 1. Attention is a weighted mean; keys may come from anywhere, also from those who ask.
# 2. 16 queries read $F_r$, then $F_s$ (what that adds counts $\beta$ times), then think: the ID embedding.
# 3. DropToken and DropPath take $F_s$ away in training, so that likeness rests on $F_r$, and $\beta$ can be turned.
# 4. ID tokens enter every cross-attention layer beside the text, with a softmax of their own and the ID scale.
# 5. More references make longer sequences; between two people there is a straight line.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939), sections "ID embedding" and "Training"
# * [Perceiver](https://arxiv.org/abs/2103.03206), [Flamingo](https://arxiv.org/abs/2204.14198) (its resampler reads
#   features and latents together) and [BLIP-2](https://arxiv.org/abs/2301.12597): learned queries;
#   [IP-Adapter](https://arxiv.org/abs/2308.06721): decoupled cross-attention
# * [DropPath](https://arxiv.org/abs/1603.09382) (there: stochastic depth)
# * In the package: `id_embedding.py`, `attention.py`, `adapter.py`
#
# **Next:** several people in one picture, and who of them each position should listen to:
# [03_id_routing](03_id_routing.ipynb).
