"""Ask whether a model is robust, really: eleven checks and one verdict, of any callable from images to logits."""

import torch

from demilune import Ball, examine

# Yours: a model, 8-bit images and labels. Here an untrained one, and few attacks so that it is quick.
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10)).eval()
x = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
y = model(x / 255).argmax(dim=1)

found = examine(model, x, y, Ball("linf", 8 / 255), ("fgsm", "pgd10", "cw10", "apgd"))  # or "quick", "full"
for finding in found.findings:
    print(finding.name, finding.outcome, finding.text)
print(found.verdict.text)
