# %% [markdown]
# # Face features: what identity is made of
#
# About a minute to run on two CPU cores, in 1.4 GB of memory, without GPU and network. With the exercises: 90 minutes.
#
# **You will** bring faces into one place, look into a face recogniser stage by stage, write the loss that trained it,
# and build by hand the two kinds of features that UniPortrait makes identities of: **intrinsic ID features** $F_r$ and
# **face structure features** $F_s$. Then you will measure what each of them knows.
#
# **You need** PyTorch's tensors, and what a convolution does. [00_quickstart](00_quickstart.ipynb) shows what it is all
# for. Cells below an exercise use the package's own function, so you can leave out any exercise and read on.

# %%
import cv2
import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F

import uniportrait_lite as upl
from uniportrait_lite.backbone import CurricularFace, IRResNet, verification
from uniportrait_lite.evaluation.metrics import readable
from uniportrait_lite.features import FaceFeatures, load_clip_vision
from uniportrait_lite.folders import data_folder
from uniportrait_lite.learn import diagrams, viz
from uniportrait_lite.learn.checks import face_features as checks
from uniportrait_lite.learn.source import show_source
from uniportrait_lite.toyworld import Person, portrait
from uniportrait_lite.toyworld.pretrain.recognition import align, arcface_dst, crop

stack = data_folder(PROFILE)
encoder = FaceFeatures(IRResNet.from_pretrained(stack / "recogniser"), load_clip_vision(stack / "clip"))
print("a face backbone and a CLIP image tower, both frozen:", not any(p.requires_grad for p in encoder.parameters()))

# %% [markdown]
# ## Where we are going
#
# The paper's section "ID embedding" begins with two sets of features of one aligned face crop. This notebook builds
# both of them; the next one turns them into ID tokens.

# %%
diagrams.face_features()

# %% [markdown]
# ## 1. From a picture to a crop
#
# Our faces are drawn, so we know exactly where everything is. That lets us check the first network of all, the
# detector (read through insightface): five landmarks found against five landmarks drawn.

# %%
scenes = [portrait(Person.random(2_040_000 + i), seed=i, style="photo", hat="none", scale=2) for i in range(4)]
found = [upl.faces.detect(scene.image)[0] for scene in scenes]
errors = [np.linalg.norm(a.landmarks - b.faces[0].landmarks, axis=1).mean() for a, b in zip(found, scenes, strict=True)]
marked = [viz.marked(scene.image, [face]) for scene, face in zip(scenes, found, strict=True)]
viz.show(marked, [f"{error:.1f} pixels off" for error in errors])
print("landmarks within 3% of the picture's height, on average:", np.mean(errors) < 0.03 * 256)

# %% [markdown]
# Face networks are trained on crops in which eyes, nose and mouth always lie at the same places, the **template**.
# What brings a face there is a *similarity*: turn, scale, move. With four numbers $a, b, u, v$ it maps a point to
#
# $$\begin{pmatrix} x' \\ y' \end{pmatrix} =
# \begin{pmatrix} a & -b & u \\ b & a & v \end{pmatrix}
# \begin{pmatrix} x \\ y \\ 1 \end{pmatrix}$$
#
# Five landmarks give ten equations for four unknowns, so we take the best fit (least squares).

# %% [markdown] exercise="similarity" level="medium" minutes=15 teaches="aligning faces by least squares"
# ### Bring a face to the template
#
# Write `similarity(points, template)`: both are tensors of shape (5, 2), and the result is the matrix (2, 3) above that
# brings `points` as near to `template` as it can, in the sum of squared distances.
#
# **Hint.** Write the ten equations as one matrix of ten rows times $(a, b, u, v)$. For the five $x'$ the rows are
# $(x, -y, 1, 0)$. What are they for the five $y'$? Then `torch.linalg.lstsq(rows, targets).solution` has the answer.


# %%
def similarity(points, template):
    """The similarity (2, 3) that brings points (5, 2) nearest to the template (5, 2)."""
    ### BEGIN SOLUTION
    x, y = points.T
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = torch.cat([torch.stack([x, -y, one, zero], dim=1), torch.stack([y, x, zero, one], dim=1)])
    a, b, u, v = torch.linalg.lstsq(rows, template.T.flatten()).solution
    return torch.stack([torch.stack([a, -b, u]), torch.stack([b, a, v])])
    ### END SOLUTION


checks.similarity(similarity)

# %% [markdown]
# The package's `align` does the same for many faces at once. `cv2.warpAffine` applies the matrix to a picture: the crop
# is 224 pixels wide, twice the template's 112, and the one that `upl.faces.detect` returns. (This face looks to the
# side. A similarity cannot bend it, so not all of the template's points lie on its landmarks.)

# %%
matrix = align(found[0].landmarks[None], side=224)[0]
by_hand = cv2.warpAffine(scenes[0].pixels, matrix, (224, 224))
difference = np.abs(by_hand.astype(int) - np.asarray(found[0].crop)).max()
template = [[*(2 * arcface_dst[i] - 3), *(2 * arcface_dst[i] + 3)] for i in range(5)]
dots = by_hand.copy()
for left, top, right, bottom in np.array(template).round().astype(int):
    dots[top:bottom, left:right] = (255, 0, 255)
viz.show([scenes[0].image, by_hand, dots], ["the picture", "the crop", "the template in it"])
print("largest difference of a pixel at most 2:", difference <= 2)

# %% [markdown]
# Why it matters: the mean of 64 people, cut out by their boxes, and aligned. Once aligned, eyes lie on eyes.

# %%
many = [portrait(Person.random(2_041_000 + i), seed=i, style="photo", hat="none", glasses="none") for i in range(64)]
boxes = np.array([scene.faces[0].box for scene in many]).round().astype(int)
cut = [cv2.resize(s.pixels[y0:y1, x0:x1], (112, 112)) for s, (x0, y0, x1, y1) in zip(many, boxes, strict=True)]
aligned = crop(np.stack([s.pixels for s in many]), np.stack([s.faces[0].landmarks for s in many]), side=112)
means = [np.mean(faces, axis=0).astype(np.uint8) for faces in (cut, aligned)]
viz.show([cut[0], aligned[0], *means], ["one, by its box", "one, aligned", "64, by their boxes", "64, aligned"])
sharpness = [cv2.Laplacian(mean, cv2.CV_64F)[40:70].std() for mean in means]
print("the aligned mean is sharper around the eyes:", sharpness[1] > sharpness[0])

# %% [markdown]
# ## 2. A recogniser, stage by stage
#
# The face backbone is an *improved residual network* in four stages, each of which halves the map; from one to the next
# the channels double. Here it is a small one, trained by this project on drawn people. The paper uses the same kind
# with 101 layers, trained with CurricularFace on Glint360K. Both end in a **head** that turns the last map into one
# vector for a face.


# %%
def pixels_of(crops):
    """Crops, uint8 (B, 224, 224, 3) -> float (B, 3, 224, 224) in [0, 1], as the encoders read them."""
    return torch.from_numpy(np.stack([np.asarray(c) for c in crops])).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def stages_of(pixels):
    """The four maps of the face backbone, which reads 112 pixels and values from -1 to 1."""
    faces = F.interpolate(pixels, size=(112, 112), mode="bilinear", align_corners=False) * 2 - 1
    return encoder.backbone.features(faces)


maps = stages_of(pixels_of([face.crop for face in found]))
for number, features in enumerate(maps, 1):
    print(f"stage {number}:", tuple(features.shape))

# %% [markdown]
# What do they look like? A map has more channels than a screen has colours. So we take its three main directions
# (principal components) as red, green and blue; of each map for itself, so colours of two maps cannot be compared.


# %%
def colours(features):
    """A map (C, h, w) as a picture: its three principal components as red, green and blue."""
    tokens = features.flatten(1).T
    main = torch.pca_lowrank(tokens, q=3, niter=4)[2]
    rgb = ((tokens - tokens.mean(0)) @ main).T.unflatten(1, features.shape[1:])
    low, high = rgb.amin((1, 2), keepdim=True), rgb.amax((1, 2), keepdim=True)
    large = F.interpolate(((rgb - low) / (high - low))[None], size=(112, 112))[0]
    return (large * 255).byte().permute(1, 2, 0).numpy()


torch.manual_seed(0)
titles = ["the crop", *(f"stage {k}: {m.shape[1]} x {m.shape[2]} x {m.shape[3]}" for k, m in enumerate(maps, 1))]
viz.show([x for i in (0, 3) for x in (found[i].crop, *(colours(m[i]) for m in maps))], titles * 2)

# %% [markdown]
# Early stages are still a picture: edges, shades, hair. Late ones are coarse, and hard to read for us. Are they easier
# to read for somebody who looks for *identity*? We take people whom the network has never seen, in six pictures each,
# with other expressions, light, hats and styles, and ask: are two pictures of one person more alike than pictures of
# two people?

# %% [markdown] exercise="cosines" level="easy" minutes=5 teaches="the similarity that all face recognition uses"
# ### How alike are two faces?
#
# Write `cosines(a, b)`: `a` holds N vectors (N, D), `b` holds M (M, D), and the result (N, M) their cosines,
# $\cos\theta_{ij} = a_i \cdot b_j \, / \, (\lVert a_i \rVert \, \lVert b_j \rVert)$.
#
# **Hint.** `F.normalize(x, dim=...)` divides vectors by their length. Along which dimension does one vector lie?


# %%
def cosines(a, b):
    """The cosines (N, M) of vectors a (N, D) and b (M, D)."""
    ### BEGIN SOLUTION
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    ### END SOLUTION


checks.cosines(cosines)

# %%
people = np.repeat(np.arange(30), 6)
album = [portrait(Person.random(2_042_000 + p), seed=100 + i) for i, p in enumerate(people)]
faces = crop(np.stack([s.pixels for s in album]), np.stack([s.faces[0].landmarks for s in album]), side=224)
pixels = pixels_of(faces)
maps = [torch.cat(stage) for stage in zip(*(stages_of(few) for few in pixels.split(30)), strict=True)]
vectors = torch.cat([encoder.embedding(few) for few in pixels.split(30)])
print(f"{len(set(people))} people, {len(album)} pictures; the head's vectors:", tuple(vectors.shape))

# %% [markdown]
# For one picture, its three nearest neighbours among all the others: by stage 1, by stage 4, and by the vector.

# %%
levels = {f"stage {k}": m.flatten(1) for k, m in enumerate(maps, 1)} | {"vector": vectors}
asked, shown, titles = 37, [], []
for name in ("stage 1", "stage 4", "vector"):
    features = levels[name]
    alike = F.normalize(features, dim=1) @ F.normalize(features[asked], dim=0)
    alike[asked] = -1
    nearest = alike.argsort(descending=True)[:3].tolist()
    shown += [faces[asked], *(faces[i] for i in nearest)]
    titles += [f"by {name}:", *("the same" if people[i] == people[asked] else "somebody else" for i in nearest)]
viz.show(shown, titles, columns=4)

# %% [markdown]
# One example may mislead. Over all pairs of pictures, the **AUC** is the chance that a pair of one person is more alike
# than a pair of two people: 0.5 is guessing, 1 is perfect.

# %%
scores = {name: verification(features, people)["auc"] for name, features in levels.items()}
drawing, axis = viz.axes(height=2.2)
axis.bar(list(scores), list(scores.values()), color=["#a9c8e8"] * 4 + ["#555555"])
axis.set(ylim=(0.5, 1.03), ylabel="AUC", title="which level knows who it is?")
for k, score in enumerate(scores.values()):
    axis.text(k, score + 0.008, f"{score:.3f}", ha="center", fontsize=8)
viz.plot(drawing, "Bars: the AUC of each stage and of the vector")
print("it rises from stage to stage:", scores["stage 4"] > scores["stage 3"] > scores["stage 1"])
print("and the vector is the best of all:", max(scores, key=scores.get) == "vector")

# %% [markdown]
# So identity is made on the way up. Keep in mind that the last step, from the map of stage 4 to the vector, brings
# much: it will be the question of part 4.
#
# ## 3. What made it so: CurricularFace
#
# Nobody told the network which pixels matter. It was only asked to tell thousands of people apart, by a loss with two
# ideas in it ([Huang et al. 2020](https://arxiv.org/abs/2004.00288); the paper's backbone is trained with it). Take the
# cosines $\cos\theta_j$ of a face's vector to a learned centre for each person $j$, and let $y$ be the right one.
#
# **A margin**, as in ArcFace: the right person has to win even when their angle is made larger by $m$,
# $T = \cos(\theta_y + m)$.

# %% [markdown] exercise="with_margin" level="easy" minutes=5 teaches="what an angular margin does"
# ### A margin on the angle
#
# Write `with_margin(cosine, margin)`: from $\cos\theta$ to $\cos(\theta + m)$, for a tensor of cosines and a margin in
# radians.
#
# **Hint.** A cosine is given, and an angle has to be changed: go there with `torch.acos`, and come back.


# %%
def with_margin(cosine, margin):
    """cos(theta + margin) of cos(theta)."""
    ### BEGIN SOLUTION
    return torch.cos(torch.acos(cosine) + margin)
    ### END SOLUTION


checks.with_margin(with_margin)

# %% [markdown]
# **A curriculum**: negatives that beat $T$ are *hard*. They are reweighted by how far training has come, measured by a
# slow average $t$ of the cosines of right answers:
#
# $$N_j = \begin{cases} \cos\theta_j & \text{where } T \ge \cos\theta_j \\
# \cos\theta_j \, (t + \cos\theta_j) & \text{where } T < \cos\theta_j \end{cases}
# \qquad
# L = -\log \frac{e^{sT}}{e^{sT} + \sum_{j \ne y} e^{s N_j}}$$
#
# $s$ is a fixed scale, 64 in the field: cosines end at 1, and without it the softmax could never be sure of anything.

# %% [markdown] exercise="curricular" level="hard" minutes=20 teaches="hard negatives, and when to mind them"
# ### CurricularFace's logits
#
# Write `curricular(cosines, labels, t, margin)`: `cosines` is (B, C), `labels` (B,) holds the right classes $y$. The
# result (B, C) has $T$ at the right class and $N_j$ at the others, not yet scaled by $s$. You may use
# `upl.backbone.with_margin`.
#
# **Hint.** `cosines.gather(1, labels[:, None])` picks the right classes' cosines, as a column. `torch.where` chooses
# between the two cases for all classes; `.scatter(1, labels[:, None], target)` then puts $T$ in its place.


# %%
def curricular(cosines, labels, t, margin):
    """T at the right class, N_j at the others: (B, C)."""
    ### BEGIN SOLUTION
    target = upl.backbone.with_margin(cosines.gather(1, labels[:, None]), margin)
    logits = torch.where(cosines > target, cosines * (t + cosines), cosines)
    return logits.scatter(1, labels[:, None], target)
    ### END SOLUTION


checks.curricular(curricular)

# %% [markdown]
# The package's `CurricularFace` is these lines, with the centres and the average $t$ in it:

# %%
show_source(CurricularFace.forward)

# %% [markdown]
# Move $t$ and $m$. The grey line is an untouched negative; blue is what the loss makes of it, for a right class at
# $\theta_y = 45°$. Right of the dashed line $T$ negatives are hard. At $t = 0$ positive cosines count less than they
# are, and training begins gently. Once $t$ exceeds $1 - \cos\theta_j$ they count more.


# %%
def curriculum(t, margin):
    """What a negative's cosine becomes."""
    cosine = torch.linspace(-0.2, 1, 400)
    target = upl.backbone.with_margin(torch.tensor(np.cos(np.pi / 4)), margin)
    drawing, axis = viz.axes(height=2.5)
    axis.plot(cosine, cosine, color="#bbbbbb", label="cos")
    axis.plot(cosine, torch.where(cosine > target, cosine * (t + cosine), cosine), color="#2f6db3", label="N")
    axis.axvline(target, color="#444444", ls="--", lw=1)
    axis.text(float(target) - 0.02, 1.2, "T", ha="right")
    axis.set(xlabel="a negative's cosine", ylabel="what the loss sees", ylim=(-0.3, 1.9), title=f"t = {t:.1f}")
    axis.legend(loc="upper left", fontsize=8, frameon=False)
    return drawing


viz.live(
    curriculum,
    "Plot: hard negatives, right of T, are bent down for a small t and up for a large one",
    t=widgets.FloatSlider(0.2, min=0, max=1, step=0.1, description="t", continuous_update=False),
    margin=widgets.FloatSlider(0.35, min=0, max=0.8, step=0.05, description="margin m", continuous_update=False),
)

# %% [markdown]
# And what the margin is for. Six people get centres on a circle, and a linear map learns to bring their pictures there,
# from the map of stage 4. In each panel the margin is larger; the number is the mean angle to their own centre, over
# pictures that were not trained on.

# %%
photo = {"style": "photo", "hat": "none"}
members = [portrait(Person.random(2_043_000 + p), seed=1000 + 30 * p + i, **photo) for p in range(6) for i in range(30)]
crops = crop(np.stack([s.pixels for s in members]), np.stack([s.faces[0].landmarks for s in members]), side=224)
inputs = torch.cat([stages_of(pixels_of(few))[-1].flatten(1) for few in np.array_split(crops, 6)])
labels = torch.arange(6).repeat_interleave(30)
inputs = F.layer_norm(inputs, inputs.shape[1:])
train = torch.arange(len(labels)) % 3 != 0
circle = torch.arange(6) * torch.pi / 3


def fitted(margin, steps=120):
    """Where the pictures lie on the circle after training with this margin."""
    torch.manual_seed(0)
    linear, head = torch.nn.Linear(inputs.shape[1], 2, bias=False), CurricularFace(2, 6, scale=8, margin=margin)
    head.centres.data = torch.stack([circle.cos(), circle.sin()], dim=1)  # they stay: only the map learns
    optimizer = torch.optim.Adam(linear.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = F.cross_entropy(head(linear(inputs[train]), labels[train]), labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.normalize(linear(inputs).detach(), dim=1), head.centres.detach()


# %%
drawing, panels = viz.axes(3, height=2.5)
angles = []
for panel, margin in zip(panels, (0, 0.4, 0.8), strict=True):
    placed, centres = fitted(margin)
    angles.append((placed * centres[labels]).sum(1).clamp(-1, 1)[~train].acos().rad2deg().mean().item())
    panel.scatter(*placed.T, c=labels, cmap="tab10", s=9)
    for x, y in centres.tolist():
        panel.plot([0, 0.9 * x], [0, 0.9 * y], color="#cccccc", lw=0.8)
    panel.set(title=f"margin {margin}: {angles[-1]:.1f}°", aspect="equal", xticks=[], yticks=[])
viz.plot(drawing, "Three circles: with a larger margin the pictures of a person lie closer together")
print("the largest margin puts them closer than none:", angles[2] < angles[0])

# %% [markdown]
# ## 4. Why the map, and not the vector?
#
# Most methods before UniPortrait condition on the vector: it is what recognition is made for. The paper (section "ID
# embedding") takes the **last map before the fully connected layer**: every place of it is a token of the intrinsic ID
# features $F_r$. In its ablation that step alone raises the face similarity from 45.5% to 58.3%.

# %% [markdown] exercise="as_tokens" level="easy" minutes=5 teaches="reading a feature map as a sequence of tokens"
# ### A map is a sequence
#
# Write `as_tokens(features)`: from a map (B, C, H, W) to tokens (B, H * W, C), one for each place, row by row.
#
# **Hint.** `flatten` joins the two last dimensions. Which two have to change places then?


# %%
def as_tokens(features):
    """A map (B, C, H, W) -> one token for each place (B, H W, C)."""
    ### BEGIN SOLUTION
    return features.flatten(2).transpose(1, 2)
    ### END SOLUTION


checks.as_tokens(as_tokens)

# %% [markdown]
# That is all of $F_r$. And the vector? The head's only matrix has seen all 49 places: it is a *linear summary* of the
# same tokens, of 49 x 128 = 6,272 numbers in 128 (in the paper, 25,088 in 512).

# %%
features = [encoder(few) for few in pixels.split(30)]  # thirty at a time: memory stays small
intrinsic, structures = (torch.cat(part) for part in zip(*features, strict=True))
with torch.no_grad():
    torch.testing.assert_close(intrinsic, maps[-1].flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-4)
    norm, _, _, matrix, last = encoder.backbone.head
    summary = last(norm(maps[-1]).flatten(1) @ matrix.weight.T + matrix.bias)
    torch.testing.assert_close(F.normalize(summary, dim=1), vectors, rtol=1e-3, atol=1e-4)
print("F_r:", tuple(intrinsic.shape[1:]), "   the head's matrix:", tuple(matrix.weight.shape))

# %% [markdown]
# What is lost in the summary? In a drawn world we can ask, because each person is a list of known factors. For 800
# people, one picture each, we fit a linear read-out (ridge regression) to three quarters of them, and see how well it
# tells each factor of the others: 0 is as good as always saying the most frequent value (or worse), 1 is always right.
# The orange bars are of $F_s$, which part 5 builds.

# %%
crowd = [portrait(Person.random(2_044_000 + i), seed=i) for i in range(800)]


@torch.no_grad()
def features_of(scenes):
    """The vector, F_r, and F_s on 8 x 8 places of a few scenes, flat."""
    crops = crop(np.stack([s.pixels for s in scenes]), np.stack([s.faces[0].landmarks for s in scenes]), side=224)
    intrinsic, structure = encoder(pixels_of(crops))
    vector = encoder.backbone.head(intrinsic.transpose(1, 2).unflatten(2, (7, 7)))
    halved = F.avg_pool2d(structure.transpose(1, 2).unflatten(2, (16, 16)), 2)
    return [F.layer_norm(x.flatten(1), x.flatten(1).shape[1:]) for x in (vector, intrinsic, halved)]


parts = [features_of(crowd[i : i + 50]) for i in range(0, len(crowd), 50)]  # fifty at a time: memory stays small
kinds = {name: torch.cat(x) for name, x in zip(("vector", "F_r", "F_s"), zip(*parts, strict=True), strict=True)}
kinds = {name: ((x - x.mean(0)) / (x.std(0) + 1e-6)).numpy() for name, x in kinds.items()}


# %%
def told(features, values, train=600):
    """How well a linear read-out tells the values of people it was not fitted to: 0 for a blind guess, 1 for all."""
    wanted = np.array([[value == choice for choice in sorted(set(values))] for value in values], float)
    read = readable(features[:train], wanted[:train], features[train:], weight=1.0)
    right = (read.argmax(1) == wanted[train:].argmax(1)).mean()
    blind = wanted[train:].mean(0).max()
    return max(0, (right - blind) / (1 - blind))


who = ("skin", "hair_color", "eye_color", "face_shape", "brows", "nose", "lips", "mole")
this_picture = ("expression", "glasses", "hat", "light", "style", "background")
values = {name: [getattr(s.faces[0].person, name) for s in crowd] for name in who}
values |= {name: [s.faces[0].attributes.get(name) or getattr(s, name) for s in crowd] for name in this_picture}
table = {kind: [told(features, values[name]) for name in values] for kind, features in kinds.items()}
drawing, axis = viz.axes(height=2.9)
for k, (kind, color) in enumerate(zip(table, ("#777777", "#2f9e5a", "#e08a2c"), strict=True)):
    axis.bar(np.arange(len(values)) + 0.27 * (k - 1), table[kind], 0.25, label=kind, color=color)
axis.set_xticks(range(len(values)), [name.replace("_", "\n") for name in values], rotation=45)
axis.axvline(len(who) - 0.5, color="black", lw=0.8)
axis.set(ylim=(0, 1.12), ylabel="told", title="left of the line: who it is.   right: what this picture adds")
axis.legend(loc="upper left", ncols=3, fontsize=8, frameon=False)
viz.plot(drawing, "Bars: how well each factor is read from the vector, F_r and F_s")
means = {kind: (np.mean(row[: len(who)]), np.mean(row[len(who) :])) for kind, row in table.items()}
print("F_r tells more of who it is than the vector:", means["F_r"][0] > means["vector"][0])
print("and more of what only this picture adds:", means["F_r"][1] > means["vector"][1])

# %% [markdown]
# Compare green with grey. Left of the line: details of a face that telling people apart does not need, and that a
# portrait does. They are the paper's reason for the map, though here only the mole gains much, other things little, and
# the nose nothing. The large gains are right of the line: the map also keeps more of expression, glasses and style,
# which a portrait should take from the prompt. The training has to deal with that (swapped references, and DropToken
# and DropPath on $F_s$: next notebook). What the map is worth for portraits at this small scale, against the vector,
# stands in `docs/experiments.md`: in short trainings not what the paper finds at its own.
#
# The read-out is linear and saw 600 pictures: what it cannot tell may still be there.
#
# ## 5. Face structure features
#
# What a deep map throws away, shallow ones still have: textures, fine shapes, exact places. That is the paper's reason
# for a second source. How much of it holds here the orange bars above have told: more of what the picture adds, less of
# the face's own details, as far as a linear read-out finds them. Its
# **face structure features** $F_s$ take, at each of 16 x 16 places, the maps of stages 1 to 3, resized, and CLIP's
# token of that patch, from its second-to-last layer and without the class token. Here that makes 16 + 32 + 64 + 96
# = 208 channels (the paper: 64 + 128 + 256 + 1280 = 1728).

# %% [markdown] exercise="structure" level="medium" minutes=15 teaches="joining two networks' features"
# ### Build F_s
#
# Write `structure(maps, hidden_states)`: `maps` are the four maps, each (B, C, h, w), shallow first. `hidden_states` is
# the list of CLIP's hidden states, each (B, 1 + L, D), the class token first, and L a square number. Resize the three
# shallow maps bilinearly to CLIP's grid of patches; the result (B, L, C1 + C2 + C3 + D) has the maps' channels first,
# then CLIP's, from its second-to-last hidden state.
#
# **Hint.** Join the resized maps with `torch.cat(..., dim=1)`, turn them into tokens as in the exercise before, then
# join with CLIP's along the channels. The grid's side is the root of L. `F.interpolate(..., mode="bilinear")`.


# %%
def structure(maps, hidden_states):
    """Four maps and CLIP's hidden states -> face structure features (B, L, C1 + C2 + C3 + D)."""
    ### BEGIN SOLUTION
    clip = hidden_states[-2][:, 1:]
    side = int(clip.shape[1] ** 0.5)
    resized = [F.interpolate(m, size=(side, side), mode="bilinear", align_corners=False) for m in maps[:3]]
    shallow = torch.cat(resized, dim=1).flatten(2).transpose(1, 2)
    return torch.cat([shallow, clip], dim=-1)
    ### END SOLUTION


checks.structure(structure)

# %% [markdown]
# Now you have seen all of the package's `FaceFeatures`: "spatial" is the paper's $F_r$, the other case its ablation. By
# hand, for three faces, it comes to the same.

# %%
show_source(FaceFeatures.forward)
with torch.no_grad():
    few = (pixels[:3] - encoder.clip_mean) / encoder.clip_std  # as CLIP wants its pixels
    hidden = encoder.clip_vision(pixel_values=few, output_hidden_states=True).hidden_states
resized = [F.interpolate(m[:3], size=(16, 16), mode="bilinear", align_corners=False) for m in maps[:3]]
by_hand = torch.cat([torch.cat(resized, dim=1).flatten(2).transpose(1, 2), hidden[-2][:, 1:]], dim=-1)
torch.testing.assert_close(by_hand, structures[:3], rtol=1e-3, atol=1e-4)
print("F_r:", tuple(intrinsic.shape[1:]), "   F_s:", tuple(structures.shape[1:]))

# %% [markdown]
# ## 6. What does each of them mind?
#
# The same people, drawn twice with everything equal but one thing. How far do the features move, compared with how far
# the next *person* is, in the same scene? 1 would mean: as if it were somebody else.

# %%
plain = {"expression": "neutral", "glasses": "none", "hat": "none", "style": "photo", "light": "front", "turn": 0.0}
plain |= {"tilt": 0.0, "gaze": (0.0, 0.0), "background": "studio", "clothes": "t-shirt", "clothes_color": "red"}
changes = {"light": {"light": "left"}, "place": {"background": "beach"}, "glasses": {"glasses": "square"}}
changes |= {"hat": {"hat": "beanie", "hat_color": "blue"}, "expression": {"expression": "laugh"}}
changes |= {"style": {"style": "comic"}, "pose": {"turn": 0.9}}


def seen(people, change):
    """Vector, F_r and F_s of people in the plain scene with one change, and the crops."""
    drawn = [portrait(person, seed=5, **(plain | change)) for person in people]
    crops = crop(np.stack([s.pixels for s in drawn]), np.stack([s.faces[0].landmarks for s in drawn]), side=224)
    pixels = pixels_of(crops)
    features, vector = encoder(pixels), encoder.embedding(pixels)
    return {"vector": vector[:, None], "F_r": features.intrinsic, "F_s": features.structure}, crops


spread = {"vector": vectors[:, None], "F_r": intrinsic, "F_s": structures}
spread = {kind: x.flatten(0, 1).std(0) for kind, x in spread.items()}  # of each channel, over the album


def distance(a, b, kind):
    """How far two faces' features are from each other at each place (B, L), every channel counting the same."""
    return ((a[kind] - b[kind]) / spread[kind]).square().mean(2).sqrt()


# %%
group = [Person.random(2_045_000 + i) for i in range(16)]
normal, _ = seen(group, {})
next_person = {kind: x.roll(1, 0) for kind, x in normal.items()}
unit = {kind: distance(normal, next_person, kind).mean() for kind in normal}
moved = {}
for name, change in changes.items():
    changed, _ = seen(group, change)
    moved[name] = {kind: (distance(changed, normal, kind).mean() / unit[kind]).item() for kind in unit}
drawing, axis = viz.axes(height=2.5)
for k, (kind, color) in enumerate(zip(unit, ("#777777", "#2f9e5a", "#e08a2c"), strict=True)):
    axis.bar(
        np.arange(len(moved)) + 0.27 * (k - 1), [row[kind] for row in moved.values()], 0.25, label=kind, color=color
    )
axis.set_xticks(range(len(moved)), list(moved))
axis.set(ylim=(0, 1.05), ylabel="1: another person", title="how far one change moves the features")
axis.legend(loc="upper left", fontsize=8, frameon=False)
viz.plot(drawing, "Bars: how far light, place, glasses, hat, expression, style and pose move the vector, F_r and F_s")
mean = {kind: np.mean([row[kind] for row in moved.values()]) for kind in unit}
print("every change moves all three less than another person would:", max(max(r.values()) for r in moved.values()) < 1)
print("the vector moves least, on average:", min(mean, key=mean.get) == "vector")

# %% [markdown]
# The vector was trained to ignore all this, and does so best on average. "Intrinsic" is a matter of degree: at this
# scale $F_r$ is not free of pose and expression either. What surrounds the face, place and hat, moves $F_s$ more.
# *Where* do they move? Choose a change: the two crops, and what it does to $F_r$ and to $F_s$ at each place (bright: as
# far as to another person).


# %%
def where(change):
    """A person before and after a change, and how far it moves F_r and F_s at each place."""
    person = [Person.random(2_042_012)]
    (before, crop_before), (after, crop_after) = seen(person, {}), seen(person, changes[change])
    shown = {"before": crop_before[0], "after": crop_after[0]}
    for kind, side in (("F_r", 7), ("F_s", 16)):
        far = distance(after, before, kind)[0].view(side, side)
        shown[f"moves {kind} here"] = viz.heat(far, crop_before[0], highest=float(unit[kind]))
    return shown


viz.live(where, change=widgets.Dropdown(options=list(changes), value="expression", description="change"))

# %% [markdown]
# Last, neighbours again, in the album of part 2: whose picture is nearest to the first one by $F_r$, and by $F_s$?
# (With the mean of all subtracted, which says "a face".)

# %%
shown, titles, hits = [], [], {}
for kind, features in (("F_r", intrinsic), ("F_s", structures)):
    flat = F.normalize((features - features.mean(0)).flatten(1), dim=1)
    alike = flat @ flat.T
    alike.fill_diagonal_(-1)
    nearest = alike[asked].argsort(descending=True)[:3].tolist()
    shown += [faces[asked], *(faces[i] for i in nearest)]
    titles += [f"by {kind}:", *("the same" if people[i] == people[asked] else "somebody else" for i in nearest)]
    hits[kind] = np.mean(people[alike.argmax(1).numpy()] == people)
viz.show(shown, titles, columns=4)
print("the nearest is the same person more often by F_r than by F_s:", hits["F_r"] > hits["F_s"])

# %% [markdown]
# $F_r$ says who it is, $F_s$ what this face looks like in this very picture: so says the paper, at its size. Here the
# division is not clean. $F_r$ knows better who it is, but holds expression and glasses as well; $F_s$ is moved most by
# style, pose and surroundings. Either way, a model that leans on $F_s$ copies the reference, style and pose included.
# This is why the paper lets it read $F_s$ through a branch of its own, with a scale, and drops it often in training.
#
# ## What the tiny scale cannot show
#
# * Drawn people differ in a few dozen ways, and this recogniser has met only some thousands of them. A real one has met
#   360,000 people in 17 million photos (Glint360K), and keeps finer things apart.
# * Our read-outs know the truth because the faces are drawn. For photos one would need labels.
# * Here CLIP is as small as the recogniser and knows our world's words only; the paper's ViT-H/14 has seen two billion
#   pictures. How much $F_s$ adds is a matter of scale, and its ablation is the paper's, not ours.
#
# ## In five lines
#
# 1. Five landmarks and a similarity bring every face to the same place.
# 2. Identity is made stage by stage; a margin and a curriculum of hard negatives train it.
# 3. $F_r$ is the last map, one token a place. The vector is a linear summary of it: purer, but poorer.
# 4. $F_s$ is three shallow maps and CLIP's patches, place by place: what this picture shows.
# 5. Both know more than identity, and what to do about that is the business of the ID embedding.
#
# ## Further reading
#
# * [UniPortrait](https://arxiv.org/abs/2408.05939), section "ID embedding" and its ablation
# * [ArcFace](https://arxiv.org/abs/1801.07698): the margin, the backbone and the template;
#   [CurricularFace](https://arxiv.org/abs/2004.00288): the loss
# * [SCRFD](https://arxiv.org/abs/2105.04714): the detector; [CLIP](https://arxiv.org/abs/2103.00020)
# * In the package: `faces.py`, `backbone.py`, `features.py`
#
# **Next:** [02_id_embedding](02_id_embedding.ipynb), from $F_r$ and $F_s$ to 16 ID tokens, and into the U-Net.
