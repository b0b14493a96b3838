"""What a version was published with for requests that name little is what the worker tells of it."""

from pathlib import Path

from tests.worker.engine.harness import filled_pool
from tests.worker.text_pipeline import TEXT, publish_text, write_text_pipeline
from worker.contract import SamplerName
from worker.store import ModelStore, Recipe, RequestDefaults


def test_the_description_of_a_model_names_its_defaults_and_examples(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    plain = publish_text(store).version
    tuned = store.publish(
        TEXT,
        write_text_pipeline,
        step=2,
        recipe=Recipe(command="tuned", data="none"),
        request_defaults=RequestDefaults(sampler=SamplerName.EULER, steps=25, guidance_scale=4.0),
        example_prompts=["a cat", "a dog"],
    ).version
    pool = filled_pool(store)
    (info,) = pool.describe()
    assert (info.version, info.example_prompts) == (tuned, ["a cat", "a dog"])
    told = {each.version: (each.sampler, each.steps, each.guidance_scale) for each in info.versions}
    assert told == {plain: (SamplerName.DDPM, None, None), tuned: (SamplerName.EULER, 25, 4.0)}
    store.promote(TEXT, plain)
    pool.poll()
    pool.load_pending()
    assert pool.describe()[0].example_prompts == []
