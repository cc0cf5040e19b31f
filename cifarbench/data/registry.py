"""Augmentations of the user's own. One file, named under `plugins=` on the command line, adds one:

    import torch
    from cifarbench.data.registry import register

    @register("posterize")
    def posterize(images, draws, *, bits: int = 4, chance: float = 0.5):
        coarse = images >> (8 - bits) << (8 - bits)
        return torch.where(draws.coin("posterize", chance)[:, None, None, None], coarse, images)

It is given a batch of training images, (B, 3, 32, 32) uint8, on the run's device, mirrored and cropped where the config
says so, and their `Draws` (`cifarbench/data/random.py`), a row of random numbers for each image; it returns new images
of the same shape and type. An image must not depend on its neighbours in the batch, nor on torch's own random numbers:
then a run repeats, and goes on, bit for bit. Its further arguments become keys of `augment`, beside those of
`augment=none`, so that `augment=posterize augment.flip=0.5` has both.
"""

from __future__ import annotations

from cifarbench.tables import Table

OWN = Table("augmentation", given=2)
register = OWN.register
