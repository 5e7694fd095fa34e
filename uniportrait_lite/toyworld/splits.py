"""Which seeds belong to whom: people of one range never meet the networks of another."""

TRAIN = range(0, 100_000)  # VAE, CLIP, U-Net, recogniser, detector, adapter
JUDGE = range(1_000_000, 1_100_000)  # the second recogniser, which only scores
HELD_OUT = range(2_000_000, 2_100_000)  # evaluation, demos, `data/faces`: no network was trained on them
