"""Attack a model in four lines: any callable from images in [0,1] to logits will do."""

import torch

from demilune import PGD, Ball, Stream

# Yours: a model, images and labels. Here an untrained one.
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10)).eval()
x, y = torch.rand(16, 3, 8, 8), torch.randint(10, (16,))

ball = Ball("linf", 8 / 255)
rng = Stream.of(0).images(torch.arange(len(x)))
x_adv = PGD(steps=10, step_ratio=0.25)(model, x, y, ball, rng)
print("right before and after:", (model(x).argmax(1) == y).sum().item(), (model(x_adv).argmax(1) == y).sum().item())

assert float(ball.distance(x_adv, x).max()) <= 8 / 255 + 1e-6
