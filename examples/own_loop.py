"""Train with a loop of your own: `step` is the whole of adversarial training, the rest is yours."""

import torch

from demilune import PGD, RAT, Ball, Batch, Stream, step, survivors
from demilune.data import Digits, order
from demilune.models import Small, create

data = Digits().load()
rng, ball, method = Stream.of(0), Ball("linf", 0.15), RAT(PGD(steps=10, step_ratio=0.25))
model = create(Small(), 1, 10, data.mean, data.std, rng)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(3):
    for number, index in enumerate(order(rng, epoch, len(data.train), 64)):
        rows = data.train.take(index)
        batch = Batch(data.train.pixels(index), rows.labels, 10, rows.ids, epoch)
        step(model, optimizer, method, batch, ball, rng.sub(epoch, number))

model.eval()
x, y, ids = data.test.pixels(slice(None)), data.test.labels, data.test.ids
verdict = survivors(model, x, y, PGD(steps=10, step_ratio=0.25), ball, rng.images(ids))
print(f"clean {verdict.clean.float().mean():.1%}, robust {verdict.robust.float().mean():.1%} of {len(y)}")
