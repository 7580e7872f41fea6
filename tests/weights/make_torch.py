"""Writes weights with torch: a state dict in today's form and in the old one, and a scripted module."""

import sys
from pathlib import Path

import torch

folder = Path(sys.argv[1])
torch.manual_seed(7)
model = torch.nn.Sequential(*[torch.nn.Linear(512, 1024) if i % 2 == 0 else torch.nn.Linear(1024, 512) for i in range(4)])
torch.save(model.state_dict(), folder / "m.pt")
torch.save(model.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
torch.jit.script(model).save(str(folder / "script.pt"))
