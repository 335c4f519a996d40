# %% [markdown]
# # feddlp from Python
# A run, a look at it, one client's model in use, and the same model as files. The cells run one after the other, in a
# notebook or as `python examples/from_python.py [key=value ...]`; the words change the configuration.

# %%
import sys
from collections import Counter
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import feddlp

# %% A run: the demo, shortened. Any key of docs/configuration.md may be given.
words = ["name=from-python", "methods=local,feddlp", "training.rounds=2", *sys.argv[1:]]
run = feddlp.run(feddlp.load_config(None, words))

# %% What it left: one dictionary a method and round, accuracies in %.
for row in run.rounds:
    print(f"{row['method']:<8} round {row['round']}  test {row['test']['pooled']:.2f} %")

# %% Later, in another session: the same object from its folder.
run = feddlp.load_run(run.path)
client = run.clients[0]

# %% One client's model. Pictures are paths or Pillow images.
digits = [Image.fromarray((pixels * 15).astype("uint8")) for pixels in load_digits().images[:20]]
predictor = run.client(client)
for prediction in predictor.predict(digits[:3], top=2):
    print("  ".join(f"{name} {probability:.0%}" for name, probability in prediction.classes))

# %% The same images with the shared adapter: how often the two name another class.
shared = run.client(client, adapter="global")
pairs = zip(predictor.predict(digits, top=1), shared.predict(digits, top=1), strict=True)
print("same class:", Counter(mine.classes[0][0] == theirs.classes[0][0] for mine, theirs in pairs)[True], "of 20")

# %% Take it away: a PEFT adapter, which `peft` and `CLIPModel.load_adapter` read without feddlp.
taken = run.export(client, Path(run.path) / f"client-{client}")
print(sorted(path.name for path in taken.folder.iterdir()))

# %% And back.
again = feddlp.load_predictor(taken.folder)
assert again.predict(digits[:1])[0].classes[0][0] == predictor.predict(digits[:1])[0].classes[0][0]
