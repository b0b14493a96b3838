"""The card of a version: what it is, what it was made from and how, how good it is. A README.md beside its weights."""

from collections.abc import Mapping

from training.configuration import TrainingConfiguration
from training.data import ImageSource

SAMPLES_NAME = "samples.png"
LICENCES = {
    "digits": "Images: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (CC BY 4.0).",
    "emoji": "Drawings: Noto Emoji, Copyright Google LLC (Apache License 2.0; font OFL 1.1). "
    "Names and keywords: emojibase-data (MIT), from Unicode CLDR (Unicode License v3).",
    "textures": "Photographs: scikit-image's, each under the licence that its documentation names.",
}


def model_card(
    model: str, configuration: TrainingConfiguration, source: ImageSource, metrics: Mapping[str, float], command: str
) -> str:
    """Markdown, the same for the same version."""
    channels, height, width = source.shape
    kind = "Text to image" if source.captioned else "Image"
    first = configuration.super_resolution_of
    cascade = "" if first is None else f"- A cascade: a second leg that enlarges what {first} draws.\n"
    conditions = f", {len(source.label_names)} classes" if source.label_names else ""
    scores = "\n".join(f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in sorted(metrics.items()))
    return f"""# {model}

{kind} diffusion model, {width}x{height}, {channels} channel{"s" if channels > 1 else ""}{conditions}.

![Samples from fixed seeds]({SAMPLES_NAME})

{cascade}- Data: {source.name}, {len(source)} images to train on.
- {LICENCES.get(configuration.data, "The licence of the data is its owner's.")}
- Predicts {configuration.prediction.value} on a {configuration.schedule} schedule; trained on batches of \
{configuration.batch} with {configuration.optimizer}; the averaged weights ({configuration.ema.value}).

| on images held out | |
|---|---|
{scores}

Made by:

```sh
{command}
```
"""
